//! The thread that waits for the helper: it cannot leave a function before the helper is done, so if it is inside of what
//! changes, trying until the deadline is pointless.
//!
//! Its return addresses are a hint that costs no hold. Only where they give cause is the engine asked, which proves it.

use livepatch_apply::ApplyError;
use livepatch_apply::target::Modules;
use livepatch_patch::{Patch, RunAddr};
use livepatch_process::{Pid, Process};

/// Whether one of these return addresses lies in a function that the patch replaces, or outside of every module, where patches
/// are. Any doubt is a yes.
pub(super) fn may_be_inside(pid: i32, frames: &[u64], patch: Option<&[u8]>) -> bool {
    look(pid, frames, patch).unwrap_or(true)
}

fn look(pid: i32, frames: &[u64], patch: Option<&[u8]>) -> Option<bool> {
    let process = Process::open(Pid(pid)).ok()?;
    let modules = Modules::read(&process).ok()?;
    // A call at a function's very end returns behind it.
    let calls: Vec<RunAddr> = frames.iter().map(|frame| RunAddr(frame.saturating_sub(1))).collect();
    if calls.iter().any(|at| modules.containing(*at).is_none()) {
        return Some(true);
    }
    let Some(patch) = patch else { return Some(false) };
    let patch = Patch::from_bytes(patch).ok()?;
    let bias = modules.with_build_id(&patch.meta.target.build_id).ok()?.image.bias;
    Some(patch.meta.redirects.iter().any(|redirect| {
        let start = redirect.old.at(bias);
        let range = start..start.offset(redirect.old_size.cast_signed());
        calls.iter().any(|at| range.contains(at))
    }))
}

/// Whether the engine found the thread inside of what changes.
pub(super) fn is_inside(error: &ApplyError, tid: i32) -> bool {
    match error {
        ApplyError::Busy { inside, .. } => inside.iter().any(|t| t.tid == tid && t.function.is_some()),
        _ => false,
    }
}
