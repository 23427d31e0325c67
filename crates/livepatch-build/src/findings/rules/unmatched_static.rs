//! A variable of the standard library could not be compared by type.

use super::{Code, Rule, Severity};

/// LP0102.
pub static RULE: Rule = Rule {
    code: Code(102),
    severity: Severity::Note,
    title: "type of {} was taken on trust",
    reason: "it belongs to the standard library or the compiler's runtime, which have no full debug information; both builds use the same one",
    help: "nothing",
    explanation: r##"Patched code refers to a variable of the standard library or of the compiler's runtime. They ship without full debug
information, so its type cannot be compared. Both builds were made by the same compiler with the same standard library
(that is checked elsewhere), and its size is equal in both, so it is the same variable.

    std::panicking::panic_count::GLOBAL_PANIC_COUNT

Nothing needs to be done.
"##,
};
