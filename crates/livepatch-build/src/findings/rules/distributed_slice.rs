//! A section collected by the linker changed.

use super::{Code, Rule, Severity};

/// LP0015.
pub static RULE: Rule = Rule {
    code: Code(15),
    severity: Severity::Refusal,
    title: "the collected section {} changed",
    reason: "the program reads this section from its start to its end, which are fixed in the running image; new entries would not be seen",
    help: "register the new entry at run time from patched code, or make the change with the next restart",
    explanation: r##"A custom section that is collected by the linker changed. Crates such as `linkme` and `inventory` and hand-written
`#[link_section]` tables gather entries of many object files in one section and walk it from start to end.

    #[distributed_slice(HANDLERS)] static NEW: Handler = ...;

The running image has a section of fixed size. An entry in a patch would lie elsewhere and never be found.

What to do: register the entry at run time, or leave it to the next restart.
"##,
};
