//! Two names at one address went different ways.

use super::{Code, Rule, Severity};

/// LP0009.
pub static RULE: Rule = Rule {
    code: Code(9),
    severity: Severity::Refusal,
    title: "{} shares its code with a function that was not changed the same way",
    reason: "two names have one address in the running program, and redirecting one redirects both",
    help: "change both functions in the same way; or put the fix into the callers of the one, or into a new function that they call",
    explanation: r##"The linker or the optimiser gave two functions of equal code one address. In the fixed build they are no longer the same.

    fn retries() -> u32 { 3 }
    fn replicas() -> u32 { 3 }     // one piece of code in the running program

When `retries` becomes 5 a jump at the shared address would change `replicas` too.

What to do: if it is right for both, change both functions in the same way. Else leave them as they are, and have the callers of the one
call a new function. The linker does this if it folds identical code (`--icf=all`); the compiler does it by itself.
"##,
};
