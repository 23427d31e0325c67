//! A case: one marked text that holds the old and the new source.
//!
//! A line that ends in `//-` belongs to the old source only, one that ends in `//+` to the new source only; both lose
//! the marker. (`#-` and `#+` do the same in TOML files.) Lines that start with `//@` are directives:
//!
//! | directive | meaning |
//! |---|---|
//! | `expect: patched` | a patch is made; old, new and again old lines |
//! | `expect: nothing` | `create` ends with 3 |
//! | `expect: refused [LP0001]` | `create` ends with 4 (and this finding) |
//! | `expect: patched or refused` | right lines or exit 4, but nothing else |
//! | `expect: busy` | `create` makes a patch, `apply` ends with 5, and the old lines go on |
//! | `profiles: release dev` | the ways to build it; `release` if not given |
//! | `old: TEXT`, `new: TEXT` | a line that a round prints; `{n}` is the number of the round, `{m}` the number of the round since the patch |
//! | `functions: PATH, PATH` | exactly these functions are in the patch |
//! | `notes: CODE ITEM, CODE ITEM` | exactly these notes are made, and `inspect`, `check` and `apply` show them (but LP0110) |
//! | `only: initialisers` | all that changes only computes values that are kept, and the tools say so |
//! | `apply: ARGS` | further arguments of `livepatch apply` |
//!
//! A case is a file `NAME.rs`, or a folder with a `case.txt` for the directives.

use crate::profile::Profile;
use crate::{Failed, fail};
use std::fs;
use std::path::{Path, PathBuf};

/// What has to come of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Old lines, new lines, old lines.
    Patched,
    /// Nothing to patch.
    Nothing,
    /// Refused, with this finding if it is given.
    Refused(Option<String>),
    /// Patched or refused: stricter than necessary is right, wrong lines are not.
    PatchedOrRefused,
    /// A patch is made but cannot be applied at this time.
    Busy,
}

/// Which of the two sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Before the change.
    Old,
    /// After the change.
    New,
}

/// A parsed case.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Name of the file or folder without extension.
    pub name: String,
    /// What has to come of it.
    pub expect: Expect,
    /// How it is built.
    pub profiles: Vec<Profile>,
    /// Lines of a round of the old source.
    pub old: Vec<String>,
    /// Lines of a round of the new source.
    pub new: Vec<String>,
    /// The functions of the patch, if the case says so.
    pub functions: Option<Vec<String>>,
    /// Codes and items of its notes, if the case says so.
    pub notes: Option<Vec<String>>,
    /// Whether only initialisers change.
    pub only_initialises: bool,
    /// Further arguments of `livepatch apply`.
    pub apply: Vec<String>,
    /// Path inside the project and marked text.
    files: Vec<(PathBuf, String)>,
}

impl Fixture {
    /// Reads `NAME.rs` or the folder `NAME`.
    ///
    /// # Errors
    /// If a file cannot be read or a directive is unknown.
    pub fn read(path: &Path) -> Result<Self, Failed> {
        let name = path.file_stem().and_then(|name| name.to_str()).ok_or("a fixture without a name")?;
        let (directives, files) = if path.is_dir() {
            let mut files = Vec::new();
            collect(path, path, &mut files)?;
            (fs::read_to_string(path.join("case.txt"))?, files)
        } else {
            let text = fs::read_to_string(path)?;
            (text.clone(), vec![(PathBuf::from("src/main.rs"), text)])
        };
        Self::parse(name, &directives, files).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    /// A case from a text in the test itself.
    ///
    /// # Errors
    /// If a directive is unknown.
    pub fn inline(name: &str, text: &str) -> Result<Self, Failed> {
        Self::parse(name, text, vec![(PathBuf::from("src/main.rs"), text.to_owned())])
    }

    fn parse(name: &str, directives: &str, files: Vec<(PathBuf, String)>) -> Result<Self, Failed> {
        let mut fixture = Self {
            name: name.to_owned(),
            expect: Expect::Patched,
            profiles: vec![Profile::Release],
            old: Vec::new(),
            new: Vec::new(),
            functions: None,
            notes: None,
            only_initialises: false,
            apply: Vec::new(),
            files,
        };
        for line in directives.lines().filter_map(|line| line.strip_prefix("//@")) {
            let (key, value) =
                line.split_once(':').ok_or_else(|| format!("directive `{line}` has no colon"))?;
            fixture.directive(key.trim(), value.trim())?;
        }
        Ok(fixture)
    }

    fn directive(&mut self, key: &str, value: &str) -> Result<(), Failed> {
        match key {
            "expect" => self.expect = expect(value)?,
            "profiles" => {
                self.profiles = value.split_whitespace().map(str::parse).collect::<Result<_, _>>()?
            }
            "old" => self.old.push(value.to_owned()),
            "new" => self.new.push(value.to_owned()),
            "functions" => self.functions = Some(sorted(value)),
            "notes" => self.notes = Some(sorted(value)),
            "only" if value == "initialisers" => self.only_initialises = true,
            "apply" => self.apply = value.split_whitespace().map(str::to_owned).collect(),
            _ => return fail(format!("unknown directive `{key}`")),
        }
        Ok(())
    }

    /// The files of one side: path inside the project and text.
    pub fn sources(&self, side: Side) -> impl Iterator<Item = (&Path, String)> {
        self.files.iter().map(move |(path, text)| (path.as_path(), select(text, side)))
    }

    /// Whether the case brings its own manifest.
    pub fn has_manifest(&self) -> bool {
        self.files.iter().any(|(path, _)| path == Path::new("Cargo.toml"))
    }
}

/// The elements of a list.
fn sorted(value: &str) -> Vec<String> {
    let mut list: Vec<String> = value.split(", ").map(|element| element.trim().to_owned()).collect();
    list.sort();
    list
}

fn expect(value: &str) -> Result<Expect, Failed> {
    Ok(match value {
        "patched" => Expect::Patched,
        "nothing" => Expect::Nothing,
        "patched or refused" => Expect::PatchedOrRefused,
        "busy" => Expect::Busy,
        "refused" => Expect::Refused(None),
        _ => match value.strip_prefix("refused ") {
            Some(code) if code.starts_with("LP") => Expect::Refused(Some(code.to_owned())),
            _ => return fail(format!("unknown expectation `{value}`")),
        },
    })
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<(PathBuf, String)>) -> Result<(), Failed> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else if path.file_name().is_some_and(|name| name != "case.txt") {
            files.push((path.strip_prefix(root)?.to_owned(), fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

/// The text of one side: without the other side's lines, without markers.
fn select(text: &str, side: Side) -> String {
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with("//@")) {
        let marked = |suffixes: [&str; 2]| suffixes.iter().find_map(|suffix| line.strip_suffix(suffix));
        let kept = match (marked(["//-", "#-"]), marked(["//+", "#+"])) {
            (Some(old), _) if side == Side::Old => old.trim_end(),
            (_, Some(new)) if side == Side::New => new.trim_end(),
            (None, None) => line,
            _ => continue,
        };
        out.push_str(kept);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_select_lines() {
        let text = "//@ expect: patched\nfn f() {\n    1 //-\n    2 //+\n}\n";
        assert_eq!(select(text, Side::Old), "fn f() {\n    1\n}\n");
        assert_eq!(select(text, Side::New), "fn f() {\n    2\n}\n");
    }

    #[test]
    fn directives_are_read_and_unknown_ones_are_errors() {
        let read = |text: &str| Fixture::parse("x", text, Vec::new());
        let fixture = read("//@ expect: refused LP0001\n//@ profiles: dev v0\n//@ old: a: b\n").unwrap();
        assert_eq!(fixture.expect, Expect::Refused(Some("LP0001".into())));
        assert_eq!(fixture.profiles, [Profile::Dev, Profile::V0]);
        assert_eq!(fixture.old, ["a: b"]);
        for wrong in ["//@ expect: perhaps", "//@ colour: red", "//@ profiles: fast", "//@ expect"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
