//! Functions whose calls under way may go on in the old code while new calls run the new one.

use super::{Job, Prepared};
use crate::branches::branches_into_entry;
use crate::error::{ApplyError, LeaveRunning, ThreadInside};
use crate::guard::{Guard, Inside};
use crate::landing::Landing;
use crate::options::ApplyOptions;
use crate::registry::Location;
use crate::report::{Policy, StillInside};
use crate::transition::drain;
use crate::transition::entries::Entries;
use crate::unwind::Tables;
use livepatch_patch::{Patch, RunAddr};
use livepatch_process::{ProcessError, Seized, log};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long threads are looked at, at most, to tell who is in old code.
const LOOK: Duration = Duration::from_secs(1);

/// The functions that the caller wants to be left running (indices of redirects).
pub(super) fn chosen(patch: &Patch, options: &ApplyOptions) -> Result<BTreeSet<usize>, ApplyError> {
    let chosen = patch.functions_named(&options.leave_running)?;
    match chosen.iter().find_map(|at| Some((*at, tied(patch, *at)?))) {
        None => Ok(chosen),
        Some((at, why)) => {
            let path = &patch.meta.redirects[at].path;
            Err(ApplyError::refused(format!("calls of `{path}` cannot be left running: {why}")))
        }
    }
}

/// Why the old code of a function does not go together with the new code of others.
fn tied(patch: &Patch, at: usize) -> Option<String> {
    let redirects = &patch.meta.redirects;
    let tied = redirects[at].origin.iter().flat_map(|origin| &origin.tied).next();
    let other = redirects.get(*tied? as usize)?;
    Some(format!(
        "its old code may have been compiled for the old code of `{}`, which changes, too",
        other.path
    ))
}

impl Job<'_> {
    /// How calls of a function that are under way are treated.
    pub(super) fn policy_for(&self, function: usize) -> Policy {
        if self.left.contains(&function) { Policy::Immediate } else { self.options.policy }
    }

    /// Old calls that go on must not branch into what the jumps overwrite.
    pub(super) fn check_entries(&self, prepared: &Prepared<'_>) -> Result<(), ApplyError> {
        let redirects = self.patch.meta.redirects.iter().enumerate();
        for (at, redirect) in redirects.filter(|(at, _)| self.policy_for(*at) == Policy::Immediate) {
            let Some(why) = self.meets_jump(prepared, at) else { continue };
            let how = match self.options.policy {
                Policy::Immediate => "use the quiescent policy",
                Policy::Quiescent | Policy::Snapshot => "its calls cannot be left running",
            };
            return Err(ApplyError::refused(format!("`{}`: {why}; {how}", redirect.path)));
        }
        Ok(())
    }

    fn meets_jump(&self, prepared: &Prepared<'_>, at: usize) -> Option<String> {
        let start = self.patch.meta.redirects[at].old.at(prepared.module.image.bias);
        let meets = branches_into_entry(start, &prepared.code[at], &prepared.view.process);
        meets.then(|| "it may branch back into its first instructions, which the jump overwrites".to_owned())
    }

    /// Lets go of the process, and tells who is in the old code of functions whose calls may finish there.
    pub(super) fn leave(
        &self,
        prepared: &Prepared<'_>,
        tables: &Tables,
        seized: Seized,
    ) -> (Result<(), ProcessError>, Vec<StillInside>) {
        let process = &prepared.view.process;
        let mut guard = Guard::default();
        let redirects = self.patch.meta.redirects.iter().zip(&prepared.code).enumerate();
        let left = redirects.filter(|(at, _)| self.policy_for(*at) == Policy::Immediate);
        let mut any = false;
        for (_, (redirect, code)) in left {
            let at = redirect.old.at(prepared.module.image.bias);
            guard.function(Policy::Quiescent, at, code, &redirect.path, process);
            any = true;
        }
        if self.options.policy == Policy::Immediate {
            let mut state = prepared.state();
            state.patches.retain(|record| record.id != self.id);
            any |= !state.patches.is_empty();
            guard.patches(Policy::Quiescent, &state, &self.same_as_earlier(&state));
        }
        if !any {
            return (seized.leave(), Vec::new());
        }
        let nowhere = Landing::of(Location { at: RunAddr(0) });
        let entries = Entries::new(process, nowhere, &[], &[], &BTreeMap::new());
        let deadline = Instant::now() + LOOK;
        let who = entries.and_then(|entries| {
            drain::who(seized, drain::Job { process, entries: &entries, tables, guard: &guard, deadline })
        });
        let (seized, inside) = match who {
            Ok(found) => found,
            Err(error) => {
                log::warn(format_args!("applied; who is still in old code could not be told: {error}"));
                return (Ok(()), Vec::new());
            }
        };
        let still = |inside: &Inside| {
            Some(StillInside {
                tid: inside.tid.0,
                name: process.thread_name(inside.tid).unwrap_or_default(),
                function: inside.function.clone()?,
            })
        };
        let still_inside = inside.iter().filter_map(still).collect();
        (seized.leave(), still_inside)
    }

    /// Says of each thread inside of a replaced function whether that could be left running: what is advised is not refused.
    pub(super) fn advise(&self, prepared: &Prepared<'_>, error: ApplyError) -> ApplyError {
        let ApplyError::Busy { waited_ms, process, mut inside } = error else { return error };
        if self.options.policy != Policy::Immediate {
            for thread in &mut inside {
                thread.leave_running = self.way_out(prepared, thread);
            }
        }
        ApplyError::Busy { waited_ms, process, inside }
    }

    fn way_out(&self, prepared: &Prepared<'_>, thread: &ThreadInside) -> Option<LeaveRunning> {
        let path = thread.function.as_ref().filter(|_| thread.patch.is_none())?;
        let redirect = self.patch.meta.redirects.iter().find(|redirect| redirect.path == *path)?;
        let name = redirect.origin.as_ref().map_or_else(|| path.clone(), |origin| origin.item.full());
        // One name may stand for several functions, and each of them has to be fit.
        let meant = self.patch.functions_named(std::slice::from_ref(&name)).ok()?;
        let objection = |at: &usize| tied(self.patch, *at).or_else(|| self.meets_jump(prepared, *at));
        let objection = meant.iter().find_map(objection);
        Some(LeaveRunning { path: name, objection })
    }
}
