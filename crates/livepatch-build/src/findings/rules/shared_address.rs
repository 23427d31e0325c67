//! Two names at one address went different ways.

use super::{Code, Rule, Severity};

/// LP0009.
pub static RULE: Rule = Rule {
    code: Code(9),
    severity: Severity::Refusal,
    title: "{} shares its code with a function that was not changed the same way",
    reason: "two names have one address in the running program, and redirecting one redirects both",
    help: "build the baseline without identical code folding, or change both functions",
    explanation: r##"The linker or the optimiser gave two functions of equal code one address. In the fixed build they are no longer the same.

    fn retries() -> u32 { 3 }
    fn replicas() -> u32 { 3 }     // one piece of code in the running program

When `retries` becomes 5 a jump at the shared address would change `replicas` too.

What to do: build the baseline with a linker that does not fold identical code (`--icf=none`), or, if it is right for both,
change both functions in the same way.
"##,
};
