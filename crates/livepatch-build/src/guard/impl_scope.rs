//! The scope of an impl, which v0 symbols have and their demangled form lacks.
//!
//! Grammar: RFC 2603, "Rust Symbol Name Mangling v0". `M` and `X` begin an impl path: optional disambiguator, the path of the
//! scope, then the type (and trait).

use super::demangle::strip_suffix;

/// Path of the module (or function) that the impl around a function is written in.
pub fn impl_scope(symbol: &str) -> Option<String> {
    let text = strip_suffix(symbol).strip_prefix("_R")?;
    let mut reader = Reader { text: text.as_bytes(), at: 0 };
    reader.find_impl(DEEPEST)?;
    reader.disambiguator();
    let mut names = Vec::new();
    reader.path(&mut names, DEEPEST)?;
    Some(names.join("::"))
}

const DEEPEST: usize = 64;

struct Reader<'t> {
    text: &'t [u8],
    at: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = *self.text.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// Moves behind the tag of the impl that the outermost path is in.
    fn find_impl(&mut self, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match self.next()? {
            b'M' | b'X' => Some(()),
            b'N' => {
                self.next()?;
                self.find_impl(depth)
            }
            b'I' => self.find_impl(depth),
            b'B' => {
                self.at = self.number()?;
                self.find_impl(depth)
            }
            _ => None,
        }
    }

    /// Names of a path of crates, modules and functions; what has no name in the source is left out.
    fn path(&mut self, names: &mut Vec<String>, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match self.next()? {
            b'C' => names.push(self.identifier()?),
            b'N' => {
                let namespace = self.next()?;
                self.path(names, depth)?;
                let name = self.identifier()?;
                if namespace.is_ascii_lowercase() {
                    names.push(name);
                }
            }
            b'B' => {
                let target = self.number()?;
                let back = std::mem::replace(&mut self.at, target);
                self.path(names, depth)?;
                self.at = back;
            }
            _ => return None,
        }
        Some(())
    }

    fn disambiguator(&mut self) {
        if self.text.get(self.at) == Some(&b's') {
            self.at += 1;
            self.number();
        }
    }

    /// A number to the base 62 that ends with `_`.
    fn number(&mut self) -> Option<usize> {
        let mut value = 0usize;
        if self.text.get(self.at) == Some(&b'_') {
            self.at += 1;
            return Some(0);
        }
        loop {
            let digit = match self.next()? {
                b'_' => return value.checked_add(1),
                c @ b'0'..=b'9' => c - b'0',
                c @ b'a'..=b'z' => c - b'a' + 10,
                c @ b'A'..=b'Z' => c - b'A' + 36,
                _ => return None,
            };
            value = value.checked_mul(62)?.checked_add(digit.into())?;
        }
    }

    /// A name; one with characters outside of ASCII comes back as it is encoded.
    fn identifier(&mut self) -> Option<String> {
        self.disambiguator();
        if self.text.get(self.at) == Some(&b'u') {
            self.at += 1;
        }
        let start = self.at;
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        let length: usize = std::str::from_utf8(&self.text[start..self.at]).ok()?.parse().ok()?;
        if self.text.get(self.at) == Some(&b'_') {
            self.at += 1;
        }
        let name = self.text.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        String::from_utf8(name.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::impl_scope;

    #[test]
    fn scopes_of_impls() {
        let scope = |symbol| impl_scope(symbol);
        // core::num, where `impl u32` is
        assert_eq!(scope("_RNvMs9_NtCsgEmfK2I1SDS_4core3numj11checked_add").as_deref(), Some("core::num"));
        // std::io::stdio::STDOUT: no impl
        assert_eq!(scope("_RNvNtNtCsjrHSEGnQ3l9_3std2io5stdio6STDOUT"), None);
        // a closure in a method, the impl in a module that a back reference names
        assert_eq!(scope("_RNCNvMNtCs1_1a1bNtB4_1T1m0B4_").as_deref(), Some("a::b"));
        for other in ["_ZN1a3ign17h363f8709f932b15eE", "memcpy", "_R", "_RNv", "_RB_", "_RNvMs"] {
            assert_eq!(scope(other), None, "{other}");
        }
    }
}
