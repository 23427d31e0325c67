//! A variable that lives on has another type.

use super::{Code, Rule, Severity};

/// LP0007.
pub static RULE: Rule = Rule {
    code: Code(7),
    severity: Severity::Refusal,
    title: "type of static {} changed",
    reason: "the running variable keeps its place and its bytes, which the new code would read as another type",
    help: "give the new variable another name, and fill it from the old one where it is needed",
    explanation: r##"A `static` or `thread_local!` that exists in the running program has another type, another size or another layout in the
fixed source, and patched code refers to it.

    static HITS: AtomicU32 = AtomicU32::new(0);                 // running program
    static HITS: Mutex<HashMap<u32, u64>> = ...;                // fixed source

Variables keep their identity: patched code uses the running one, and that has the old type.

What to do: introduce a static of another name; new statics are part of the patch. The patched code may read the old one
to fill it.
"##,
};
