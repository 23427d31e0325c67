//! An initial value changed and the running value stays.

use super::{Code, Rule, Severity};

/// LP0101.
pub static RULE: Rule = Rule {
    code: Code(101),
    severity: Severity::Note,
    title: "initial value of {} changed; the running value is kept",
    reason: "variables keep their values when a patch is applied",
    help: "set the variable from patched code if the running program needs the new value",
    explanation: r##"A variable's initial value differs between the builds. This is not an obstacle, but the change has no effect on the
running program: its variables keep the values they have.

    static LIMIT: AtomicU32 = AtomicU32::new(10);    // running program
    static LIMIT: AtomicU32 = AtomicU32::new(20);    // fixed source

After `apply` and after `rollback` `LIMIT` is what it was. The new value takes effect with the next restart.
"##,
};
