//! The engine's answer to a request, in the form of the command line's JSON.

use super::{caller, failure};
use crate::answer::code;
use crate::request::{Operation, Request, Which};
use livepatch_apply::log;
use livepatch_apply::{ApplyError, ApplyOptions, RollbackOptions, SelectError, Selector};
use livepatch_patch::chain;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// How long it is tried to find out whether the caller itself is in the way: a busy machine may need the longer times.
const TRIES: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(4)];

/// Does what the request says.
pub(super) fn run(request: &Request, patch: &[u8]) -> Value {
    match &request.operation {
        Operation::Apply => answer(apply(request, patch)),
        Operation::Rollback(which) => answer(rollback(request, which)),
        Operation::Status => answer(livepatch_apply::status(request.pid)),
    }
}

fn apply(request: &Request, patch: &[u8]) -> Result<livepatch_apply::ApplyReport, ApplyError> {
    let options = ApplyOptions {
        policy: request.policy,
        deadline: request.left(),
        dry_run: request.dry_run,
        selection: request.selection.clone(),
        leave_running: request.leave_running.clone(),
    };
    if caller::may_be_inside(request.pid, &request.frames, Some(patch)) {
        for deadline in tries(request) {
            let short = ApplyOptions { deadline, ..options.clone() };
            match livepatch_apply::check(request.pid, patch, &short) {
                Err(error) if caller::is_inside(&error, request.tid) => return Err(error),
                Ok(_) | Err(ApplyError::Busy { .. }) => break,
                // Whatever else is wrong, the operation itself will say, unless it was the short time.
                Err(error) => {
                    log::debug(format_args!("cannot tell whether the calling thread is inside: {error}"))
                }
            }
        }
    }
    livepatch_apply::apply(request.pid, patch, &ApplyOptions { deadline: request.left(), ..options })
}

fn tries(request: &Request) -> impl Iterator<Item = Duration> {
    TRIES.into_iter().filter(|time| *time * 4 < request.left())
}

fn rollback(request: &Request, which: &Which) -> Result<livepatch_apply::RollbackReport, ApplyError> {
    let selector = match which {
        Which::Last => Selector::Last,
        Which::Id(id) => Selector::Id(id.clone()),
        Which::All => Selector::All,
    };
    let options = RollbackOptions { policy: request.policy, deadline: request.left() };
    if caller::may_be_inside(request.pid, &request.frames, None) {
        for deadline in tries(request) {
            let short = RollbackOptions { deadline, ..options };
            match livepatch_apply::rollback(request.pid, &selector, &short) {
                Ok(report) => return Ok(report),
                Err(error) if caller::is_inside(&error, request.tid) => return Err(error),
                Err(ApplyError::Busy { .. }) => break,
                Err(error) => {
                    log::debug(format_args!("cannot tell whether the calling thread is inside: {error}"))
                }
            }
        }
    }
    livepatch_apply::rollback(
        request.pid,
        &selector,
        &RollbackOptions { deadline: request.left(), ..options },
    )
}

/// The program may not even be looked at. The engine is refused the same, and says what to grant.
pub(super) fn refused(pid: i32, error: &std::io::Error) -> Value {
    match livepatch_apply::status(pid) {
        Err(error) => describe(&error),
        Ok(_) => failure(code::PERMISSION, format!("cannot look at process {pid}: {error}")),
    }
}

fn answer<T: Serialize>(result: Result<T, ApplyError>) -> Value {
    match result {
        Ok(report) => serde_json::to_value(report)
            .unwrap_or_else(|error| failure(code::ERROR, format!("the report cannot be written: {error}"))),
        Err(error) => describe(&error),
    }
}

fn describe(error: &ApplyError) -> Value {
    let exit = match error {
        ApplyError::Busy { .. } | ApplyError::Held { .. } => code::BUSY,
        ApplyError::Mismatch(_) => code::MISMATCH,
        ApplyError::Permission(_) => code::PERMISSION,
        ApplyError::Lost(_) => code::LOST,
        ApplyError::Selection(SelectError::NotHeld { .. }) | ApplyError::NothingToRollBack(_) => code::USAGE,
        ApplyError::Refused { .. }
        | ApplyError::Selection(SelectError::Indivisible { .. } | SelectError::Incomplete { .. }) => {
            code::REFUSED
        }
        ApplyError::Environment { .. } | ApplyError::NotUndone { .. } => code::ERROR,
    };
    let mut object = failure(exit, chain(error));
    if let (Some(object), Value::Object(details)) = (object.as_object_mut(), error.details()) {
        object.extend(details);
    }
    object
}
