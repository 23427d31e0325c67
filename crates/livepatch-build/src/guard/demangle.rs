//! Source paths from symbols.

use crate::diff::names::normalise;
use rustc_demangle::try_demangle;

/// The path that a symbol stands for, without hash: legacy and v0 mangling; other symbols come back as they are, less
/// the suffixes that LLVM adds.
pub fn demangle(symbol: &str) -> String {
    let symbol = strip_suffix(symbol);
    match try_demangle(symbol) {
        // Legacy mangling has a dot for every hyphen, also for the one of `fn() -> T`.
        Ok(name) => format!("{name:#}").replace(".>", "->"),
        Err(_) => symbol.to_owned(),
    }
}

/// Whether `symbol` is Rust's own (either mangling), as opposed to C's or an exported name.
pub fn is_rust(symbol: &str) -> bool {
    try_demangle(strip_suffix(symbol)).is_ok()
}

/// The symbol without what the optimiser appends to names that it moves between units (`.llvm.<number>`), and to the
/// copies that meet when it merges units (`.<number>`).
pub fn strip_suffix(symbol: &str) -> &str {
    match symbol.split_once(".llvm.") {
        Some((name, number)) if number.bytes().all(|b| b.is_ascii_hexdigit() || b == b'@') => normalise(name),
        _ => normalise(symbol),
    }
}

/// What all copies of one function have in common: the symbol without the optimiser's suffixes and, in v0 mangling,
/// without the crate at its end that made this copy of a generic function. A legacy symbol hides that crate in its hash.
pub fn identity(symbol: &str) -> &str {
    let symbol = strip_suffix(symbol);
    without_instantiating_crate(symbol).unwrap_or(symbol)
}

/// The crate stands behind a whole path, spelled out (`Cs…`) or as a reference to where it was spelled out (`B…_`).
fn without_instantiating_crate(symbol: &str) -> Option<&str> {
    let is_reference = |tail: &str| {
        tail.strip_prefix('B')
            .and_then(|rest| rest.strip_suffix('_'))
            .is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    let starts = symbol.strip_prefix("_R")?.char_indices().rev();
    let mut paths = starts.filter_map(|(at, _)| {
        let (path, tail) = symbol.split_at("_R".len() + at);
        (tail.starts_with("Cs") || is_reference(tail)).then_some(path)
    });
    // A cut inside of the path leaves something that is none.
    paths.find(|path| try_demangle(path).is_ok())
}

/// The first crate named by a symbol: where its item is defined, or for an impl the crate of the type.
pub fn crate_of(symbol: &str) -> Option<String> {
    let path = demangle(symbol);
    let start = path.trim_start_matches(['<', '&', '*', '(', '[']);
    let start = start.strip_prefix("mut ").or(start.strip_prefix("const ")).unwrap_or(start);
    let end = start.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(start.len());
    (is_rust(symbol) && end > 0).then(|| start[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_manglings_lose_their_hash() {
        assert_eq!(demangle("_ZN1a3ign17h363f8709f932b15eE"), "a::ign");
        assert_eq!(demangle("_ZN1a3ign17h363f8709f932b15eE.llvm.7039705965455570851"), "a::ign");
        assert_eq!(demangle("_RNvMs9_NtCsgEmfK2I1SDS_4core3numj11checked_add"), "<usize>::checked_add");
        assert_eq!(
            demangle("_ZN34_$LT$a..Sq$u20$as$u20$a..Shape$GT$4area17h06fc3cf0f7dd8079E"),
            "<a::Sq as a::Shape>::area"
        );
        assert_eq!(
            demangle("_ZN55_$LT$fn$LP$u8$RP$$u20$.$GT$$u20$u8$u20$as$u20$a..Tr$GT$1m17h06fc3cf0f7dd8079E"),
            "<fn(u8) -> u8 as a::Tr>::m"
        );
        assert_eq!(demangle("memcpy"), "memcpy");
    }

    #[test]
    fn copies_of_a_function_have_one_identity() {
        let generic = "_RINvMNtCsgEmfK2I1SDS_4core6optionINtB3_6OptionyE3mapyNCNvCs1234_3app4main0E";
        let copy = format!("{generic}Cs1234_3app");
        assert_eq!(identity(&copy), generic);
        assert_eq!(identity(&format!("{copy}.690")), generic);
        assert_eq!(identity(&format!("{generic}BY_")), generic);
        assert_eq!(identity(generic), generic);
        // Without generic arguments nothing is instantiated elsewhere, and nothing is cut off.
        for whole in ["_RNvCs1234_3app4main", "_ZN1a3ign17h363f8709f932b15eE", "memcpy"] {
            assert_eq!(identity(whole), whole);
        }
        assert_eq!(strip_suffix("_ZN1a3ign17h363f8709f932b15eE.690"), "_ZN1a3ign17h363f8709f932b15eE");
    }

    #[test]
    fn the_crate_is_the_first_name() {
        let crate_of = |s| crate_of(s);
        assert_eq!(crate_of("_ZN1a3ign17h363f8709f932b15eE").as_deref(), Some("a"));
        assert_eq!(
            crate_of("_ZN34_$LT$a..Sq$u20$as$u20$a..Shape$GT$4area17h06fc3cf0f7dd8079E").as_deref(),
            Some("a")
        );
        assert_eq!(crate_of("_RNvNtNtCsjrHSEGnQ3l9_3std2io5stdio6STDOUT").as_deref(), Some("std"));
        assert_eq!(crate_of("memcpy"), None);
    }
}
