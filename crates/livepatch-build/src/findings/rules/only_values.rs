//! Nothing but initial values changed.

use super::{Code, Rule, Severity};

/// LP0016.
pub static RULE: Rule = Rule {
    code: Code(16),
    severity: Severity::Refusal,
    title: "only initial values changed, among them that of {}",
    reason: "the running program has long made its variables and a patch keeps their values, so it would have no effect",
    help: "set the variable from patched code, or make the change with the next restart",
    explanation: r##"The only difference between the builds is the initial value of one or more variables.

    static LIMIT: AtomicU32 = AtomicU32::new(10);    // running program
    static LIMIT: AtomicU32 = AtomicU32::new(20);    // fixed source

Variables keep their running values when a patch is applied: that is what makes a patch lose no state. So this change
would do nothing, and to report success would be a lie.

What to do: store the new value from a function that is patched and is called, or restart.
"##,
};
