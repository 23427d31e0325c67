//! Linker maps: where each input section went.
//!
//! A map is the only place where a linker says which section of which input became which bytes of the output; symbols
//! do not say it for anonymous data. Two families are read: the table of LLD and mold, and the script-like listing of
//! GNU ld and gold.

mod gnu;
mod lld;

use livepatch_patch::LinkAddr;
use std::sync::Arc;

/// One section of one input file, placed in the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedSection {
    /// The file, as the linker was given it or found it.
    pub file: Arc<str>,
    /// The member, if the file is an archive.
    pub member: Option<Arc<str>>,
    /// Name of the input section.
    pub section: String,
    /// Where it starts in the image.
    pub addr: LinkAddr,
    /// Bytes that it takes there.
    pub size: u64,
}

/// A parsed map. Sections keep the map's order, which is the order of addresses; several sections of one name in one
/// file keep the file's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkMap {
    sections: Vec<PlacedSection>,
}

/// The text is not a map of a known linker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Neither heading was found.
    #[error("not a map of lld, mold, GNU ld or gold")]
    Unknown,
    /// A line of a known map that does not fit its format.
    #[error("line {line} is not understood: `{text}`")]
    Line {
        /// Number, from 1.
        line: usize,
        /// The line, shortened.
        text: String,
    },
}

impl LinkMap {
    /// Reads a map. What is not in memory (debug information and the like: its output section is at address 0, and the addresses
    /// in it are offsets), empty sections, and what the linker made itself are left out.
    ///
    /// # Errors
    /// The text is not a map of a known linker.
    pub fn parse(text: &str) -> Result<Self, MapError> {
        let sections = if lld::is_map(text) {
            lld::parse(text)?
        } else if gnu::is_map(text) {
            gnu::parse(text)?
        } else {
            return Err(MapError::Unknown);
        };
        Ok(Self { sections })
    }

    /// The placed sections.
    pub fn sections(&self) -> &[PlacedSection] {
        &self.sections
    }
}

/// Turns repeated names into one allocation. Neighbouring lines of a map mostly name the same file.
#[derive(Default)]
struct Interner<'a> {
    last: Option<(&'a str, Arc<str>)>,
    all: std::collections::HashMap<&'a str, Arc<str>>,
}

impl<'a> Interner<'a> {
    fn get(&mut self, name: &'a str) -> Arc<str> {
        if let Some((last, arc)) = &self.last
            && *last == name
        {
            return arc.clone();
        }
        let arc = self.all.entry(name).or_insert_with(|| name.into()).clone();
        self.last = Some((name, arc.clone()));
        arc
    }
}

/// Splits `archive(member)` as linkers write it; a plain file has no member.
fn split_member(file: &str) -> (&str, Option<&str>) {
    match file.strip_suffix(')').and_then(|inner| inner.rsplit_once('(')) {
        Some((archive, member)) if !archive.is_empty() => (archive, Some(member)),
        _ => (file, None),
    }
}

fn bad_line(number: usize, text: &str) -> MapError {
    MapError::Line { line: number + 1, text: text.chars().take(160).collect() }
}
