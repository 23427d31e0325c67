//! A function is gone whose address the running program may keep.

use super::{Code, Rule, Severity};

/// LP0114.
pub static RULE: Rule = Rule {
    code: Code(114),
    severity: Severity::Note,
    title: "{} is not in the fixed source; what the program keeps of it runs its old code",
    reason: "the running program took its address (for a function pointer, a closure, a trait object), and there is no function of that \
             name to lead it to",
    help: "if the program stores such values, fix the function under its old name and rename it with the next release",
    explanation: r##"The fixed source does not have a function, method or closure of the running program, which takes its address:

    fn half(x: u64) -> u64 { x / 3 }                  // running program
    fn register() { RULES.lock().unwrap().push(half) }

    fn halve(x: u64) -> u64 { x / 2 }                 // fixed source
    fn register() { RULES.lock().unwrap().push(halve) }

What `register` stores from now on is `halve`. What is in `RULES` already goes on to be `half`, as it was: nothing says that `halve` is to
take its place. The same holds for trait objects of a type that is gone, and for closures. This is not an obstacle, and where the
function was removed on purpose it is what one would expect; but a function that was fixed *and* renamed has its fix only where it is
called by name.
"##,
};
