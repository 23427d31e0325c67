//! Code that runs at program start changed.

use super::{Code, Rule, Severity};

/// LP0014.
pub static RULE: Rule = Rule {
    code: Code(14),
    severity: Severity::Refusal,
    title: "initialiser {} changed",
    reason: "functions in `.init_array` have run when the program started and will not run again",
    help: "call the new initialisation from patched code, or make the change with the next restart",
    explanation: r##"A section that the loader runs at program start (`.init_array`, `.ctors`, `.preinit_array`) or end (`.fini_array`) differs
between the builds.

    #[link_section = ".init_array"] static SETUP: extern "C" fn() = setup;

The running program has done its start already. A patch that carries a new initialiser would silently not run it.

What to do: call the new code from a patched function, once, or leave it to the next restart.
"##,
};
