//! Closures of one parent may have changed their numbers.

use super::{Code, Rule, Severity};

/// LP0004.
pub static RULE: Rule = Rule {
    code: Code(4),
    severity: Severity::Refusal,
    title: "closures of {} cannot be matched by their numbers",
    reason: "closures are told apart by their position only, so a closure of the running program may be taken for another one",
    help: "put the new closure or async block into a function of its own or behind the others, and leave those in their order, so that \
           they keep their numbers",
    explanation: r##"A function has other closures (or async blocks) than before, and one of them is patched.

    v.iter().map(|x| x + 1).collect()                       // running program: `{closure#0}` adds 1
    v.iter().filter(|x| **x > 0).map(|x| x + 2).collect()   // fixed source: `{closure#0}` is the filter

The compiler names closures by counting. When one is added or removed the same name and the same symbol may mean another
closure, and code that runs the old one would get a body that was meant for something else. So would whatever the running program
keeps of the old ones: function pointers, boxes, futures that wait. Closures that live in frames only, as those of iterator chains do as a
rule, may change their numbers.

What to do: make the new closure a named function, put it behind the others, or move it into a function of its own. The existing
ones then keep their numbers. Do not change their order.
"##,
};
