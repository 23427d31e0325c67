//! Something that a patch cannot carry.

use super::{Code, Rule, Severity};

/// LP0019.
pub static RULE: Rule = Rule {
    code: Code(19),
    severity: Severity::Refusal,
    title: "{} needs something that a patch cannot carry",
    reason: "its new code refers to something that cannot be linked into a running process",
    help: "express the fix without it, or ship it with the next release",
    explanation: r##"A patch is linked into a running process, and a few things that a static linker can do cannot be done there: an access
sequence for thread-locals that livepatch does not know, a relocation type for another code model, a reference to a
symbol of which the program has several copies that cannot be told apart.

The finding names the function and what it needs.

What to do: express the fix without it, often by moving the construct into a function of its own that the patched
function calls, or ship the change with the next release.
"##,
};
