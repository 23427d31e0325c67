//! A variable comes that takes the place of another one.

use super::{Code, Rule, Severity};

/// LP0112.
pub static RULE: Rule = Rule {
    code: Code(112),
    severity: Severity::Note,
    title: "{} is a new variable and begins at its initial value",
    reason: "a variable is known by its path, so one that was moved or renamed, or whose function was, is another one",
    help: "leave the variable where it is, under its name, if the fix needs the running value",
    explanation: r##"The fixed source has a variable that the running program does not have, and lacks one that has the same name elsewhere, or
stood in the same place under another name:

    fn handle() -> u64 {                           // running program
        static SERVED: AtomicU64 = AtomicU64::new(0);
        SERVED.fetch_add(1, Relaxed)
    }

    fn handle_request() -> u64 {                   // fixed source
        static SERVED: AtomicU64 = AtomicU64::new(0);
        SERVED.fetch_add(1, Relaxed)
    }

A static inside of a function has the function in its path. `handle_request::SERVED` begins at 0, and nothing reads what
`handle::SERVED` holds until the patch is rolled back. A rebuild does the same. This is not an obstacle, and it may be what is wanted (a
new name for a `LazyLock` has its value computed anew), but a count or a cache that should go on has to stay where it is.
"##,
};
