//! The demo's program: the sources of `examples/webapp`, which the tool carries with it.

use super::load::Question;
use std::fs;
use std::io;
use std::path::Path;

macro_rules! example {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../../examples/webapp/", $path)))),*]
    };
}

const FILES: &[(&str, &str)] = example![
    "Cargo.toml",
    "Cargo.lock",
    "src/main.rs",
    "src/admin.html",
    "src/admin.rs",
    "src/args.rs",
    "src/orders.rs",
    "src/stats.rs",
    "src/ticks.rs",
];

/// What the manifest loses: the library lies in the project's repository, which an installed tool does not have.
const LIBRARY: [(&str, &str); 3] = [
    ("default = [\"admin\"]\n", ""),
    ("\"dep:livepatch\"", ""),
    ("livepatch = { path = \"../../crates/livepatch\", optional = true }\n", ""),
];

/// File with the bug.
pub(crate) const FILE: &str = "src/orders.rs";
/// The faulty expression: it cuts off fractions of a cent.
pub(crate) const BUG: &str = "net * VAT / 100";
/// The same, rounding half up as tax law wants it.
pub(crate) const FIX: &str = "(net * VAT + 50) / 100";

/// An order on which old and new code differ: the tax on 4.50 is 85.5 cents.
pub(crate) fn question() -> Question {
    Question {
        path: "/order",
        json: r#"{"customer":"Ada","items":[{"name":"pen","cents":150,"quantity":2},{"name":"ink","cents":150,"quantity":1}]}"#,
        old: r#"{"customer":"Ada","net":450,"discount":0,"vat":85,"total":535}"#,
        new: r#"{"customer":"Ada","net":450,"discount":0,"vat":86,"total":536}"#,
    }
}

/// Writes the unfixed sources to `dir`.
pub(crate) fn write(dir: &Path) -> io::Result<()> {
    for (name, text) in FILES {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut text = (*text).to_owned();
        if *name == "Cargo.toml" {
            text = LIBRARY.iter().fold(text, |text, (from, to)| text.replacen(from, to, 1));
        }
        // An equal file keeps its time stamp, so that a second demo in the same folder builds nothing anew.
        if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            fs::write(path, text)?;
        }
    }
    Ok(())
}

/// Fixes the bug in the copy in `dir`.
pub(crate) fn fix(dir: &Path) -> io::Result<()> {
    let path = dir.join(FILE);
    let text = fs::read_to_string(&path)?;
    fs::write(path, text.replacen(BUG, FIX, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bug_is_there_once_and_can_be_fixed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let read = || fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(read().matches(BUG).count(), 1);
        fix(dir.path()).unwrap();
        assert_eq!((read().matches(BUG).count(), read().matches(FIX).count()), (0, 1));
    }

    #[test]
    fn the_demo_does_not_need_the_repository() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let manifest = fs::read_to_string(dir.path().join("Cargo.toml")).unwrap();
        assert!(!manifest.contains("livepatch =") && !manifest.contains("../"), "{manifest}");
        assert!(manifest.contains("admin = []"), "{manifest}");
    }

    #[test]
    fn every_source_file_of_the_example_is_carried() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/webapp/src");
        for entry in fs::read_dir(sources).unwrap() {
            let name = format!("src/{}", entry.unwrap().file_name().to_str().unwrap());
            assert!(FILES.iter().any(|(file, _)| *file == name), "{name} is missing in FILES");
        }
    }
}
