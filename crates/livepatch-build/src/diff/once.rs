//! What of a change only computes values that are kept once they are there.
//!
//! Raw code shows who calls whom. What a once-state (`guard/once.rs`) calls is an *initialiser*, and so is the function that a
//! variable with a once-state in it holds for its value. A function that is reached by calls from initialisers alone does what
//! these do. Where the address of a function is taken it can be called at any time, so it is none, whoever takes it: handlers that
//! an initialiser puts into a table, the loop of a thread that it starts. What runs once (`runs_once.rs`) is like
//! an initialiser of the whole program.

use super::Meaning;
use super::graph::{Graph, Node};
use crate::guard::{demangle, is_of_once_state};
use crate::objects::Kind;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

/// Where initialisers stand in variables, by normalised symbol: see [`crate::guard::initialised_once`].
pub(crate) type Lazies = BTreeMap<String, Vec<Range<u64>>>;

/// A changed function that computes what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Initialiser {
    /// When it runs.
    pub when: When,
    /// It is called for nothing else.
    pub only: bool,
}

/// When an initialiser runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// When a value is first asked for, which is kept by this variable, where that is known.
    Asked(Option<String>),
    /// Once, as set-up does: see `runs_once.rs`.
    RunsOnce,
}

/// A function or constant that an initialiser is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ComputedOnce<'m> {
    name: &'m str,
    /// The variable that keeps the value, where that is known.
    keeper: Option<&'m str>,
    /// It is called for nothing else.
    only: bool,
}

impl Meaning {
    /// Variables of which an initialiser may lead to the change, by their symbols.
    pub(crate) fn holders(&self) -> BTreeSet<&str> {
        let nodes = self.new.nodes.iter();
        let holders = nodes.filter(|(name, node)| {
            node.kind.is_some_and(Kind::is_variable)
                && self.new.leading.contains(*name)
                && !node.fields.is_empty()
        });
        holders.map(|(name, _)| self.new_name(name)).collect()
    }

    /// The changed functions and constants that initialisers alone are made of, by name; functions that are initialisers as they
    /// are; and functions that run once.
    pub(crate) fn initialisers(&self, once: &[ComputedOnce<'_>]) -> BTreeMap<String, Initialiser> {
        let running = self.runs_once.iter().filter(|name| self.changed.contains(*name));
        let running = running.filter(|name| self.old.nodes.contains_key(*name));
        let mut found: BTreeMap<String, Initialiser> =
            running.map(|name| (name.clone(), Initialiser { when: When::RunsOnce, only: true })).collect();
        for &ComputedOnce { name, keeper, only } in once {
            if self.changed.contains(name) && self.old.nodes.contains_key(name) {
                let when = When::Asked(keeper.map(|keeper| self.new_name(keeper).to_owned()));
                found.insert(name.to_owned(), Initialiser { when, only });
            }
        }
        found
    }

    /// Functions that the old build lacks and that initialisers alone are made of, with what keeps the value, where that is known: the symbols
    /// of both.
    pub(crate) fn new_initialisers<'w>(
        &'w self,
        once: &[ComputedOnce<'w>],
    ) -> BTreeMap<&'w str, Option<&'w str>> {
        let new = once.iter().filter(|one| one.only && !self.old.nodes.contains_key(one.name));
        new.map(|one| (self.new_name(one.name), one.keeper.map(|keeper| self.new_name(keeper)))).collect()
    }

    /// What initialisers are made of.
    pub(crate) fn computed_once<'w>(
        &'w self,
        lazies: &'w Lazies,
        local: &'w HashSet<String>,
    ) -> Vec<ComputedOnce<'w>> {
        let walk = Walk { meaning: self, graph: &self.new, lazies, local };
        let ordinary = walk.ordinary();
        let mut found = Vec::new();
        let mut work: Vec<(&str, Option<&str>)> = walk.starts();
        let held: HashSet<&str> =
            work.iter().filter(|start| start.1.is_some()).map(|start| start.0).collect();
        let mut seen = HashSet::new();
        while let Some((name, keeper)) = work.pop() {
            let only = !ordinary.contains(name);
            if !seen.insert(name) || !(only || held.contains(name)) {
                continue;
            }
            found.push(ComputedOnce { name, keeper, only });
            if let Some(node) = self.new.nodes.get(name).filter(|_| only) {
                work.extend(walk.callees(node).map(|callee| (callee, keeper)));
            }
        }
        found
    }

    /// Whether everything that changed and that the running program has is one of these, or a variable.
    pub(crate) fn only_initialises(&self, initialisers: &BTreeMap<String, Initialiser>) -> bool {
        let is_one = |name: &String| match self.new.nodes.get(name) {
            Some(node) if self.old.nodes.contains_key(name) => {
                node.kind.is_some_and(Kind::is_variable) || initialisers.get(name).is_some_and(|i| i.only)
            }
            _ => true,
        };
        !initialisers.is_empty() && self.changed.iter().all(is_one)
    }

    /// The symbol that the new build has for a name.
    pub(crate) fn new_name<'s>(&'s self, name: &'s str) -> &'s str {
        self.renamed.get(name).map_or(name, String::as_str)
    }
}

struct Walk<'w> {
    meaning: &'w Meaning,
    graph: &'w Graph,
    lazies: &'w Lazies,
    local: &'w HashSet<String>,
}

impl<'w> Walk<'w> {
    fn is_gate(&self, name: &'w str) -> bool {
        is_of_once_state(self.meaning.new_name(name), self.local)
    }

    fn is_lazy(&self, name: &'w str, offset: u64) -> bool {
        let ranges = self.lazies.get(self.meaning.new_name(name)).into_iter().flatten();
        ranges.into_iter().any(|range| range.contains(&offset))
    }

    /// What once-states call and variables hold, each with the variable.
    fn starts(&self) -> Vec<(&'w str, Option<&'w str>)> {
        let mut starts = Vec::new();
        for (name, node) in &self.graph.nodes {
            if self.is_gate(name) {
                let called = self.callees(node);
                starts.extend(called.filter(|callee| !self.is_gate(callee)).map(|callee| (callee, None)));
            }
            let held = node.fields.iter().filter(|(offset, _)| self.is_lazy(name, *offset));
            starts.extend(held.map(|(_, held)| (held.as_str(), Some(name.as_str()))));
        }
        // Of several ways to one function, that from a variable tells more.
        starts.sort_by_key(|(name, keeper)| (keeper.is_some(), *name));
        starts
    }

    fn is_constant(&self, name: &str) -> bool {
        self.graph.nodes.get(name).is_some_and(|node| node.kind == Some(Kind::ReadOnly))
    }

    /// Functions that a piece of code calls, and constants that it reads.
    fn callees(&self, node: &'w Node) -> impl Iterator<Item = &'w str> {
        let read = node.others.iter().map(|(name, _)| name.as_str()).filter(|name| self.is_constant(name));
        let called = node.calls.iter().map(|(name, _)| name.as_str());
        called.chain(read).filter(|_| node.kind == Some(Kind::Text)).filter(|name| !is_drop_glue(name))
    }

    /// What may be reached without a once-state in between.
    fn ordinary(&self) -> HashSet<&'w str> {
        let mut called: HashSet<&str> = HashSet::new();
        let mut work: Vec<&'w str> = Vec::new();
        for (name, node) in &self.graph.nodes {
            let gate = self.is_gate(name);
            called.extend(self.callees(node));
            if node.kind == Some(Kind::Text) {
                let addresses = node.others.iter().map(|(name, _)| name.as_str());
                work.extend(addresses.filter(|other| !gate && !self.is_constant(other)));
            } else {
                let held = node.fields.iter().filter(|(offset, _)| !self.is_lazy(name, *offset));
                work.extend(held.map(|(_, held)| held.as_str()));
                called.extend(held_lazily(node, name, self));
            }
        }
        let uncalled = self.graph.nodes.keys().filter(|name| {
            !called.contains(name.as_str()) || !super::names::is_mangled(name) || is_drop_glue(name)
        });
        work.extend(uncalled.map(String::as_str));
        let mut ordinary = HashSet::new();
        while let Some(name) = work.pop() {
            if ordinary.insert(name)
                && !self.is_gate(name)
                && let Some(node) = self.graph.nodes.get(name)
            {
                work.extend(self.callees(node));
            }
        }
        ordinary
    }
}

fn held_lazily<'w>(node: &'w Node, name: &'w str, walk: &Walk<'w>) -> impl Iterator<Item = &'w str> {
    let held = node.fields.iter().filter(|(offset, _)| walk.is_lazy(name, *offset));
    held.map(|(_, held)| held.as_str())
}

/// Values are dropped wherever they are, so it does not matter who says so first.
fn is_drop_glue(name: &str) -> bool {
    name.contains("drop_in_place") && demangle(name).starts_with("core::ptr::drop_in_place")
}
