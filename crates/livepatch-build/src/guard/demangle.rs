//! Source paths from symbols.

use rustc_demangle::try_demangle;

/// The path that a symbol stands for, without hash: legacy and v0 mangling; other symbols come back as they are, less
/// the suffixes that LLVM adds.
pub fn demangle(symbol: &str) -> String {
    let symbol = strip_suffix(symbol);
    match try_demangle(symbol) {
        Ok(name) => format!("{name:#}"),
        Err(_) => symbol.to_owned(),
    }
}

/// Whether `symbol` is Rust's own (either mangling), as opposed to C's or an exported name.
pub fn is_rust(symbol: &str) -> bool {
    try_demangle(strip_suffix(symbol)).is_ok()
}

/// The symbol without what the optimiser appends to names that it moves between units: `.llvm.<number>`.
pub fn strip_suffix(symbol: &str) -> &str {
    match symbol.split_once(".llvm.") {
        Some((name, number)) if number.bytes().all(|b| b.is_ascii_hexdigit() || b == b'@') => name,
        _ => symbol,
    }
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
        assert_eq!(demangle("memcpy"), "memcpy");
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
