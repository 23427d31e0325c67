//! Nothing but what is exported changed.

use super::{Code, Rule, Severity};

/// LP0017.
pub static RULE: Rule = Rule {
    code: Code(17),
    severity: Severity::Refusal,
    title: "nothing changed but that {} is exported",
    reason: "other modules find what a module exports in a table that the loader has read, and a patch adds nothing to it, so it would have \
             no effect",
    help: "let a function that is exported already give its address out, or load the new library with the next restart",
    explanation: r##"The fixed source has one more exported function or variable, and all code that the running program has is as it was. The table of
what the module exports was read when it was loaded and stays as it is (see LP0116), so nobody could reach what the patch would bring.
"##,
};
