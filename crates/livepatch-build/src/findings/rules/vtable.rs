//! A vtable has other slots.

use super::{Code, Rule, Severity};

/// LP0008.
pub static RULE: Rule = Rule {
    code: Code(8),
    severity: Severity::Refusal,
    title: "vtable {} changed",
    reason: "existing trait objects keep their old vtable: calls through it would reach another method, or not the new one",
    help: "leave the trait and its impl blocks as they are, and change the bodies of methods only; if that is what was done, the compiler has merged \
           methods of equal code in one of the builds: have the changed method call a new function",
    explanation: r##"The table of methods of a type for a trait has another number of slots, or a slot holds another function.

    trait Shape { fn area(&self) -> f64; fn name(&self) -> String; }                       // running program
    trait Shape { fn name(&self) -> String; fn area(&self) -> f64; }                       // fixed source

A `Box<dyn Shape>` made by the running program points to the old table for ever. Code compiled for the new order would call
`area` and get `name`. An impl that newly overrides a default method is the same: old objects would go on with the default.

Changing the body of a method is fine: the function in the slot is redirected. A slot that holds another function of equal code is
fine, too, unless the fix changed the old one: the optimiser merges such functions.

A table that the fixed build has optimised away is refused, too, because nothing says what would be in its slots now. Only where
type and trait are both the standard library's, that does not matter: the fix cannot have changed them.

If the fix makes no objects of a type any more, its table is gone, and the old ones keep theirs. Patched code that handles objects of
the trait has to agree with it in the order of the methods; tables of other types must show that.

Impl blocks are numbered, and closures in methods are named after that number: an impl block that is added or removed before others gives
such closures other names and functions, and boxed ones of the running program would keep the old code. Put new impl blocks last.

What to do: change bodies only. A new method can be a free function or belong to a new trait.
"##,
};
