//! Closures that out-of-line functions take, and that live in frames all the same: those of iterator chains, and those
//! handed to a function that calls them.
//!
//! A closure is followed into functions (`Map::fold`, `sort_by`, the program's own `with`) and into its adapters. What
//! has to hold, in both builds:
//!
//! - *Nothing keeps it.* What is made of it are adapters, tuples, references and closures. A value that outlives the call
//!   would be in a box, a collection, a cell, a coroutine, a struct of the program or behind a raw pointer's owner, and
//!   that would be another type over it. Where its type is erased (a trampoline for C, a green thread), the address of
//!   a function over it is taken, which the third condition sees. A function that returns it gives it to its caller's
//!   frame; whatever that caller does with it out of line is a function over it again.
//! - *The builds do not mix.* Each function that takes it exists in one build only, under a symbol of its own. So old
//!   callers, of which some may be left running, give old values to old functions, and new ones new values to new functions,
//!   whatever of the patch is applied and in whichever way.
//! - *No frame outlives the maker's.* In the running program such functions are referred to by nothing but calls and jumps,
//!   from redirected functions and from each other. So wherever one is in a frame, there is a redirected function below
//!   it, or it is itself what a jump led to from there (redirected, or an orphan of the patch), and the transition waits for either. A function that has such a closure inlined has its layout in its code: it changed
//!   and is redirected itself, or its code is the same for both.

use super::edges::{Edges, Shower};
use super::{Escapes, Scene, Wholes, written_in};
use crate::findings::Place;
use crate::guard::demangle::identity;
use crate::guard::dwarf::{Debug, DieId};
use crate::guard::names::{Nature, nature};
use crate::guard::references::{self, By, Reference};
use crate::guard::types::Types;
use gimli::Result;
use livepatch_patch::LinkAddr;
use std::collections::{BTreeMap, BTreeSet};

/// Modules of `core` whose types may belong to something that lives on.
const KEEPERS: [&str; 6] = ["cell", "ptr", "pin", "task", "sync", "future"];

/// An out-of-line function that shows closures, or only ones that are generic over them: it may stand between those that
/// do.
pub(super) struct Shows {
    path: String,
    addr: u64,
    closures: BTreeSet<String>,
}

/// The functions that have to do with some of the closures, and where the closures' bodies are written.
pub(super) fn showers(
    debug: &Debug<'_>,
    edges: &Edges,
    (wholes, generic): (&Wholes, &Wholes),
    closures: &BTreeSet<String>,
    places: &mut BTreeMap<String, Place>,
) -> Result<Vec<Shows>> {
    let written: Vec<_> = closures.iter().filter_map(|name| Some((written_in(name)?, name))).collect();
    let mut found = Vec::new();
    for Shower { id, addr, types, body } in &edges.functions {
        let mut shown: BTreeSet<String> =
            types.iter().filter_map(|id| wholes.get(id)).flatten().cloned().collect();
        for (_, name) in written.iter().filter(|(own, _)| body.as_ref() == Some(own)) {
            shown.insert((*name).clone());
            if let Some(place) = debug.place(*id)? {
                places.entry((*name).clone()).or_insert(place);
            }
        }
        let shows = !shown.is_empty() || types.iter().any(|id| generic.contains_key(id));
        if let Some(addr) = addr.filter(|_| shows) {
            let path = debug.path(*id)?.unwrap_or_default();
            found.push(Shows { path, addr, closures: shown });
        }
    }
    Ok(found)
}

/// Exposes the closures that out-of-line functions show, unless all of the above holds.
pub(super) fn judge(
    scene: &Scene<'_, '_>,
    wholes: &Wholes,
    showers: &[Shows],
    result: &mut Escapes,
) -> Result<()> {
    let handed: BTreeSet<String> = showers.iter().flat_map(|f| f.closures.iter().cloned()).collect();
    let types = Types::new(&scene.image.debug);
    for (id, inside) in wholes {
        let inside: BTreeSet<String> = inside.intersection(&handed).cloned().collect();
        if !(inside.is_empty() || lives_in_frames(&types, *id)?) {
            result.expose(&inside, &format!("`{}` may hold it", types.name(Some(*id))?));
        }
    }
    for function in showers.iter().filter(|f| !scene.in_both && is_in_both(scene, f)) {
        result.expose(&function.closures, &format!("`{}` takes it in both builds", function.path));
    }
    if let Some(orphans) = scene.runs
        && !handed.iter().all(|closure| result.exposed.contains_key(closure))
    {
        for function in outlive(scene, orphans, showers) {
            result
                .expose(&function.closures, &format!("`{}` may run when its maker does not", function.path));
        }
    }
    Ok(())
}

/// Whether values of a type are part of what lies in frames: the closure itself, or what the language and `core` wrap
/// around it without taking memory for it. Only names tell: a box is described as a pointer, too.
fn lives_in_frames(types: &Types<'_, '_>, id: DieId) -> Result<bool> {
    let name = types.name(Some(id))?;
    Ok(match nature(&name) {
        Nature::Closure => true,
        Nature::Coroutine => false,
        Nature::Other => match name.strip_prefix("core::") {
            Some(rest) => !KEEPERS.contains(&rest.split("::").next().unwrap_or_default()),
            None => name.starts_with(['(', '[', '&', '*']),
        },
    })
}

/// Whether a function of the other build continues this one, so that it would be called with either build's values.
fn is_in_both(scene: &Scene<'_, '_>, function: &Shows) -> bool {
    let names = scene.image.elf.names_at(function.addr);
    names.is_empty()
        || scene.redirected.contains(&function.addr)
        || names.iter().any(|name| scene.others.contains(identity(name)))
}

/// Functions that can be in a frame without a redirected function below; first those that show it themselves.
fn outlive<'f>(
    scene: &Scene<'_, '_>,
    orphans: &BTreeSet<LinkAddr>,
    functions: &'f [Shows],
) -> Vec<&'f Shows> {
    let addrs: BTreeSet<u64> = functions.iter().map(|f| f.addr).collect();
    let strays = strays(&references::to(scene.image, &addrs), addrs, (&scene.redirected, orphans));
    let of = |stray: u64| functions.iter().filter(move |f| f.addr == stray);
    strays.into_iter().flat_map(of).collect()
}

/// Those functions that are referred to by something else than calls from makers and from the others, or jumps from there to
/// orphans. A caller that is such a function comes before what it calls.
fn strays(
    references: &[Reference],
    mut functions: BTreeSet<u64>,
    (makers, orphans): (&BTreeSet<u64>, &BTreeSet<LinkAddr>),
) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let is_known = |caller: u64| makers.contains(&caller) || functions.contains(&caller);
        let is_stray = |reference: &&Reference| {
            let is_held = match reference.by {
                By::Call(caller) => is_known(caller),
                By::Jump(from) => {
                    let is_awaited =
                        orphans.contains(&LinkAddr(reference.to)) || makers.contains(&reference.to);
                    is_known(from) && is_awaited
                }
                By::Address => false,
            };
            functions.contains(&reference.to) && !is_held
        };
        let more: BTreeSet<u64> = references.iter().filter(is_stray).map(|reference| reference.to).collect();
        if more.is_empty() {
            return all;
        }
        functions = &functions - &more;
        all.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::{By, LinkAddr, Reference, strays};
    use std::collections::BTreeSet;

    #[test]
    fn whatever_is_reached_otherwise_takes_along_what_it_calls() {
        let call = |caller: u64, to: u64| Reference { to, by: By::Call(caller) };
        let jump = |from: u64, to: u64| Reference { to, by: By::Jump(from) };
        let (makers, none) = (BTreeSet::from([1]), BTreeSet::new());
        let chain = [call(1, 10), call(10, 9), call(9, 10)];
        assert!(strays(&chain, [9, 10].into(), (&makers, &none)).is_empty());
        // Called from elsewhere; jumped to, and nothing waits for it; pointed at.
        for stray in [call(2, 10), jump(1, 10), Reference { to: 10, by: By::Address }] {
            let references = [chain.as_slice(), &[stray]].concat();
            assert_eq!(strays(&references, [9, 10].into(), (&makers, &none)), [10, 9]);
            assert_eq!(strays(&references, [10, 12].into(), (&makers, &none)), [10]);
        }
        let orphans = BTreeSet::from([LinkAddr(10)]);
        assert!(strays(&[jump(1, 10), call(10, 9)], [9, 10].into(), (&makers, &orphans)).is_empty());
        assert_eq!(strays(&[jump(2, 10)], [9, 10].into(), (&makers, &orphans)), [10]);
        let both = BTreeSet::from([1, 10]);
        assert!(strays(&[jump(1, 10)], [10].into(), (&both, &none)).is_empty());
    }
}
