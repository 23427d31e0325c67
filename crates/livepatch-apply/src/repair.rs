//! Settling what a killed run left in the registry.

use crate::error::{ApplyError, Mismatch};
use crate::guard::Guard;
use crate::landing::{Landing, World};
use crate::load::Loader;
use crate::registry::live::Found;
use crate::registry::{EntryWrite, Journal, PatchState, State};
use crate::report::Policy;
use crate::safepoint::Rules;
use crate::scope::Scope;
use crate::session::{UNDO_LIMIT, View};
use crate::switch::{Done, Switch, originals};
use crate::target::Module;
use crate::transition::entries::{Entries, read_code};
use crate::transition::net::{self, Serialiser};
use crate::unwind::Tables;
use livepatch_process::{Breakpoints, Seized};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Largest function that a registry is believed about.
const MAX_FUNCTION: u64 = 16 << 20;

/// Settles what a killed run left in the registry. Returns what was done, and the process still seized.
pub(crate) fn repair(
    view: &View,
    mut seized: Seized,
    found: &Found,
    deadline: Instant,
) -> Result<(Seized, String), ApplyError> {
    let Some(mut state) = found.state.clone() else { return Ok((seized, String::new())) };
    let Some(journal) = state.journal.clone() else { return Ok((seized, String::new())) };
    let process = &view.process;
    let commit = |state: &State| found.location.commit(&mut &*process, state).map_err(ApplyError::from);
    match journal {
        Journal::Loading { .. } => {
            let given_back = unload(view, &mut seized, found, &mut state, deadline)?;
            let text = match given_back {
                true => "the memory of a patch that a run which did not end was loading was given back",
                false => {
                    "a patch that a run which did not end was loading stays mapped (its unwind tables may be in use)"
                }
            };
            Ok((seized, text.into()))
        }
        Journal::Switching { writes, after, before, by_breakpoints: true } => {
            let landing = Landing::of(found.location);
            let originals = originals(&state);
            let entries = Entries::new(process, landing, &writes, &state.pads, &originals)?;
            let world = finish(&mut seized, &entries, deadline)?;
            let text = match world {
                World::Before => {
                    state.cancel(&before);
                    "a switch that a killed run had begun was taken back"
                }
                World::After => {
                    state.settle(&after);
                    "a switch that a killed run had committed to was finished"
                }
            };
            commit(&state)?;
            Ok((seized, text.into()))
        }
        Journal::Switching { writes, after, before, by_breakpoints: false } => {
            let mut done = Vec::new();
            for write in &writes {
                let code = read_code(process, write.at)?;
                if code == write.after && code != write.before {
                    done.push(*write);
                } else if code != write.before {
                    return Err(
                        Mismatch::Entry { path: "a patched function".into(), address: write.at }.into()
                    );
                }
            }
            if done.len() == writes.len() && !writes.is_empty() {
                state.settle(&after);
                commit(&state)?;
                return Ok((seized, "a switch that a killed run had finished was recorded".into()));
            }
            if done.is_empty() {
                state.cancel(&before);
                commit(&state)?;
                return Ok((seized, "a switch that a killed run had not begun was cancelled".into()));
            }
            let count = done.len();
            // Since that run was killed, threads may have come to the new code by what it had written: a patch of which that is so is not
            // forgotten any more, whatever becomes of this run.
            state.settle(&before);
            state.journal = found.state.as_ref().and_then(|state| state.journal.clone());
            commit(&state)?;
            let tables = view.tables()?;
            let switch = put_back(view, &tables, found, &state, done, before, deadline)?;
            match switch.put_back(seized, &mut state) {
                Ok(Done { seized, .. }) => {
                    Ok((seized, format!("{count} entries that a killed run had written were put back")))
                }
                Err(failed) => {
                    failed.seized.map_or(Ok(()), Seized::leave)?;
                    Err(failed.why.into_error(view, Duration::ZERO, None))
                }
            }
        }
    }
}

/// Takes back what a killed run was loading.
fn unload(
    view: &View,
    seized: &mut Seized,
    found: &Found,
    state: &mut State,
    deadline: Instant,
) -> Result<bool, ApplyError> {
    let build_id = &found.header.build_id;
    let ours = |m: &&Module| m.image.build_id.as_ref() == Some(build_id) && m.image.bias == state.bias;
    let module = view.modules.list.iter().find(ours).ok_or_else(|| {
        ApplyError::refused("the module of a patch that a killed run was loading is not loaded any more")
    })?;
    let scope = Scope::of(&view.process, &view.modules, module)?;
    let loader = Loader {
        process: &view.process,
        modules: &view.modules,
        module,
        scope: &scope,
        rules: &Rules::new(&view.process, &view.modules)?,
        tables: &view.tables()?,
        location: found.location,
        deadline,
    };
    let unwinder = crate::load::unwinder(&view.process, &view.modules, module, &scope)?;
    loader.unload(seized, state, unwinder)
}

/// Leaves no breakpoint and no net behind, in the world that was committed to.
fn finish(seized: &mut Seized, entries: &Entries<'_>, deadline: Instant) -> Result<World, ApplyError> {
    let limit = deadline.max(Instant::now() + UNDO_LIMIT);
    seized.set_breakpoints(entries.breakpoints());
    let mut events = Vec::new();
    let mut serialiser = Serialiser::start();
    let world = entries.finish(|| net::serialise(seized, &mut serialiser, limit, &mut events))?;
    net::remove(seized, entries.landing(), &BTreeSet::new(), &mut events, limit)?;
    seized.set_breakpoints(Breakpoints::new());
    Ok(world)
}

fn put_back<'a>(
    view: &'a View,
    tables: &'a Tables,
    found: &Found,
    state: &State,
    done: Vec<EntryWrite>,
    before: Vec<(usize, PatchState)>,
    deadline: Instant,
) -> Result<Switch<'a>, ApplyError> {
    let mut guard = Guard::default();
    guard.patches(Policy::Snapshot, state, &[]);
    for function in state.patches.iter().flat_map(|record| &record.functions) {
        if done.iter().any(|write| write.at == function.old) {
            let code = view.process.read_vec(function.old, function.old_size.min(MAX_FUNCTION) as usize)?;
            guard.function(Policy::Snapshot, function.old, &code, &function.path, &view.process);
        }
    }
    // In the opposite order: see `Job::switch`.
    let taken_back =
        done.into_iter().rev().map(|w| EntryWrite { at: w.at, before: w.after, after: w.before });
    let writes = taken_back.collect();
    Ok(Switch {
        process: &view.process,
        location: found.location,
        tables,
        guard,
        policy: Policy::Snapshot,
        deadline,
        writes,
        after: before.clone(),
        before,
    })
}
