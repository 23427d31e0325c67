//! `status` and `ps`: what the registries say. Nothing is stopped or changed.

use crate::error::ApplyError;
use crate::registry::live;
use crate::report::Status;
use crate::session::{View, patch_reports};
use livepatch_process::{Pid, Process};

/// What livepatch did to a process.
///
/// # Errors
/// The process cannot be read, or a registry in it is damaged.
pub fn status(pid: i32) -> Result<Status, ApplyError> {
    Ok(status_of(&View::open_to_read(pid)?))
}

fn status_of(view: &View) -> Status {
    let mut patches = Vec::new();
    let mut interrupted = false;
    for (module, found) in view.patched() {
        if let (Some(id), Some(state)) = (&module.image.build_id, &found.state) {
            patches.extend(patch_reports(id, state));
            interrupted |= state.journal.is_some();
        }
    }
    let executable = view.modules.executable();
    let build_id = executable.and_then(|module| module.image.build_id.as_ref());
    Status {
        pid: view.process.pid().0,
        build_id: build_id.map(ToString::to_string).unwrap_or_default(),
        executable: executable.map(|module| module.path.display().to_string()).unwrap_or_default(),
        patches,
        interrupted,
    }
}

/// All processes with a registry in them, as far as this user may look.
///
/// # Errors
/// The list of processes cannot be read.
pub fn ps() -> Result<Vec<Status>, ApplyError> {
    let mut pids = livepatch_process::process_ids()
        .map_err(|error| ApplyError::environment("the list of processes cannot be read", error))?;
    pids.sort_unstable();
    Ok(pids.into_iter().filter_map(|pid| patched(pid.0)).collect())
}

/// The status of a process that has a registry. Processes that cannot be read have none that matters to this user.
fn patched(pid: i32) -> Option<Status> {
    let process = Process::open_to_read(Pid(pid)).ok()?;
    let maps = process.maps().ok()?;
    let found = live::find_all(&process, &maps).ok()?;
    if found.is_empty() {
        return None;
    }
    View::open_to_read(pid).ok().map(|view| status_of(&view)).filter(|status| !status.patches.is_empty())
}
