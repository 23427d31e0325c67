//! What changed in the source, and which functions that can have an effect on.
//!
//! rustc spreads a crate over code units by size, so one more statement can move functions to another unit, where other
//! callees are inlined into them: other machine code, same meaning. The source tells such functions from changed ones.
//!
//! Mechanism, in three steps:
//!
//! 1. Every file of both builds is parsed (`items`). What is left of a file without the bodies of functions and the
//!    values of constants and statics is its *frame*: types, traits, impl headers, attributes, imports, macros,
//!    signatures. A changed frame can change anything, and the answer is [`Change::Everything`], unless all that
//!    changed is that items were added which nobody meets without naming them (`additions`).
//! 2. With equal frames, bodies and values are compared one by one (`compare`).
//! 3. From the changed names on, everything that mentions a name of the set joins it (`mentions`), until nothing
//!    more joins. A function outside of it means in the new program what it meant in the old one, callees of changed
//!    meaning excepted, which it reaches by call.
//!
//! Names are compared without resolving them, so one name stands for all items called so: the set is too large, never
//! too small. Where a name is not needed to reach code (operators, `Drop`, `Display` and every other trait that is
//! not defined in the compared sources), where macros make names, and in any other doubt the answer is everything.
//!
//! Known imperfection: a procedural macro of a dependency that reads files or services which it does not tell cargo about can
//! expand to other code from equal source.

mod additions;
mod anonymous;
mod awaits;
mod bodies;
mod closures;
mod compare;
mod hiding;
mod items;
mod layouts;
mod lookup;
mod macros;
mod mentions;
mod parts;
mod pieces;
pub(crate) mod record;
mod set;
mod tokens;

#[cfg(test)]
mod additions_tests;
#[cfg(test)]
mod tests;

use crate::build::Build;
use crate::error::Result;
use crate::findings::Place;
use crate::timing::timed;
use hiding::Hiding;
pub(crate) use hiding::Suspect;
pub use layouts::ChangedType;

pub use anonymous::{Anonymous, Counted};
pub use bodies::Body;
pub use lookup::Tainted;
pub(crate) use lookup::{is_foreign, same_file};
pub use mentions::Expected;
pub use set::{SourceFile, SourceSet};

/// What differs between the sources of two builds.
#[derive(Clone, Debug)]
pub struct SourceDiff {
    change: Change,
    tainted: Tainted,
    /// Where it is known which items changed, but not what that reaches: the items, and what mentions them.
    direct: Option<(Vec<ChangedItem>, Tainted)>,
    /// Where raw code may not show all of it.
    hides: Hiding,
    /// Types that are declared otherwise.
    types: Vec<ChangedType>,
    /// Functions and values in changed files, if these could be read.
    bodies: Option<Vec<Body>>,
}

/// The kind and extent of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Comments, white space and lines at most.
    Nothing,
    /// Any function may mean something else.
    Everything {
        /// What was found, where.
        reason: String,
    },
    /// These items, and nothing else in the sources. Never empty.
    Items(Vec<ChangedItem>),
}

/// A function whose body, or a constant or static whose value, is another, or an item that is there on one side only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedItem {
    /// Its identifier.
    pub name: String,
    /// Module path within the file, type or impl, and name: for messages.
    pub path: String,
    /// What it is.
    pub kind: ItemKind,
    /// Whether it is written in the body of a function.
    pub local: bool,
    /// Where the old source has it.
    pub old: Option<Span>,
    /// Where the new source has it.
    pub new: Option<Span>,
    /// The closure that all of the difference lies in, in the old and in the new source.
    pub within: Option<(Span, Span)>,
    /// Whether items in its body may have other numbers: the text that differs has items or macro calls.
    pub renumbers: bool,
}

/// Kinds of items that can change by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ItemKind {
    /// A function or method; closures and `async` blocks belong to the function that they stand in.
    Fn,
    /// A constant.
    Const,
    /// A static.
    Static,
    /// An added struct, enum, union or type alias.
    Type,
    /// An added trait.
    Trait,
    /// An added impl, of an added trait or for an added type.
    Impl,
    /// An added import.
    Use,
}

/// Lines of a file, attributes and documentation of the item included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Path as the source set has it.
    pub file: String,
    /// First line, from 1.
    pub first_line: u32,
    /// Last line.
    pub last_line: u32,
}

/// Which of the two builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The baseline.
    Old,
    /// The rebuild.
    New,
}

impl SourceDiff {
    /// Compares the sources of two builds.
    pub fn between(old: &SourceSet, new: &SourceSet) -> Self {
        let diff = compare::between(old, new).unwrap_or_else(|doubt| Self::everything(doubt.0));
        Self {
            hides: hiding::between(old, new),
            types: layouts::between(old, new),
            bodies: bodies::between(old, new),
            ..diff
        }
    }

    /// Compares the sources that two builds were made from.
    ///
    /// # Errors
    /// Recorded contents cannot be read.
    pub fn of_builds(old: &Build, new: &Build) -> Result<Self> {
        Ok(match (SourceSet::of_build(old)?, SourceSet::of_build(new)?) {
            (Some(old), Some(new)) => timed("sources", || Self::between(&old, &new)),
            (None, _) => Self::everything("the baseline has no record of its sources"),
            (_, None) => Self::everything("the sources of the rebuild are not known for sure"),
        })
    }

    /// The answer where sources are not known.
    pub fn everything(reason: impl Into<String>) -> Self {
        let change = Change::Everything { reason: reason.into() };
        Self {
            change,
            tainted: Tainted::everything(),
            direct: None,
            hides: Hiding::Anywhere,
            types: Vec::new(),
            bodies: None,
        }
    }

    /// Whether items in the body of some function may have other numbers among those of their name.
    pub(crate) fn may_renumber(&self) -> bool {
        self.may_have(|item| item.renumbers)
    }

    /// Whether one of the items whose text changed may be such a one. What else that reaches has the text that it had.
    fn may_have(&self, wanted: impl Fn(&ChangedItem) -> bool) -> bool {
        match self.items() {
            Some((items, _)) => items.iter().any(wanted),
            None => self.change != Change::Nothing,
        }
    }

    /// Whether that may be so of what has this path: it lies in a function whose body may have renumbered its items.
    pub(crate) fn may_renumber_in(&self, path: &str) -> bool {
        self.may_lie_in(path, |item| item.renumbers)
    }

    /// Whether what has this path may lie in an item that changed.
    pub(crate) fn may_have_changed_in(&self, path: &str) -> bool {
        self.may_lie_in(path, |_| true)
    }

    fn may_lie_in(&self, path: &str, wanted: impl Fn(&ChangedItem) -> bool) -> bool {
        let words: Vec<&str> = path.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
        self.may_have(|item| wanted(item) && words.contains(&&*item.name))
    }

    /// Whether there may be a change that raw code does not show, see `hiding.rs`; `shows` tells whether it shows a change of this function
    /// itself, or of a closure in it.
    pub(crate) fn hides(&self, shows: impl Fn(&Suspect) -> bool) -> bool {
        match &self.hides {
            Hiding::Nowhere => false,
            Hiding::Functions(suspects) => !suspects.iter().all(|suspect| suspect.is_shown(&shows)),
            Hiding::Anywhere => true,
        }
    }

    /// Whether a place lies in the text that changed: a changed item, or a closure in it if nothing else of it changed.
    pub(crate) fn is_in_changed_text(&self, place: &Place, side: Side) -> bool {
        let Some((items, tainted)) = self.items() else { return false };
        items.iter().any(|item| {
            let narrow = item.within.as_ref().map(|(old, new)| if side == Side::Old { old } else { new });
            let inside = |span: &Span| (span.first_line..=span.last_line).contains(&place.line);
            tainted.is_in_changed_item(std::slice::from_ref(item), &place.file, place.line, side)
                && narrow.is_none_or(inside)
        })
    }

    /// The functions and values in changed files; `None` if that is not known.
    pub fn bodies(&self) -> Option<&[Body]> {
        self.bodies.as_deref()
    }

    /// What differs.
    pub fn change(&self) -> &Change {
        &self.change
    }

    /// The items whose own text changed, if they are all that did, and what they have an effect on: for certain if
    /// [`SourceDiff::change`] is these items, else at least what mentions one of them by name, or a macro or constant that does.
    pub fn items(&self) -> Option<(&[ChangedItem], &Tainted)> {
        match (&self.change, &self.direct) {
            (Change::Items(items), _) => Some((items, &self.tainted)),
            (_, Some((items, tainted))) => Some((items, tainted)),
            _ => None,
        }
    }

    /// Types that both sources declare, with other contents.
    pub fn types(&self) -> &[ChangedType] {
        &self.types
    }

    /// What the difference can have an effect on.
    pub fn tainted(&self) -> &Tainted {
        &self.tainted
    }
}

/// A reason for [`Change::Everything`].
struct Doubt(String);

type Sure<T> = std::result::Result<T, Doubt>;
