//! Which closures can leave the frame of the function that makes them.
//!
//! A closure whose captures changed is harmless if no value of it can be alive when the switch is made, and if no code
//! of one build meets a value of the other. A patched function is in no frame then, so it suffices that values of the
//! closure never leave frames: the closure, and every type that contains it or is generic over it, is held by no variable
//! with static storage, has no vtable, and is either in the signature of no out-of-line function (everything that it is
//! handed to has been inlined) or only where `frames.rs` follows it.

mod edges;
mod frames;

use super::dwarf::{Debug, DieId};
use super::names::{closure_parents, mentions, segments};
use super::scan::{Wanted, scan};
use super::side::Image;
use super::types::Types;
use crate::findings::Place;
use edges::Edges;
use livepatch_patch::LinkAddr;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// One of the two images.
pub(super) struct Scene<'s, 'a> {
    pub(super) image: &'s Image<'a>,
    /// What the function symbols of the other one stand for.
    pub(super) others: HashSet<&'s str>,
    /// Where the redirected functions are in this image.
    pub(super) redirected: BTreeSet<u64>,
    /// If it is the one that runs: functions that the transition waits for besides the redirected ones.
    pub(super) runs: Option<&'s BTreeSet<LinkAddr>>,
    /// Whether functions over the closures may be in both images: their values look alike, and it matters only whether one is alive.
    pub(super) in_both: bool,
}

/// What was found about some closures in one image.
#[derive(Default)]
pub(super) struct Escapes {
    /// Closures that may leave a frame, and how.
    pub(super) exposed: BTreeMap<String, String>,
    /// For each type that contains closures: which ones.
    pub(super) contains: BTreeMap<String, BTreeSet<String>>,
    /// Where the bodies of closures are.
    pub(super) places: BTreeMap<String, Place>,
}

/// For each type made of closures: which ones.
type Wholes = BTreeMap<DieId, BTreeSet<String>>;

impl Escapes {
    fn expose(&mut self, closures: &BTreeSet<String>, how: &str) {
        for closure in closures {
            self.exposed.entry(closure.clone()).or_insert_with(|| how.to_owned());
        }
    }
}

/// Examines the closures of these (fully qualified) names.
pub(super) fn escapes(scene: &Scene<'_, '_>, closures: &BTreeSet<String>) -> gimli::Result<Escapes> {
    let debug = &scene.image.debug;
    let holders = holders(debug, closures)?;
    let ids: Vec<DieId> = holders.iter().map(|(id, _)| *id).collect();
    let edges = edges::read(debug, &ids)?;
    let wholes = spread(holders, &edges);
    let types = Types::new(debug);
    let mut result = Escapes::default();
    for (id, inside) in &wholes {
        let name = types.name(Some(*id))?.to_string();
        result.contains.entry(name).or_default().extend(inside.iter().cloned());
        if edges.kept.contains(id) {
            result.expose(inside, "a static or a trait object may hold it");
        }
    }
    let generic = spread(generic(&edges, closures), &edges);
    let showers = frames::showers(debug, &edges, (&wholes, &generic), closures, &mut result.places)?;
    frames::judge(scene, &wholes, &showers, &mut result)?;
    Ok(result)
}

fn holders(debug: &Debug<'_>, closures: &BTreeSet<String>) -> gimli::Result<Vec<(DieId, String)>> {
    let last = closures.iter().map(|name| segments(name).pop().unwrap_or_default().to_owned()).collect();
    let mut holders = Vec::new();
    for id in scan(debug, &Wanted { types: last, ..Wanted::default() })?.types {
        if let Some(path) = debug.path(id)?.filter(|path| closures.contains(path)) {
            holders.push((id, path));
        }
    }
    Ok(holders)
}

/// Closures that are generic over these: they are told apart by them, but need not hold them.
fn generic(edges: &Edges, closures: &BTreeSet<String>) -> Vec<(DieId, String)> {
    let over = |name: &str| closures.iter().find(|closure| mentions(name, closure)).cloned();
    edges.closures.iter().filter_map(|(id, name)| Some((*id, over(name)?))).collect()
}

/// Goes from the closures up to everything made of them.
fn spread(holders: Vec<(DieId, String)>, edges: &Edges) -> Wholes {
    let mut wholes = Wholes::new();
    let mut queue = holders;
    while let Some((id, closure)) = queue.pop() {
        if wholes.entry(id).or_default().insert(closure.clone()) {
            let made = edges.made_into.get(&id).into_iter().flatten();
            queue.extend(made.map(|whole| (*whole, closure.clone())));
        }
    }
    wholes
}

/// The function that a closure is written in, and its label there.
fn written_in(closure: &str) -> Option<(String, String)> {
    closure_parents(closure).pop()
}
