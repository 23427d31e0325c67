//! The types that can be reached from given ones.

use super::dwarf::DieId;
use super::types::{Facts, Types};
use crate::findings::Place;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// A type by name; one name may stand for several layouts, for example where two versions of a crate are linked.
#[derive(Clone, Debug, Default)]
pub(super) struct Named {
    pub(super) layouts: BTreeSet<Facts>,
    pub(super) users: BTreeSet<Arc<str>>,
    pub(super) place: Option<Place>,
    /// Declarations without layout were seen.
    pub(super) declared: bool,
}

/// All types reachable from some roots, by fully qualified name.
pub(super) type Graph = HashMap<Arc<str>, Named>;

/// Where a walk starts, and for whose sake.
pub(super) struct Root {
    pub(super) id: DieId,
    pub(super) user: Arc<str>,
}

/// Walks from `roots` through members, pointers, elements, generic arguments and variants.
pub(super) fn reach(types: &Types<'_, '_>, roots: Vec<Root>) -> gimli::Result<Graph> {
    let mut graph = Graph::new();
    let mut seen: HashSet<DieId> = HashSet::new();
    let mut queue: std::collections::VecDeque<(DieId, Arc<str>)> =
        roots.into_iter().map(|root| (root.id, root.user)).collect();
    while let Some((id, user)) = queue.pop_front() {
        if !seen.insert(id) {
            continue;
        }
        let node = types.node(id)?;
        let named = graph.entry(node.name).or_default();
        named.users.insert(user.clone());
        named.place = named.place.take().or(node.place);
        if node.declared {
            named.declared = true;
        } else {
            named.layouts.insert(node.facts);
        }
        queue.extend(node.refs.into_iter().map(|id| (id, user.clone())));
    }
    Ok(graph)
}
