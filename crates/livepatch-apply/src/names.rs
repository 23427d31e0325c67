//! Names that people read.

use livepatch_patch::plain;

/// The path that a symbol has, without what the optimiser appended to make it visible to other code units.
pub(crate) fn demangled(symbol: &str) -> String {
    // Legacy mangling has a dot for every hyphen, also for the one of `fn() -> T`.
    format!("{:#}", rustc_demangle::demangle(plain(symbol))).replace(".>", "->")
}
