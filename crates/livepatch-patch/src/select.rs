//! Choosing a part of a patch.
//!
//! A [`Selection`] names modules, types and functions as a Rust user writes them; [`Patch::select`] makes the patch that
//! holds just those. How names are matched is in `select/pattern.rs`, what belongs together in `select/reduce.rs`, and the
//! smaller patch is made in `select/extract.rs`.

mod extract;
mod pattern;
mod reduce;
mod spelling;
#[cfg(test)]
mod tests;

use crate::ident::Digest;
use crate::patch::Patch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// What of a patch is wanted. Empty: all of it.
///
/// ```
/// use livepatch_patch::Selection;
///
/// let selection = Selection::new()
///     .module("webapp::router")
///     .type_("webapp::cart::Order")
///     .function("<webapp::cart::Item as core::fmt::Display>::fmt");
/// assert!(!selection.is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selection {
    parts: BTreeSet<Part>,
}

/// One element of a [`Selection`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "path")]
pub enum Part {
    /// A module or crate, with everything below it.
    Module(String),
    /// A type: its methods, inherent ones and those of traits.
    Type(String),
    /// A function or method, with the closures and async bodies in it, in all instantiations.
    Function(String),
}

impl Selection {
    /// Everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a module by its path (`webapp::router`), with everything below it.
    #[must_use]
    pub fn module(self, path: impl Into<String>) -> Self {
        self.with(Part::Module(path.into()))
    }

    /// Adds a type by its path (`webapp::router::Order`): inherent and trait methods. Generic arguments count only if given.
    #[must_use]
    pub fn type_(self, path: impl Into<String>) -> Self {
        self.with(Part::Type(path.into()))
    }

    /// Adds a function by its path: `webapp::router::total`, `webapp::router::Order::total` or
    /// `<webapp::router::Order as core::fmt::Display>::fmt`.
    #[must_use]
    pub fn function(self, path: impl Into<String>) -> Self {
        self.with(Part::Function(path.into()))
    }

    /// Adds a part.
    #[must_use]
    pub fn with(mut self, part: Part) -> Self {
        self.parts.insert(part);
        self
    }

    /// Whether it stands for the whole patch.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The parts, in an order that does not depend on how they were added.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter()
    }
}

/// A patch of which a part was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    /// The part as a patch of its own.
    pub patch: Patch,
    /// Its identity: that of the whole patch if it is all of it, else one that stands for just these functions of it.
    pub id: Digest,
    /// What was chosen; empty for the whole patch.
    pub selection: Selection,
}

impl Patch {
    /// The part of the patch with this `id` that a selection names.
    ///
    /// # Errors
    /// See [`SelectError`].
    pub fn select(&self, id: Digest, selection: &Selection) -> Result<Selected, SelectError> {
        let kept = reduce::choose(self, selection)?;
        if kept.len() == self.meta.redirects.len() {
            return Ok(Selected { patch: self.clone(), id, selection: Selection::new() });
        }
        let patch = extract::extract(self, &kept)
            .map_err(|reason| SelectError::Indivisible { reason: reason.to_owned() })?;
        let mut identity = id.0.to_vec();
        identity.extend(kept.iter().flat_map(|at| (*at as u64).to_le_bytes()));
        Ok(Selected { patch, id: Digest::of(&identity), selection: selection.clone() })
    }
}

impl Patch {
    /// The replaced functions that these paths name (as in [`Selection::function`]): indices into the redirects.
    ///
    /// # Errors
    /// [`SelectError::NotHeld`] if one of them names none.
    pub fn functions_named(&self, paths: &[String]) -> Result<BTreeSet<usize>, SelectError> {
        reduce::named(self, paths)
    }
}

impl Part {
    /// The path as it was given.
    pub fn path(&self) -> &str {
        match self {
            Self::Module(path) | Self::Type(path) | Self::Function(path) => path,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Module(_) => "module",
            Self::Type(_) => "type",
            Self::Function(_) => "function",
        };
        write!(f, "{kind} `{}`", self.path())
    }
}

/// Why a selection cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// The patch holds nothing that is meant (the command line's exit code 2).
    #[error("{}; the patch holds {}", list(.unknown), list(.holds))]
    NotHeld {
        /// The parts that mean nothing in this patch.
        unknown: Vec<Unknown>,
        /// Paths of everything that can be selected in it.
        holds: Vec<String>,
    },
    /// No part of the patch can be applied by itself (exit code 4).
    #[error("this patch can only be applied as a whole: {reason}")]
    Indivisible {
        /// Why.
        reason: String,
    },
    /// The selected part is not safe without the rest (exit code 4).
    #[error("the selection is not safe by itself: {}", list(.missing))]
    Incomplete {
        /// What is left out but needed.
        missing: Vec<Missing>,
    },
}

/// A part of a selection that means nothing in a patch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unknown {
    /// The part.
    pub part: Part,
    /// What is wrong with it, if it is not a well-formed path.
    pub error: Option<String>,
    /// Paths in the patch that may be meant.
    pub similar: Vec<String>,
}

/// A changed function that was left out although something selected needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The selected function.
    pub selected: String,
    /// What it needs.
    pub needs: String,
    /// Why.
    pub reason: String,
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Some(error) => write!(f, "{} is not understood: {error}", self.part)?,
            None => write!(f, "{} is not in the patch", self.part)?,
        }
        if self.similar.is_empty() {
            Ok(())
        } else {
            write!(f, " (did you mean {}?)", self.similar.join(" or "))
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {} `{}`, which is left out", self.selected, self.reason, self.needs)
    }
}
