//! A function has other parameters or another result under the same symbol.

use super::{Code, Rule, Severity};

/// LP0005.
pub static RULE: Rule = Rule {
    code: Code(5),
    severity: Severity::Refusal,
    title: "signature of {} changed",
    reason: "code that calls it through a pointer, a vtable or an old frame passes and expects the old types",
    help: "add a function of another name for the new signature and leave the old one as it is",
    explanation: r##"A function keeps its symbol and has other parameters or another return type.

    fn price(net: u32) -> u32             // running program
    fn price(net: u32, rate: u32) -> u32  // fixed source

The same goes for `extern "C"` and `#[track_caller]`: they pass arguments elsewhere, or one more, under the same symbol.

With legacy mangling such a function gets another symbol and is a new function. With v0 mangling, `#[no_mangle]` and
`#[export_name]` the symbol stays. Unpatched callers would pass one argument to code that reads two.

What to do: add a function of another name for the new signature and call that one from the patched code.
"##,
};
