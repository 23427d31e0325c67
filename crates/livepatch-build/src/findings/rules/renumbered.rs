//! Closures of one parent may have changed their numbers.

use super::{Code, Rule, Severity};

/// LP0004.
pub static RULE: Rule = Rule {
    code: Code(4),
    severity: Severity::Refusal,
    title: "closures of {} cannot be matched by their numbers",
    reason: "closures are told apart by their position only, so a closure of the running program may be taken for another one",
    help: "put the new closure or async block into a function of its own, so that the others keep their numbers",
    explanation: r##"A function has other closures (or async blocks) than before, and one of them is patched.

    v.iter().map(|x| x + 1).collect()                       // running program: `{closure#0}` adds 1
    v.iter().filter(|x| **x > 0).map(|x| x + 2).collect()   // fixed source: `{closure#0}` is the filter

The compiler names closures by counting. When one is added or removed the same name and the same symbol may mean another
closure, and code that runs the old one would get a body that was meant for something else.

What to do: make the new closure a named function, or move it into a function of its own. The existing ones then keep
their numbers.
"##,
};
