//! Answers about single functions.

use super::mentions::string_words;
use super::{ChangedItem, Side};
use std::collections::HashSet;

/// What a difference can have an effect on.
#[derive(Clone, Debug, Default)]
pub struct Tainted {
    /// Nothing is known, so everything is.
    all: bool,
    names: HashSet<String>,
    old: Vec<Lines>,
    new: Vec<Lines>,
}

/// The functions of a file.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    pub path: String,
    /// First line, last line, and whether it is tainted.
    pub items: Vec<(u32, u32, bool)>,
    /// Lines of types with derived impls of the standard library only.
    pub derived: Vec<(u32, u32)>,
    /// The answer for lines that belong to no item.
    pub rest: bool,
}

impl Tainted {
    pub(super) fn everything() -> Self {
        Self { all: true, ..Self::default() }
    }

    pub(super) fn new(names: HashSet<String>, old: Vec<Lines>, new: Vec<Lines>) -> Self {
        Self { all: false, names, old, new }
    }

    /// Whether the function declared at this place (`DW_AT_decl_file`, `DW_AT_decl_line`) changed or depends on a
    /// change: `Some(false)` only if neither. `None` for a file that is not among the sources, which is one of a
    /// registry dependency or of the standard library.
    ///
    /// `file` is absolute, or relative to the workspace or a crate of it.
    pub fn is_function_tainted(&self, file: &str, line: u32, side: Side) -> Option<bool> {
        if self.all {
            return Some(true);
        }
        let files = match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        };
        let mut found = files.iter().filter(|lines| same_file(&lines.path, file));
        let exact = files.iter().find(|lines| lines.path == file);
        let lines = match (exact, found.next(), found.next()) {
            (Some(exact), ..) => exact,
            (None, Some(only), None) => only,
            (None, Some(_), Some(_)) => return Some(true),
            (None, None, _) => return None,
        };
        Some(lines.is_tainted(line))
    }

    /// Whether a place lies in one of the changed items themselves.
    pub fn is_in_changed_item(&self, items: &[ChangedItem], file: &str, line: u32, side: Side) -> bool {
        items.iter().any(|item| {
            let span = if side == Side::Old { &item.old } else { &item.new };
            span.as_ref().is_some_and(|span| {
                (span.first_line..=span.last_line).contains(&line) && same_file(&span.file, file)
            })
        })
    }

    /// Whether a demangled symbol or type name, generic arguments included, has a path of one of these crates with a
    /// tainted name in it.
    pub fn mentions_path(&self, demangled: &str, crates: &HashSet<String>) -> bool {
        let is_path = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '{' | '}' | '#');
        self.all
            || demangled.split(|c: char| !is_path(c)).any(|path| {
                let words = string_words(path);
                words.first().is_some_and(|root| crates.contains(*root))
                    && words[1..].iter().any(|word| self.names.contains(*word))
            })
    }

    /// Every tainted name; empty if nothing changed, meaningless if everything may have.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

impl Lines {
    fn is_tainted(&self, line: u32) -> bool {
        let around = self.items.iter().filter(|(first, last, _)| (*first..=*last).contains(&line));
        match around.min_by_key(|(first, last, _)| last - first) {
            Some((_, _, tainted)) => *tainted,
            None if self.derived.iter().any(|(first, last)| (*first..=*last).contains(&line)) => false,
            None => self.rest,
        }
    }
}

/// Whether one path is the end of the other, component by component. A place in a registry, a git checkout or the
/// standard library is never one of ours.
fn same_file(ours: &str, theirs: &str) -> bool {
    let ours = ours.strip_prefix(super::record::TARGET).unwrap_or(ours);
    let foreign = ["/registry/src/", "/git/checkouts/", "/rustc/", "/rustlib/src/"];
    if foreign.iter().any(|part| theirs.contains(part) && !ours.contains(part)) {
        return false;
    }
    let parts = |path: &'_ str| -> Vec<String> {
        path.split('/').filter(|part| !part.is_empty() && *part != ".").rev().map(str::to_owned).collect()
    };
    let (ours, theirs) = (parts(ours), parts(theirs));
    !ours.is_empty() && !theirs.is_empty() && ours.iter().zip(&theirs).all(|(a, b)| a == b)
}
