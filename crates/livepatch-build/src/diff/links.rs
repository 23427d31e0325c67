//! Old code that leads elsewhere than its source says, to something that the change reaches.
//!
//! Raw code tells that a function means what it meant. Its machine code in the running program still has to be replaced in two cases:
//!
//! - LLVM gave functions of equal code one body, under the name of one of them (pass `MergeFunctions`), and the change is about that
//!   one: code that means the other comes to the new code, too. Calls are put right by replacing the caller; an address may be kept
//!   somewhere, and then the function cannot be replaced.
//! - It calls a copy of generic code that the change reaches and that the new build does not have, because it is inlined there: nothing
//!   replaces that copy.

use super::graph::Graph;
use super::lost::{Users, users};
use super::meaning::Meaning;
use super::program::At;
use super::repartition::{Infos, Judge};
use super::uses::{Uses, held};
use super::{Changed, Diff};
use crate::emit::name_of;
use crate::guard::demangle;
use crate::objects::Kind;
use crate::source::Side;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Old functions that refer to a copy that the change reaches and that nothing continues, each with that copy.
pub(super) fn to_stale(diff: &Diff<'_>, unpaired: &HashSet<At>, judge: &dyn Judge) -> HashMap<At, At> {
    let users: Users = users(&diff.old, unpaired);
    let mut found = HashMap::new();
    let mut work: Vec<At> = unpaired.iter().copied().filter(|at| judge.may_reach(*at, Side::Old)).collect();
    while let Some(at) = work.pop() {
        for (user, _) in users.get(&at).into_iter().flatten() {
            if found.insert(*user, at).is_none() && unpaired.contains(user) {
                work.push(*user);
            }
        }
    }
    found
}

/// What was found about merged functions.
#[derive(Default)]
pub(super) struct Merged {
    /// Old callers of a replaced function that mean another one, each with the replaced one.
    pub callers: HashMap<At, At>,
    /// Replaced functions whose address stands for another one, with what is known of that.
    pub addresses: BTreeMap<String, String>,
}

/// Looks for them among the users of functions that the change is about.
pub(super) fn to_merged(
    diff: &Diff<'_>,
    (meaning, infos): (&Meaning, &Infos),
    (real, aside): (&[Changed], &[Changed]),
) -> Merged {
    let name = |at: At| meaning.key(name_of(&diff.old, at));
    let replaced: HashMap<&str, At> = real.iter().map(|change| (name(change.old), change.old)).collect();
    let mut merged = Merged::default();
    for change in real.iter().chain(aside) {
        let code = Code::new(diff, meaning, infos, *change);
        for (used, at) in replaced.iter().filter(|(_, at)| **at != change.old) {
            if code.calls_by_mistake(used) {
                merged.callers.insert(change.old, *at);
            }
            if code.takes_by_mistake(used) {
                merged.addresses.insert(demangle(used), demangle(name(change.old)));
            }
        }
    }
    merged.addresses.extend(in_data(diff, meaning, &replaced));
    merged
}

/// One function in both builds, and what its raw code refers to.
struct Code<'c, 'a> {
    diff: &'c Diff<'a>,
    meaning: &'c Meaning,
    change: Changed,
    graph: &'c Graph,
    old: Uses<'c>,
    /// The function and what is inlined into its old code.
    members: HashSet<&'c str>,
}

impl<'c, 'a> Code<'c, 'a> {
    fn new(diff: &'c Diff<'a>, meaning: &'c Meaning, infos: &'c Infos, change: Changed) -> Self {
        let mut members = infos.old.get(&change.old).map(|info| meaning.inlined(info)).unwrap_or_default();
        members.insert(meaning.key(name_of(&diff.old, change.old)));
        let old = Uses::of(&diff.old, change.old).renamed(|name| meaning.key(name));
        Self { diff, meaning, change, graph: meaning.graphs()[0], old, members }
    }

    fn calls_by_mistake(&self, used: &str) -> bool {
        self.old.calls.contains_key(used) && (!self.leads_to(used) || self.names_again(|uses| &uses.calls))
    }

    fn takes_by_mistake(&self, used: &str) -> bool {
        self.old.others.contains_key(used) && (!self.leads_to(used) || self.names_again(|uses| &uses.others))
    }

    /// Whether raw code leads there from this code. What has no raw code of its own leads anywhere.
    fn leads_to(&self, used: &str) -> bool {
        if !self.graph.nodes.contains_key(used) {
            return true;
        }
        let mut seen: HashSet<&str> = HashSet::new();
        let mut work: Vec<&str> = self.members.iter().copied().collect();
        while let Some(name) = work.pop() {
            if name == used {
                return true;
            }
            if seen.insert(name) {
                let node = self.graph.nodes.get(name);
                let next = node.into_iter().flat_map(|node| node.calls.iter().chain(&node.others));
                work.extend(next.map(|(name, _)| name.as_str()));
            }
        }
        false
    }

    /// Whether the new code refers to a function, as raw code always did, that the old image has no place for and that is not inlined.
    fn names_again(&self, of: impl for<'u> Fn(&'u Uses<'c>) -> &'u HashMap<&'c str, usize>) -> bool {
        let new = Uses::of(&self.diff.new, self.change.new).renamed(|name| self.meaning.key(name));
        let nodes = self.members.iter().filter_map(|name| self.graph.nodes.get(*name));
        let meant: HashSet<&str> = nodes
            .flat_map(|node| node.calls.iter().chain(&node.others))
            .map(|(name, _)| name.as_str())
            .collect();
        of(&new).keys().any(|name| {
            let is_code = self.graph.nodes.get(*name).is_some_and(|node| node.kind == Some(Kind::Text));
            is_code
                && meant.contains(name)
                && !of(&self.old).contains_key(name)
                && !self.members.contains(name)
                && self.diff.old.image.symbols(name).is_empty()
        })
    }
}

/// Tables that hold a replaced function where raw code has another one.
fn in_data(diff: &Diff<'_>, meaning: &Meaning, replaced: &HashMap<&str, At>) -> BTreeMap<String, String> {
    let graph = meaning.graphs()[0];
    let mut found = BTreeMap::new();
    let data =
        diff.old.all().filter(|(at, section)| section.kind != Kind::Text && diff.old.addr(*at).is_some());
    for (at, _) in data.filter(|(_, section)| !section.relocs.is_empty() && !section.symbols.is_empty()) {
        let Some(node) = graph.nodes.get(meaning.key(name_of(&diff.old, at))) else { continue };
        for (offset, name) in held(&diff.old, at) {
            let name = meaning.key(name);
            let meant = node.fields.iter().filter(|(at, _)| *at == offset).map(|(_, name)| name.as_str());
            let meant: Vec<&str> = meant.collect();
            if replaced.contains_key(name) && !meant.is_empty() && !meant.contains(&name) {
                found.insert(demangle(name), demangle(meant[0]));
            }
        }
    }
    found
}
