//! Something is exported that was not.

use super::{Code, Rule, Severity};

/// LP0116.
pub static RULE: Rule = Rule {
    code: Code(116),
    severity: Severity::Note,
    title: "{} is exported only by the fixed source",
    reason: "other modules find what a module exports in a table that the loader has read; a patch adds nothing to it, so `dlsym` does \
             not find it in a running process",
    help: "let a function that is exported already give its address out, or load the new library with the next restart",
    explanation: r##"The fixed source exports a function or variable, mostly of a library, that the running program does not:

    #[unsafe(no_mangle)]
    pub extern "C" fn price_v2(net: u64) -> u64 { .. }

Hosts look for such names with `dlsym`, or are linked to them. The answer comes from the symbol table of the file that was loaded, and
that stays as it is. This is not an obstacle: what changed besides is patched. But whoever looks for the new name in a patched process does not
find it.
"##,
};
