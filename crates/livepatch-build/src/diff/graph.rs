//! What leads where in raw code, and what of it may be missing in machine code.

use super::pair::ByName;
use super::program::{At, Program};
use super::uses::{Uses, held};
use super::variables::is_accessor;
use crate::objects::Kind;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The references of one build's raw code.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub nodes: HashMap<String, Node>,
    /// Names from which something that changed can be reached.
    pub leading: HashSet<String>,
    /// Names that something calls directly.
    called: HashSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct Node {
    pub calls: Vec<(String, usize)>,
    pub others: Vec<(String, usize)>,
    indirect: usize,
    /// What it is, if its sections agree.
    pub kind: Option<Kind>,
    /// Whether it is code that does nothing but form an address.
    pub is_accessor: bool,
    /// Of data, what is referred to at which offset.
    pub fields: Vec<(u64, String)>,
    /// A number for its bytes, in which references are left open; of copies, of one of them.
    pub shape: u64,
}

impl Graph {
    pub(super) fn new<'a>(program: &Program<'a>, names: &ByName<'a>) -> Self {
        let mut of_sections: HashMap<At, Uses<'a>> = HashMap::new();
        let mut nodes = HashMap::new();
        for (name, sections) in names {
            let mut all = Uses::default();
            for at in sections {
                all.join(of_sections.entry(*at).or_insert_with(|| Uses::of(program, *at)));
            }
            let owned =
                |uses: HashMap<&str, usize>| uses.into_iter().map(|(n, c)| (n.to_owned(), c)).collect();
            let kinds: HashSet<Kind> = sections.iter().map(|at| program.section(*at).kind).collect();
            let data = sections.iter().filter(|at| program.section(**at).kind != Kind::Text);
            let fields = data.flat_map(|at| held(program, *at)).map(|(at, name)| (at, name.to_owned()));
            let node = Node {
                calls: owned(all.calls),
                others: owned(all.others),
                indirect: all.indirect,
                is_accessor: sections.iter().all(|at| is_accessor(program, *at)),
                kind: kinds.iter().next().copied().filter(|_| kinds.len() == 1),
                fields: fields.collect(),
                shape: sections.first().map(|at| shape(program.section(*at).bytes)).unwrap_or_default(),
            };
            nodes.insert((*name).to_owned(), node);
        }
        let called =
            nodes.values().flat_map(|node: &Node| &node.calls).map(|(name, _)| name.clone()).collect();
        Self { nodes, leading: HashSet::new(), called }
    }

    /// Who refers to whom, and whether by direct calls.
    pub(super) fn references(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        self.nodes.iter().flat_map(|(user, node)| {
            let calls = node.calls.iter().map(|(used, _)| (used, true));
            let others = node.others.iter().map(|(used, _)| (used, false));
            calls.chain(others).map(|(used, calls)| (user.as_str(), used.as_str(), calls))
        })
    }

    /// Whether the machine code of this one may refer to that one: its raw code does, or that of something which has no code of its own in the
    /// program. What there is no raw code of may refer to anything.
    pub(super) fn may_hold(&self, from: &str, to: &str, own_code: &HashSet<&str>) -> bool {
        if !self.nodes.contains_key(from) {
            return true;
        }
        let (mut seen, mut work) = (HashSet::new(), vec![from]);
        while let Some(name) = work.pop() {
            let Some(node) = self.nodes.get(name).filter(|_| seen.insert(name)) else { continue };
            let next = node.calls.iter().chain(&node.others).map(|(name, _)| name.as_str());
            for name in next {
                if name == to {
                    return true;
                }
                if !own_code.contains(name) {
                    work.push(name);
                }
            }
        }
        false
    }

    /// Finds the names from which one of these can be reached.
    pub(super) fn lead_to(&mut self, changed: &HashSet<String>) {
        let mut users: HashMap<&str, Vec<&str>> = HashMap::new();
        for (user, used, _) in self.references() {
            users.entry(used).or_default().push(user);
        }
        let mut leading = HashSet::new();
        let mut work: Vec<&str> = changed.iter().map(String::as_str).collect();
        while let Some(name) = work.pop() {
            if leading.insert(name.to_owned()) {
                work.extend(users.get(name).into_iter().flatten());
            }
        }
        self.leading = leading;
    }

    /// Whether a reference to something that changed may have been inlined and computed away in code that was made of
    /// `own` and `inlined`, none of which changed.
    pub(super) fn may_lose(
        &self,
        own: Option<&str>,
        inlined: &HashSet<&str>,
        changed: &HashSet<String>,
        machine: &Uses<'_>,
    ) -> bool {
        self.lost(own, inlined, changed, machine).is_none_or(|lost| !lost.is_empty())
    }

    /// What of `changed` may have been inlined and computed away in code that was made of `own` and `inlined`; `None` if it may be
    /// anything, because an indirect call is gone.
    pub(super) fn lost(
        &self,
        own: Option<&str>,
        inlined: &HashSet<&str>,
        changed: &HashSet<String>,
        machine: &Uses<'_>,
    ) -> Option<Vec<&str>> {
        let mut members: HashSet<&str> = inlined.iter().copied().chain(own).collect();
        let mut work: Vec<&str> = members.iter().copied().collect();
        let mut wanted = Wanted::default();
        loop {
            while let Some(name) = work.pop() {
                if let Some(node) = self.nodes.get(name) {
                    wanted.add(node, &self.leading);
                }
            }
            // What is neither called nor inlined visibly was inlined without a trace, with all that it does.
            let lost = wanted.missing(machine).filter(|name| !members.contains(name));
            let lost: Vec<&str> =
                lost.filter_map(|name| Some(&**self.nodes.get_key_value(name)?.0)).collect();
            if lost.is_empty() {
                break;
            }
            members.extend(&lost);
            work.extend(lost);
        }
        // What is inlined but nowhere called directly got here by an indirect call that is gone for this reason: the code around it,
        // whose call that was, shows as inlined, too.
        let known = |name: &&&str| self.nodes.contains_key(**name) && !self.called.contains(**name);
        let explained = inlined.iter().filter(|name| own != Some(**name)).filter(known).count();
        let devirtualised = wanted.by_address && wanted.indirect > machine.indirect + explained;
        let lost: Vec<&str> = wanted.missing(machine).filter(|name| changed.contains(*name)).collect();
        if devirtualised || !lost.is_empty() {
            tracing::debug!(?lost, devirtualised, "may have been computed away");
        }
        (!devirtualised).then_some(lost)
    }
}

fn shape(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// References that machine code has to have if nothing was computed away.
#[derive(Default)]
struct Wanted<'g> {
    calls: BTreeMap<&'g str, usize>,
    others: BTreeMap<&'g str, usize>,
    indirect: usize,
    /// Whether something that leads to the change is reached through its address.
    by_address: bool,
}

impl<'g> Wanted<'g> {
    fn add(&mut self, node: &'g Node, leading: &HashSet<String>) {
        for (into, from) in [(&mut self.calls, &node.calls), (&mut self.others, &node.others)] {
            for (name, count) in from.iter().filter(|(name, _)| leading.contains(name)) {
                *into.entry(name).or_default() += count;
            }
        }
        self.by_address |= node.others.iter().any(|(name, _)| leading.contains(name));
        self.indirect += node.indirect;
    }

    fn missing(&self, machine: &Uses<'_>) -> impl Iterator<Item = &'g str> {
        let count = |map: &HashMap<&str, usize>, name: &str| map.get(name).copied().unwrap_or(0);
        let lost_calls = self.calls.iter().filter(move |(name, wanted)| {
            // A function whose address is kept in a register is called from there as often as needed.
            let by_register = !self.others.contains_key(**name) && count(&machine.others, name) > 0;
            !by_register && count(&machine.calls, name) < **wanted
        });
        let lost_others = self.others.iter().filter(move |(name, wanted)| {
            count(&machine.others, name) + count(&machine.calls, name) < **wanted
        });
        lost_calls.chain(lost_others).map(|(name, _)| *name).collect::<Vec<_>>().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(calls: &[&str], others: &[&str], indirect: usize) -> Node {
        let counted = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 1)).collect();
        Node { calls: counted(calls), others: counted(others), indirect, ..Node::default() }
    }

    /// `own` calls the function in `slot` and makes known a table that leads to what changed.
    fn graph(others: &[&str]) -> Graph {
        let nodes = HashMap::from([
            ("own".to_owned(), node(&["with"], others, 1)),
            ("with".to_owned(), node(&[], &["slot"], 1)),
            ("slot".to_owned(), node(&[], &[], 0)),
            ("table".to_owned(), node(&[], &["changed"], 0)),
            ("changed".to_owned(), node(&[], &[], 0)),
        ]);
        let called = HashSet::from(["with".to_owned()]);
        let mut graph = Graph { nodes, leading: HashSet::new(), called };
        graph.lead_to(&changed());
        graph
    }

    fn changed() -> HashSet<String> {
        HashSet::from(["changed".to_owned()])
    }

    fn may_lose(others: &[&str], inlined: &[&str], indirect: usize) -> bool {
        let others_left = others.iter().map(|name| (*name, 1)).collect();
        let machine = Uses { others: others_left, indirect, ..Uses::default() };
        let inlined = inlined.iter().copied().collect();
        graph(others).may_lose(Some("own"), &inlined, &changed(), &machine)
    }

    #[test]
    fn an_indirect_call_that_is_gone() {
        assert!(!may_lose(&["table"], &["with"], 2));
        assert!(may_lose(&["table"], &["with"], 1));
        // Nothing that leads to the change is known here.
        assert!(!may_lose(&[], &["with"], 1));
    }

    #[test]
    fn what_is_called_by_its_address_only_and_shows_as_inlined() {
        assert!(!may_lose(&["table"], &["with", "slot"], 1));
        assert!(may_lose(&["table"], &["with", "slot"], 0));
    }
}
