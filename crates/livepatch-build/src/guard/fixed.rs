//! Names that only the compiler's own libraries have a say in.
//!
//! Both builds take these libraries from one toolchain, which is a precondition of comparing builds at all. So an item
//! whose name mentions nothing else means the same in both, also where one of them does not show it.

use std::collections::BTreeSet;

/// The standard library and what rustc adds to every program.
pub(super) const CRATES: [&str; 6] =
    ["core", "alloc", "std", "panic_unwind", "panic_abort", "compiler_builtins"];

/// Words of a type's name that are no path.
const WORDS: [&str; 29] = [
    "bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128",
    "isize", "f16", "f32", "f64", "f128", "as", "dyn", "fn", "mut", "const", "impl", "extern", "unsafe",
    "for", "_",
];

/// Whether a path, or the type that it begins with, is one of the standard library's.
pub fn of_standard_library(path: &str) -> bool {
    let path = path.trim_start_matches(['<', '&']);
    CRATES.iter().any(|krate| own_path(path, krate))
}

/// Whether a path is one of the standard library or of these crates.
pub fn is_of_others(path: &str, unchanged: &BTreeSet<String>) -> bool {
    of_standard_library(path) || path.split("::").next().is_some_and(|krate| unchanged.contains(krate))
}

/// Whether every path in a name begins in one of [`CRATES`]. A generic parameter that is not spelled out (legacy symbols
/// have `Vec<T>`) may stand for anything.
pub(super) fn is_fixed(name: &str) -> bool {
    is_fixed_with(name, &BTreeSet::new())
}

/// The same with these crates: dependencies that both builds have in the same version. A dependency has no say in the program's own items,
/// so what it says of its own and the libraries' is the same in both.
pub(crate) fn is_fixed_with(name: &str, unchanged: &BTreeSet<String>) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = name;
    while let Some(start) = rest.find(is_word) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|c| !is_word(c)).unwrap_or(from.len()));
        let continues = before.trim_end_matches('{').ends_with("::");
        if !(continues || begins(word, after, unchanged)) {
            return false;
        }
        rest = after;
    }
    true
}

/// Whether the type of this name is declared by the library or built into the language, whatever it is made of.
pub(super) fn is_library(name: &str) -> bool {
    name.starts_with(['(', '[', '&', '*']) || CRATES.iter().any(|own| own_path(name, own))
}

fn own_path(name: &str, krate: &str) -> bool {
    name.strip_prefix(krate).is_some_and(|rest| rest.starts_with("::"))
}

/// Whether a word that no `::` stands before is known: a crate, a word of the language, a number, an associated type.
fn begins(word: &str, after: &str, unchanged: &BTreeSet<String>) -> bool {
    match after.strip_prefix("::") {
        Some(_) => CRATES.contains(&word) || unchanged.contains(word),
        None => WORDS.contains(&word) || after.starts_with('=') || word.bytes().all(|b| b.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use super::is_fixed;

    #[test]
    fn names_of_the_standard_library() {
        for fixed in [
            "<std::io::default_write_fmt::Adapter<std::sys::stdio::unix::Stderr> as core::fmt::Write>",
            "<(u8, &[alloc::string::String; 3]) as core::fmt::Debug>",
            "<core::iter::once::{closure_env#0}<fn(&str) -> bool> as core::ops::FnOnce<()>>",
            "<alloc::boxed::Box<dyn core::iter::Iterator<Item=u8>> as _>",
            "core::str::<impl str>::trim",
            "core::ptr::drop_in_place<core::fmt::{{closure}}>",
        ] {
            assert!(is_fixed(fixed), "{fixed}");
        }
        for open in [
            "<std::io::default_write_fmt::Adapter<app::Sink> as core::fmt::Write>",
            "<alloc::string::String as app::Shape>",
            "<(u8, app::core::X) as core::fmt::Debug>",
            "<std::thread::spawn::{closure_env#1}<app::main::{closure_env#0}, ()> as core::ops::FnOnce<()>>",
            "<alloc::vec::Vec<T> as core::fmt::Debug>::fmt",
            "hashbrown::map::HashMap<u8, u8>",
            "app",
        ] {
            assert!(!is_fixed(open), "{open}");
        }
    }
}
