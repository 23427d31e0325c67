//! A function is too short for a jump.

use super::{Code, Rule, Severity};

/// LP0012.
pub static RULE: Rule = Rule {
    code: Code(12),
    severity: Severity::Refusal,
    title: "there is no room for a jump at {}",
    reason: "the function is shorter than the jump that redirects it, and what follows it is not padding",
    help: "change its callers instead, or mark it `#[inline(always)]` with the next release",
    explanation: r##"Redirecting a function overwrites its first bytes with a jump. This function is shorter than the jump and no padding
follows it, so the jump would run into the next function.

    fn seven() -> u32 { 7 }     // six bytes, directly followed by other code

What to do: patch the callers (a change in them alone is enough to bring them in), or build the baseline with functions
aligned to 16 bytes, which is what rustc does except at `opt-level = "s"` and `"z"`.
"##,
};
