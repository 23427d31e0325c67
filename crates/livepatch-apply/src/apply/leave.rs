//! Functions whose calls under way may go on in the old code while new calls run the new one.

use super::{Job, Prepared};
use crate::branches::branches_into_entry;
use crate::error::{ApplyError, LeaveRunning, ThreadInside};
use crate::options::ApplyOptions;
use crate::report::Policy;
use livepatch_patch::Patch;
use std::collections::BTreeSet;

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

    /// Says of each thread inside of a replaced function whether that could be left running: what is advised is not refused.
    pub(super) fn advise(&self, prepared: &Prepared<'_>, error: ApplyError) -> ApplyError {
        let ApplyError::Busy { waited_ms, mut inside } = error else { return error };
        if self.options.policy != Policy::Immediate {
            for thread in &mut inside {
                thread.leave_running = self.way_out(prepared, thread);
            }
        }
        ApplyError::Busy { waited_ms, inside }
    }

    fn way_out(&self, prepared: &Prepared<'_>, thread: &ThreadInside) -> Option<LeaveRunning> {
        let path = thread.function.as_ref()?;
        let redirect = self.patch.meta.redirects.iter().find(|redirect| redirect.path == *path)?;
        let name = redirect.origin.as_ref().map_or_else(|| path.clone(), |origin| origin.item.full());
        // One name may stand for several functions, and each of them has to be fit.
        let meant = self.patch.functions_named(std::slice::from_ref(&name)).ok()?;
        let objection = |at: &usize| tied(self.patch, *at).or_else(|| self.meets_jump(prepared, *at));
        let objection = meant.iter().find_map(objection);
        Some(LeaveRunning { path: name, objection })
    }
}
