//! What of a symbol's name is the thing's own, and what the compiler made up for this build.

/// Whether the name was made by rustc from a path: legacy (`_ZN…`) or v0 (`_R…`) mangling.
pub fn is_mangled(name: &str) -> bool {
    name.starts_with("_ZN") || name.starts_with("_R")
}

/// The name without what LLVM appends to keep copies apart: `.llvm.<hash>` when a local symbol is made visible to other
/// code units, and, for names from Rust paths, `.<number>` when two modules are merged.
pub fn normalise(name: &str) -> &str {
    let mut name = name;
    loop {
        let Some((head, tail)) = name.rsplit_once('.') else { return name };
        if head.is_empty() || tail.is_empty() || !tail.bytes().all(|b| b.is_ascii_digit()) {
            return name;
        }
        name = match head.strip_suffix(".llvm") {
            Some(head) if !head.is_empty() => head,
            None if is_mangled(head) => head,
            _ => return name,
        };
    }
}

/// The numbers of the parts that the optimiser took a variable apart into, from a name such as `NAME.1.llvm.77123`.
pub fn parts(name: &str) -> impl Iterator<Item = &str> {
    let mut rest = name[normalise(name).len()..].split('.').skip(1);
    std::iter::from_fn(move || {
        let mut part = rest.next()?;
        while part == "llvm" {
            rest.next();
            part = rest.next()?;
        }
        Some(part)
    })
}

/// Whether a name of read-only data says nothing about which datum it is: constants are numbered or hashed anew in
/// each build, so their contents are their identity.
pub fn is_anonymous(name: &str, global: bool) -> bool {
    !is_mangled(name) && (!global || name.contains(".llvm."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_variables_are_told_apart() {
        let numbers = |name| parts(name).collect::<Vec<_>>();
        assert_eq!(numbers("_ZN3log6LOGGER17h0123E"), [""; 0]);
        assert_eq!(numbers("_ZN3log6LOGGER17h0123E.llvm.77123"), [""; 0]);
        assert_eq!(numbers("_ZN3log6LOGGER17h0123E.1.llvm.77123"), ["1"]);
        assert_eq!(numbers("_RNvC3log6LOGGER.llvm.5.0.2"), ["0", "2"]);
    }

    #[test]
    fn suffixes_of_a_build_are_dropped() {
        assert_eq!(normalise("_ZN3app4main17h0123E.llvm.77123"), "_ZN3app4main17h0123E");
        assert_eq!(normalise("_RNvC3app4main.12"), "_RNvC3app4main");
        assert_eq!(normalise("_RNvC3app4main.12.llvm.5"), "_RNvC3app4main");
        assert_eq!(normalise("helper.llvm.5"), "helper");
    }

    #[test]
    fn parts_of_names_are_kept() {
        for name in ["helper.isra.0", "counter.3", ".Lanon.abc.3", "_ZN1aE.cold", "main", ".llvm.5", "_RNv.x"]
        {
            assert_eq!(normalise(name), name);
        }
    }

    #[test]
    fn constants_are_anonymous_and_statics_are_not() {
        assert!(is_anonymous(".Lanon.3393.0", false));
        assert!(is_anonymous("alloc_77.llvm.9", true));
        assert!(is_anonymous("GCC_except_table9", false));
        assert!(!is_anonymous("_ZN3app5TABLE17h00E", false));
        assert!(!is_anonymous("lookup_table", true));
    }
}
