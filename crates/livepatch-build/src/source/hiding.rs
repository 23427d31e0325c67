//! Changes that raw code may not show.
//!
//! On x86-64 some things steer the optimiser without a trace in the machine code of the function that says them: how a
//! memory access is ordered or that it is volatile, promises about values. Where any of that changed, raw code is no
//! witness.

use super::SourceSet;
use super::macros::Packages;
use super::tokens::{Token, flatten};
use proc_macro2::TokenStream;

const WORDS: &[&str] = &[
    "Relaxed",
    "Acquire",
    "Release",
    "AcqRel",
    "SeqCst",
    "black_box",
    "asm",
    "global_asm",
    "naked_asm",
    "UnsafeCell",
    "SyncUnsafeCell",
    "PhantomPinned",
    "addr_of",
    "addr_of_mut",
    "raw",
    "assume",
    "NonNull",
];
const PARTS: &[&str] = &["unchecked", "volatile", "fence", "unaligned"];

/// Whether the difference between two sets of sources may be such a change.
pub(super) fn hides(old: &SourceSet, new: &SourceSet) -> bool {
    let macros: Vec<&str> =
        old.files.iter().chain(&new.files).filter(|f| has_macros(&f.bytes)).map(|f| &*f.path).collect();
    let packages = Packages::of(new);
    let changed = |one: &SourceSet, other: &SourceSet| -> Option<Vec<String>> {
        let mut words = Vec::new();
        for file in one.files.iter().filter(|file| file.is_rust()) {
            let at = other.files.binary_search_by(|other| other.path.cmp(&file.path));
            if at.is_ok_and(|at| other.files[at].bytes == file.bytes) {
                continue;
            }
            if !macros.is_empty() && packages.may_be_in_macro(&file.path, &macros) {
                return None;
            }
            words.extend(telling(&tokens(&file.bytes)?));
        }
        Some(words)
    };
    match (changed(old, new), changed(new, old)) {
        (Some(was), Some(is)) => was != is,
        _ => true,
    }
}

fn has_macros(bytes: &[u8]) -> bool {
    let name: &[u8] = b"proc_macro";
    bytes.windows(name.len()).any(|window| window == name)
}

fn tokens(bytes: &[u8]) -> Option<Vec<Token>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let tokens = text.parse::<TokenStream>().ok().map(flatten);
    proc_macro2::extra::invalidate_current_thread_spans();
    tokens
}

fn telling(tokens: &[Token]) -> Vec<String> {
    let names = tokens.iter().filter(|token| token.is_ident()).map(Token::name);
    let telling = names.filter(|name| WORDS.contains(name) || PARTS.iter().any(|part| name.contains(part)));
    telling.map(str::to_owned).collect()
}
