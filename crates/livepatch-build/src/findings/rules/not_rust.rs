//! A changed function is written in another language.

use super::{Code, Rule, Severity};

/// LP0011.
pub static RULE: Rule = Rule {
    code: Code(11),
    severity: Severity::Refusal,
    title: "{} is not a Rust function",
    reason: "the checks rely on what rustc records about types and calls; other compilers record less, so nothing can be proven",
    help: "leave the foreign code as it is in the patch and change the Rust code that calls it",
    explanation: r##"A changed function comes from C, C++, assembly or another language.

    // in a build script: cc::Build::new().file("src/fast.c").compile("fast");

C has no names for its namespaces and may declare one type in several ways in several files, so equal names prove nothing;
inline assembly and hand-written assembly have no types at all.

What to do: keep the foreign code in the patch as it is. Often the Rust wrapper that calls it can be fixed instead.
"##,
};
