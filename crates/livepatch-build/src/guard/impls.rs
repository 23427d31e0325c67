//! Impl blocks that have another number in the new build.
//!
//! What is written in an impl block (closures, async bodies, local types) is called by the number of the block in its module:
//! `app::{impl#3}::run::{closure#0}`. A block that is added, moved or removed renumbers those behind it, and then equal names stand
//! for different things. So the new build's names are read with the numbers that the blocks have in the old one.
//!
//! Which block is which is told by symbols, which spell out the type and the trait: a block of a trait is known by both, and one
//! without by the type and any of its methods. A wrong answer would compare a type with another one, so a module is left as it is
//! unless the answer is clear: what is known of each block points to one block of the other build, to which nothing else
//! points; and what is known of those for which there is none in the other build is known of none that is left there. Those that
//! are only in the new build get numbers that the old one does not have.

use super::demangle::demangle;
use super::dwarf::Debug;
use super::fixed::CRATES;
use super::names::segments;
use super::scan::{Wanted, scan};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Blocks of the new build by their path, each with its number in the old one.
#[derive(Debug, Default)]
pub(super) struct Renumbered {
    blocks: HashMap<String, String>,
}

/// A function in a block, as debug information has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Inside {
    /// Names from the block on, its own included.
    pub(super) names: Vec<String>,
    pub(super) symbol: String,
}

/// Blocks of an image by module and number, with functions in them.
pub(super) type Blocks = BTreeMap<(String, u32), BTreeSet<Inside>>;

/// `7` of `{impl#7}`.
pub(super) fn number(segment: &str) -> Option<u32> {
    segment.strip_prefix("{impl#")?.strip_suffix('}')?.parse().ok()
}

impl Renumbered {
    /// Compares two images as far as crates are concerned in which these functions (old and new symbols) were renamed.
    pub(super) fn between(
        old: &Debug<'_>,
        new: &Debug<'_>,
        renamed: &[(String, String)],
    ) -> gimli::Result<Self> {
        let names = renamed.iter().flat_map(|(old, new)| [old, new]);
        let crates: HashSet<String> = names
            .filter_map(|symbol| super::crate_of(symbol))
            .filter(|name| !CRATES.contains(&name.as_str()))
            .collect();
        if crates.is_empty() {
            return Ok(Self::default());
        }
        let wanted = Wanted { blocks_of: crates, ..Wanted::default() };
        let (old, new) = rayon::join(|| scan(old, &wanted), || scan(new, &wanted));
        Ok(Self::pair(&old?.blocks, &new?.blocks))
    }

    fn pair(old: &Blocks, new: &Blocks) -> Self {
        let (old, new) = (modules(old), modules(new));
        let mut blocks = HashMap::new();
        for (module, after) in &new {
            let Some(before) = old.get(module) else { continue };
            let Some(pairs) = pairs(before, after) else {
                tracing::debug!(module, "impl blocks cannot be told apart");
                continue;
            };
            // Beyond all numbers of the old build.
            let free = before.keys().max().map_or(0, |last| last + 1);
            for number in after.keys() {
                let known = pairs.get(number).copied();
                let other = known.unwrap_or(free + number);
                blocks.insert(format!("{module}::{{impl#{number}}}"), format!("{{impl#{other}}}"));
            }
        }
        blocks.retain(|block, other| !block.ends_with(other.as_str()));
        tracing::debug!(?blocks, "impl blocks renumbered");
        Self { blocks }
    }

    /// The segments of a path, with the numbers of the old build.
    pub(super) fn segments(&self, path: &mut [Cow<'_, str>]) {
        if self.blocks.is_empty() {
            return;
        }
        let Some(at) = path.iter().position(|segment| number(segment).is_some()) else { return };
        if let Some(other) = self.blocks.get(&path[..=at].join("::")) {
            path[at] = Cow::Owned(other.clone());
        }
    }

    /// A name in which whole paths stand, with the numbers of the old build.
    pub(super) fn text<'t>(&self, name: Cow<'t, str>) -> Cow<'t, str> {
        const MARK: &str = "::{impl#";
        if self.blocks.is_empty() || !name.contains(MARK) {
            return name;
        }
        let goes_on = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '{' | '}' | '#');
        let mut out = String::with_capacity(name.len());
        let mut rest = &*name;
        while let Some(at) = rest.find(MARK) {
            let end = rest[at..].find('}').map_or(rest.len(), |length| at + length + 1);
            let start = rest[..at]
                .rfind(|c| !goes_on(c))
                .map_or(0, |before| before + rest[before..].chars().next().map_or(1, char::len_utf8));
            out.push_str(&rest[..at]);
            match self.blocks.get(&rest[start..end]) {
                Some(other) => out.extend(["::", other]),
                None => out.push_str(&rest[at..end]),
            }
            rest = &rest[end..];
        }
        Cow::Owned(out + rest)
    }
}

/// What is known of one block.
#[derive(Debug, Default)]
struct Block {
    /// Type, or type and trait.
    headers: BTreeSet<String>,
    /// What tells it from other blocks.
    marks: BTreeSet<String>,
}

type Module = BTreeMap<u32, Block>;

fn modules(blocks: &Blocks) -> BTreeMap<&str, Module> {
    let mut modules: BTreeMap<&str, Module> = BTreeMap::new();
    for ((module, number), functions) in blocks {
        let block = modules.entry(module).or_default().entry(*number).or_default();
        for (header, mark) in functions.iter().filter_map(describe) {
            block.headers.insert(header);
            block.marks.insert(mark);
        }
    }
    modules
}

/// What the symbol of a function in a block says of the block: its header, and what tells it from others.
fn describe(function: &Inside) -> Option<(String, String)> {
    let path = demangle(&function.symbol);
    // In v0 mangling generic arguments of functions are segments.
    let is_argument = |(at, segment): &(usize, &&str)| {
        *at > 0 && segment.starts_with('<') && !segment.starts_with("<impl ")
    };
    let all = segments(&path);
    let spelled: Vec<&str> = all.iter().enumerate().filter(|s| !is_argument(s)).map(|(_, s)| *s).collect();
    let at = spelled.len().checked_sub(function.names.len()).filter(|at| *at > 0)?;
    let bare = |name: &str| name.split('<').next().unwrap_or_default().to_owned();
    let method = bare(function.names.first()?);
    if bare(spelled[at]) != method || method.is_empty() {
        return None;
    }
    let header = spelled[..at].join("::");
    let last = spelled[at - 1];
    let of_trait = (last.starts_with("<impl ") && last.contains(" for "))
        || (last.starts_with('<') && last.contains(" as "));
    Some((header.clone(), if of_trait { header } else { format!("{header}::{method}") }))
}

/// For new blocks of a module the old ones; `None` if that is not clear.
fn pairs(old: &Module, new: &Module) -> Option<BTreeMap<u32, u32>> {
    let (in_old, in_new) = (by_mark(old), by_mark(new));
    let mut pairs = BTreeMap::new();
    for (mark, news) in &in_new {
        let ([new], Some([old])) = (news.as_slice(), in_old.get(mark).map(Vec::as_slice)) else { continue };
        if pairs.insert(*new, *old).is_some_and(|other| other != *old) {
            return None;
        }
    }
    let taken: BTreeSet<u32> = pairs.values().copied().collect();
    let gone: Vec<&Block> =
        old.iter().filter(|(number, _)| !taken.contains(number)).map(|(_, block)| block).collect();
    let added: Vec<&Block> =
        new.iter().filter(|(number, _)| !pairs.contains_key(number)).map(|(_, block)| block).collect();
    let unknown = gone.iter().chain(&added).any(|block| block.headers.is_empty());
    let alike = gone.iter().any(|old| added.iter().any(|new| !old.headers.is_disjoint(&new.headers)));
    let unclear = unknown || alike;
    (taken.len() == pairs.len() && !unclear).then_some(pairs)
}

fn by_mark(module: &Module) -> BTreeMap<&str, Vec<u32>> {
    let mut marks: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (number, block) in module {
        block.marks.iter().for_each(|mark| marks.entry(mark).or_default().push(*number));
    }
    marks
}

#[cfg(test)]
mod tests;
