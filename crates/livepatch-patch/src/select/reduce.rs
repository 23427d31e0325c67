//! Which functions a selection stands for, and whether they can do without the rest.
//!
//! What changed are *items* of the source; what is replaced are functions of the image. One item may be in several of
//! them (inlined), and one function may hold several items. Without knowing better, it would depend on the mood of
//! the optimiser what a selection does. So the rules are about items:
//!
//! 1. A function of a selected name goes in, and so does every function that holds a selected item. So does one that
//!    holds no changed item at all but was compiled with the knowledge of one that goes in.
//! 2. What goes in holds selected items only, or items that are nowhere else: nothing changes that was not selected, and
//!    no item is new in one place and old in another. Items of equal code that the optimiser made one function of are new together.
//! 3. What goes in refers, directly or through what the patch brings in, to no replaced function that is left out, and reads
//!    no changed constant that something left out reads, too.
//! 4. Functions that the compiler may have made for each other stay together.

use super::pattern::Names;
use super::{Missing, Part, SelectError, Selection};
use crate::item::ItemName;
use crate::patch::{Origin, Patch, Place, SectionId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Indices into [`crate::patch::Meta::redirects`].
pub(super) type Kept = BTreeSet<usize>;

/// The functions that a selection stands for.
pub(super) fn choose(patch: &Patch, selection: &Selection) -> Result<Kept, SelectError> {
    let redirects = &patch.meta.redirects;
    let all: Kept = (0..redirects.len()).collect();
    if selection.is_empty() {
        return Ok(all);
    }
    let fallback: Vec<ItemName> =
        redirects.iter().map(|redirect| ItemName::new(&redirect.path, Default::default())).collect();
    let known: Option<Vec<&Origin>> = redirects.iter().map(|redirect| redirect.origin.as_ref()).collect();
    let own: Vec<&ItemName> = redirects
        .iter()
        .zip(&fallback)
        .map(|(r, name)| r.origin.as_ref().map_or(name, |o| &o.item))
        .collect();
    let held = known.iter().flatten().flat_map(|origin| &origin.holds);
    let names = Names {
        items: own.iter().copied().chain(held).collect(),
        new: patch.meta.new_items.iter().map(|item| item.path.as_str()).collect(),
    };
    let mut wanted = BTreeSet::new();
    let mut unknown = Vec::new();
    for part in selection.parts() {
        match names.find(part) {
            Ok(found) => wanted.extend(found),
            Err(error) => unknown.push(error),
        }
    }
    if !unknown.is_empty() {
        return Err(SelectError::NotHeld { unknown, holds: names.all() });
    }
    let direct: Kept = wanted.iter().copied().filter(|at| *at < redirects.len()).collect();
    let items: BTreeSet<String> = wanted.iter().map(|at| names.items[*at].key()).collect();
    let undivided = |reason: &str| SelectError::Indivisible { reason: reason.to_owned() };
    let (Some(origins), None) = (known, &patch.meta.indivisible) else {
        let reason = patch.meta.indivisible.as_deref();
        let reason = reason
            .unwrap_or("it was made by a version of livepatch that did not record what is in each function");
        return if direct == all { Ok(all) } else { Err(undivided(reason)) };
    };
    let choice = Choice { patch, origins, direct, items, labels: names.labels() };
    let kept = choice.kept();
    let missing = choice.missing(&kept);
    if missing.is_empty() { Ok(kept) } else { Err(SelectError::Incomplete { missing }) }
}

/// The functions that these paths name.
pub(super) fn named(patch: &Patch, paths: &[String]) -> Result<Kept, SelectError> {
    let name = |redirect: &crate::patch::Redirect| match &redirect.origin {
        Some(origin) => origin.item.clone(),
        None => ItemName::new(&redirect.path, Default::default()),
    };
    let items: Vec<ItemName> = patch.meta.redirects.iter().map(name).collect();
    let names = Names { items: items.iter().collect(), new: Vec::new() };
    let mut found = Kept::new();
    let mut unknown = Vec::new();
    for path in paths {
        match names.find(&Part::Function(path.clone())) {
            Ok(more) => found.extend(more),
            Err(error) => unknown.push(error),
        }
    }
    if unknown.is_empty() { Ok(found) } else { Err(SelectError::NotHeld { unknown, holds: names.all() }) }
}

struct Choice<'p> {
    patch: &'p Patch,
    origins: Vec<&'p Origin>,
    /// Functions of selected names.
    direct: Kept,
    /// Keys of selected items.
    items: BTreeSet<String>,
    /// What items are called, by key.
    labels: BTreeMap<String, String>,
}

impl Choice<'_> {
    fn path(&self, at: usize) -> String {
        self.label(&self.origins[at].item.key())
    }

    fn label(&self, key: &str) -> String {
        self.labels.get(key).map_or_else(|| key.to_owned(), String::clone)
    }

    fn kept(&self) -> Kept {
        let holds = |origin: &Origin| origin.holds.iter().any(|item| self.items.contains(&item.key()));
        let hosts = self.origins.iter().enumerate().filter(|(_, origin)| holds(origin)).map(|(at, _)| at);
        let mut kept: Kept = self.direct.iter().copied().chain(hosts).collect();
        loop {
            let comes = |(at, origin): &(usize, &&Origin)| {
                let tied = origin.tied.iter().any(|other| kept.contains(&(*other as usize)));
                origin.holds.is_empty() && tied && !kept.contains(at)
            };
            let more: Vec<_> = self.origins.iter().enumerate().filter(comes).map(|(at, _)| at).collect();
            if more.is_empty() {
                return kept;
            }
            kept.extend(more);
        }
    }

    fn missing(&self, kept: &Kept) -> Vec<Missing> {
        let mut missing = BTreeMap::new();
        let mut note = |selected: usize, needs: String, reason: &str| {
            let (selected, reason) = (self.path(selected), reason.to_owned());
            missing.entry((needs.clone(), selected.clone())).or_insert(Missing { selected, needs, reason });
        };
        for (at, item) in self.strange_items(kept) {
            note(at, self.label(&item), "holds the changed code of");
        }
        let reach = Reach::of(self.patch);
        for &at in kept {
            for (other, how) in &reach.functions[at] {
                if !kept.contains(other) {
                    note(at, self.path(*other), &self.as_host(at, how));
                }
            }
        }
        for (path, readers) in &reach.readers {
            if let Some(&at) = readers.iter().find(|at| kept.contains(at)) {
                for other in readers.difference(kept) {
                    let reason = format!("reads the changed constant `{path}`, as does");
                    note(at, self.path(*other), &reason);
                }
            }
        }
        for (at, origin) in self.origins.iter().enumerate() {
            for other in origin.tied.iter().map(|other| *other as usize) {
                match (kept.contains(&at), kept.contains(&other)) {
                    (true, false) => note(at, self.path(other), TIED),
                    (false, true) => note(other, self.path(at), TIED),
                    _ => {}
                }
            }
        }
        missing.into_values().collect()
    }

    /// What a function does that goes in: if it was not selected itself, the reader has to be told why it does.
    fn as_host(&self, at: usize, does: &str) -> String {
        let mut held =
            self.origins[at].holds.iter().map(ItemName::key).filter(|item| self.items.contains(item));
        match held.next().filter(|_| !self.direct.contains(&at)) {
            Some(item) => format!("holds the selected `{}`, and {does}", self.label(&item)),
            None => does.to_owned(),
        }
    }

    /// Items that would change although they were not selected.
    fn strange_items(&self, kept: &Kept) -> Vec<(usize, String)> {
        let mut holders: HashMap<String, Kept> = HashMap::new();
        for (at, origin) in self.origins.iter().enumerate() {
            for item in &origin.holds {
                holders.entry(item.key()).or_default().insert(at);
            }
        }
        let mut found = Vec::new();
        for &at in kept {
            let origin = self.origins[at];
            for held in &origin.holds {
                let item = held.key();
                let is_elsewhere = origin.merged.contains(held) || !holders[&item].is_subset(&self.direct);
                if !self.items.contains(&item) && is_elsewhere {
                    found.push((at, item));
                }
            }
        }
        found
    }
}

const TIED: &str = "may have been compiled for";

/// What the new code of each replaced function leads to.
struct Reach {
    /// Other replaced functions, and how.
    functions: Vec<BTreeMap<usize, &'static str>>,
    /// Functions that read each changed constant.
    readers: BTreeMap<String, Kept>,
}

impl Reach {
    fn of(patch: &Patch) -> Self {
        let redirects = &patch.meta.redirects;
        let section = |place| match place {
            Place::Section { section, .. } => Some(section),
            _ => None,
        };
        let place = |symbol: crate::SymbolId| patch.symbols[symbol.0 as usize].place;
        let mut roots: HashMap<SectionId, Vec<usize>> = HashMap::new();
        for (at, redirect) in redirects.iter().enumerate() {
            if let Some(section) = section(place(redirect.symbol)) {
                roots.entry(section).or_default().push(at);
            }
        }
        let olds: HashMap<_, _> =
            redirects.iter().enumerate().map(|(at, redirect)| (redirect.old, at)).collect();
        let mut functions = Vec::new();
        let mut seen_by = Vec::new();
        for (at, redirect) in redirects.iter().enumerate() {
            let mut found = BTreeMap::new();
            let mut seen = BTreeSet::new();
            let mut work: Vec<SectionId> = section(place(redirect.symbol)).into_iter().collect();
            while let Some(id) = work.pop() {
                if !seen.insert(id) {
                    continue;
                }
                let others = roots.get(&id).into_iter().flatten().filter(|other| **other != at);
                let before = found.len();
                found.extend(others.map(|other| (*other, "calls")));
                if found.len() > before {
                    continue;
                }
                for reloc in &super::extract::relocs(patch, id) {
                    match place(reloc.symbol) {
                        Place::Section { section, .. } => work.push(section),
                        Place::Image { addr, .. } => {
                            if let Some(other) = olds.get(&addr).filter(|other| **other != at) {
                                found.entry(*other).or_insert("takes the address of");
                            }
                        }
                        Place::ImageTls { .. } | Place::Import { .. } => {}
                    }
                }
            }
            functions.push(found);
            seen_by.push(seen);
        }
        let readers = patch.meta.constants.iter().map(|constant| {
            let id = section(place(constant.symbol));
            let reads = |seen: &BTreeSet<SectionId>| id.is_some_and(|id| seen.contains(&id));
            let readers = seen_by.iter().enumerate().filter(|(_, seen)| reads(seen)).map(|(at, _)| at);
            (constant.path.clone(), readers.collect())
        });
        Self { functions, readers: readers.collect() }
    }
}
