//! Answers about single functions.

use super::mentions::{Expected, string_words};
use super::{ChangedItem, Side};
use std::collections::{BTreeSet, HashMap, HashSet};

/// What a difference can have an effect on.
#[derive(Clone, Debug, Default)]
pub struct Tainted {
    /// Nothing is known, so everything is.
    all: bool,
    names: HashSet<String>,
    by: Tainters,
    old: Vec<Lines>,
    new: Vec<Lines>,
}

/// What tainted names are tainted by.
#[derive(Clone, Debug, Default)]
pub(super) struct Tainters {
    /// By name, others of them.
    pub names: HashMap<String, BTreeSet<String>>,
    /// Those that may mention any of them.
    pub wild: HashSet<String>,
}

/// The lines of an item.
#[derive(Clone, Debug)]
pub(super) struct ItemLines {
    pub first: u32,
    pub last: u32,
    pub tainted: bool,
    /// How often its machine code has to refer to each tainted name; `None` if that is not known.
    pub expected: Option<Expected>,
}

/// The functions of a file.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    pub path: String,
    pub items: Vec<ItemLines>,
    /// Lines of types with derived impls of the standard library only.
    pub derived: Vec<(u32, u32)>,
    /// The answer for lines that belong to no item.
    pub rest: bool,
}

impl Tainted {
    pub(super) fn everything() -> Self {
        Self { all: true, ..Self::default() }
    }

    pub(super) fn new(names: HashSet<String>, by: Tainters, old: Vec<Lines>, new: Vec<Lines>) -> Self {
        Self { all: false, names, by, old, new }
    }

    /// The tainted names that a name is tainted by, through any number of others.
    pub fn behind<'t>(&'t self, name: &'t str) -> BTreeSet<&'t str> {
        let (mut found, mut work) = (BTreeSet::new(), vec![name]);
        while let Some(name) = work.pop() {
            let all = self.names.iter().filter(|_| self.by.wild.contains(name));
            let by = self.by.names.get(name).into_iter().flatten().chain(all).map(String::as_str);
            work.extend(by.filter(|by| found.insert(*by)));
        }
        found
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
        match self.lines_of(file, side) {
            Found::One(lines) => Some(lines.is_tainted(line)),
            Found::Several => Some(true),
            Found::None => None,
        }
    }

    /// How often the machine code of the item around this place refers to each tainted name, if nothing that it mentions was
    /// computed away: the same answer, at the same address, for all places in one item. `None` if that is not known.
    pub fn expected_references(&self, file: &str, line: u32, side: Side) -> Option<&Expected> {
        match self.lines_of(file, side) {
            Found::One(lines) if !self.all => lines.item_at(line)?.expected.as_ref(),
            _ => None,
        }
    }

    fn lines_of(&self, file: &str, side: Side) -> Found<'_> {
        let files = match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        };
        let mut found = files.iter().filter(|lines| same_file(&lines.path, file));
        let exact = files.iter().find(|lines| lines.path == file);
        match (exact, found.next(), found.next()) {
            (Some(exact), ..) => Found::One(exact),
            (None, Some(only), None) => Found::One(only),
            (None, Some(_), Some(_)) => Found::Several,
            (None, None, _) => Found::None,
        }
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

/// Which sources a path of the debug information means.
enum Found<'t> {
    One(&'t Lines),
    Several,
    None,
}

impl Lines {
    fn item_at(&self, line: u32) -> Option<&ItemLines> {
        let around = self.items.iter().filter(|item| (item.first..=item.last).contains(&line));
        around.min_by_key(|item| item.last - item.first)
    }

    fn is_tainted(&self, line: u32) -> bool {
        match self.item_at(line) {
            Some(item) => item.tainted,
            None if self.derived.iter().any(|(first, last)| (*first..=*last).contains(&line)) => false,
            None => self.rest,
        }
    }
}

/// Parts of the paths of what is nobody's to change: sources of a registry, a git checkout, the standard library.
const FOREIGN: &[&str] = &["/registry/src/", "/git/checkouts/", "/rustc/", "/rustlib/src/"];

/// Whether a path of debug information is one of these.
pub(crate) fn is_foreign(path: &str) -> bool {
    FOREIGN.iter().any(|part| path.contains(part))
}

/// Whether one path is the end of the other, component by component. A place in a registry, a git checkout or the
/// standard library is never one of ours.
pub(crate) fn same_file(ours: &str, theirs: &str) -> bool {
    let ours = ours.strip_prefix(super::record::TARGET).unwrap_or(ours);
    if FOREIGN.iter().any(|part| theirs.contains(part) && !ours.contains(part)) {
        return false;
    }
    let parts = |path: &'_ str| -> Vec<String> {
        path.split('/').filter(|part| !part.is_empty() && *part != ".").rev().map(str::to_owned).collect()
    };
    let (ours, theirs) = (parts(ours), parts(theirs));
    !ours.is_empty() && !theirs.is_empty() && ours.iter().zip(&theirs).all(|(a, b)| a == b)
}
