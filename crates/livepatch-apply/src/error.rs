//! Why an operation did not happen, in the terms of the command line's exit codes.

use livepatch_patch::{BuildId, Digest, RunAddr, SelectError};
use livepatch_process::{InterruptError, PerfMapError, ProcessError, RemoteError, Tracer};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Why nothing was done. Unless a variant says otherwise the process runs as before.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Changed code was in use for the whole time (exit code 5).
    #[error("not quiescent within {waited_ms} ms: {}", summary(.process.as_deref(), .inside))]
    Busy {
        /// How long it was tried: the time limit, unless it was over sooner.
        waited_ms: u64,
        /// What holds up the process as a whole.
        process: Option<String>,
        /// Who was in the way at the last attempt.
        inside: Vec<ThreadInside>,
    },
    /// Somebody else traces the process: a debugger, which is not waited for, or another run of livepatch, for the whole time
    /// (exit code 5).
    #[error("process {pid} is held by {by}; {}", advice(.by, *.waited_ms))]
    Held {
        /// The process.
        pid: i32,
        /// Who holds it.
        by: Tracer,
        /// How long the end of that was waited for.
        waited_ms: u64,
    },
    /// The patch does not fit the process, or is damaged (exit code 6).
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The system does not let this user do it (exit code 7).
    #[error("{0}")]
    Permission(String),
    /// The process is gone (exit code 8).
    #[error("{0}")]
    Lost(String),
    /// The patch cannot be applied safely to this process (exit code 4).
    #[error("refused: {reason}")]
    Refused {
        /// What is in the way and what to do.
        reason: String,
    },
    /// The selected part of the patch cannot be applied (exit code 2 or 4, see there).
    #[error(transparent)]
    Selection(#[from] SelectError),
    /// There is no applied patch that the selector means (exit code 2).
    #[error("nothing to roll back: {0}")]
    NothingToRollBack(String),
    /// Something in the environment failed (exit code 1).
    #[error("{what}")]
    Environment {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Undoing failed as well; the process may run some of the changed code (exit code 1).
    #[error("{what}; undoing it failed, too: {undo}; the next run of livepatch on this process repairs it")]
    NotUndone {
        /// What failed first.
        what: String,
        /// What failed while undoing.
        undo: String,
    },
}

/// How a patch and a process do not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// No module of the process has the patch's build-id.
    #[error(
        "the patch is for build-id {wanted}, which is not loaded in this process (its executable has {})",
        .running.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
    )]
    NoSuchBuild {
        /// What the patch is for.
        wanted: BuildId,
        /// Build-id of the main executable.
        running: Option<BuildId>,
    },
    /// The patch file is damaged or not one.
    #[error("the patch file cannot be used: {0}")]
    Patch(String),
    /// A function is not where the patch says.
    #[error("`{path}` at {address} is not inside the module's code; the patch is damaged")]
    Outside {
        /// Path of the function.
        path: String,
        /// Where the patch has it.
        address: RunAddr,
    },
    /// The running code is not what the patch was made from.
    #[error("the code of `{path}` at {address} differs from the baseline; something else changed it")]
    Code {
        /// Path of the function.
        path: String,
        /// Where it is.
        address: RunAddr,
    },
    /// The entry is neither as the image nor as the registry has it.
    #[error("the entry of `{path}` at {address} holds neither the original code nor our jump")]
    Entry {
        /// Path of the function.
        path: String,
        /// Where it is.
        address: RunAddr,
    },
    /// The thread-local segment differs from what the patch was made for.
    #[error("the module's thread-local segment differs from the baseline's")]
    Tls,
    /// A file that should be a core dump is none.
    #[error("{0}")]
    Core(String),
    /// A mapped patch was changed by somebody else.
    #[error("the contents of patch {id} in the process were changed")]
    Contents {
        /// Which patch.
        id: Digest,
    },
}

/// A thread that stood in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadInside {
    /// Thread id.
    pub tid: i32,
    /// Thread name.
    pub name: String,
    /// Path of the changed function that it is inside of, if that is the reason.
    pub function: Option<String>,
    /// The patch whose code of that function it is inside of, if it is not the program's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<String>,
    /// What is in the way.
    pub reason: String,
    /// What changed of the program, if that is inlined into the function: a task's body, say, in a function of its runtime.
    pub inlines: Option<String>,
    /// Its stack, innermost frame first; of a deep one the 32 frames of either end, with a line in between that says how many
    /// more there are.
    pub backtrace: Vec<String>,
    /// If it is inside a function of the patch: whether calls of that could be left running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave_running: Option<LeaveRunning>,
}

/// Whether calls of a function can be left running ([`crate::ApplyOptions::leave_running`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaveRunning {
    /// Path of the function as the option takes it.
    pub path: String,
    /// Why that would be refused.
    pub objection: Option<String>,
}

fn advice(by: &Tracer, waited_ms: u64) -> String {
    match by.livepatch {
        true => format!("it was not over after {waited_ms} ms, try again later"),
        false => "detach or end that program, then try again".to_owned(),
    }
}

fn summary(process: Option<&str>, inside: &[ThreadInside]) -> String {
    let line = |t: &ThreadInside| match t.name.as_str() {
        "" => format!("thread {} {}", t.tid, t.reason),
        name => format!("thread {} ({name}) {}", t.tid, t.reason),
    };
    let process = process.map(|what| format!("the process {what}"));
    let mut lines: Vec<String> = process.into_iter().chain(inside.iter().take(3).map(line)).collect();
    if inside.len() > 3 {
        lines.push(format!("and {} more", inside.len() - 3));
    }
    lines.join("; ")
}

impl ApplyError {
    /// What is known besides the text, under the stable keys of the command line's JSON; an empty object or more.
    pub fn details(&self) -> Value {
        match self {
            Self::Busy { waited_ms, process, inside } => {
                json!({"waited_ms": waited_ms, "process": process, "inside": inside})
            }
            Self::Held { by, waited_ms, .. } => {
                let held_by = json!({"pid": by.pid.0, "name": by.name, "livepatch": by.livepatch});
                json!({"waited_ms": waited_ms, "held_by": held_by})
            }
            Self::Selection(SelectError::NotHeld { unknown, holds }) => {
                json!({"unknown": unknown, "holds": holds})
            }
            Self::Selection(SelectError::Incomplete { missing }) => json!({"missing": missing}),
            Self::Selection(SelectError::Indivisible { .. })
            | Self::Mismatch(_)
            | Self::Permission(_)
            | Self::Lost(_)
            | Self::Refused { .. }
            | Self::NothingToRollBack(_)
            | Self::Environment { .. }
            | Self::NotUndone { .. } => json!({}),
        }
    }

    /// What was busy in one of the steps was so for the operation that began at a time and had a limit, not for as long as that
    /// step lasted.
    pub(crate) fn within(mut self, started: Instant, limit: Duration) -> Self {
        if let Self::Busy { waited_ms, .. } = &mut self {
            *waited_ms = started.elapsed().min(limit).as_millis() as u64;
        }
        self
    }

    /// An environment error with its cause.
    pub(crate) fn environment(
        what: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Environment { what: what.into(), source: Some(Box::new(source)) }
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }
}

impl From<ProcessError> for ApplyError {
    fn from(error: ProcessError) -> Self {
        let text = error.to_string();
        match error {
            ProcessError::Permission { .. } => Self::Permission(text),
            ProcessError::NoSuchProcess { .. } | ProcessError::Lost { .. } => Self::Lost(text),
            ProcessError::WrongArchitecture { .. } => Self::Mismatch(Mismatch::Patch(text)),
            ProcessError::KernelThread { .. } => Self::Refused { reason: text },
            ProcessError::AlreadyTraced { pid, tracer, .. } => {
                Self::Held { pid: pid.0, by: tracer, waited_ms: 0 }
            }
            other => Self::environment("the process could not be examined", other),
        }
    }
}

impl From<PerfMapError> for ApplyError {
    fn from(error: PerfMapError) -> Self {
        match error {
            PerfMapError::Process(error) => error.into(),
            PerfMapError::Untouchable { .. } => Self::Refused { reason: error.to_string() },
            PerfMapError::Io { .. } => Self::environment("the process's perf map is not complete", error),
        }
    }
}

impl From<InterruptError> for ApplyError {
    fn from(error: InterruptError) -> Self {
        match error {
            InterruptError::Process(error) => error.into(),
            other => Self::environment("the process could not be stopped", other),
        }
    }
}

impl From<RemoteError> for ApplyError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Process(error) => error.into(),
            RemoteError::Forbidden { .. } => Self::Refused {
                reason: format!("{error}; nothing was changed; restart the program with the call permitted"),
            },
            RemoteError::Slow { tid, ref name, waited, .. } => {
                let inside = ThreadInside {
                    tid: tid.0,
                    name: name.clone(),
                    function: None,
                    patch: None,
                    reason: error.without_thread(),
                    inlines: None,
                    backtrace: Vec::new(),
                    leave_running: None,
                };
                Self::Busy { waited_ms: waited.as_millis() as u64, process: None, inside: vec![inside] }
            }
            other => Self::environment("a call inside the process failed", other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use livepatch_process::Tid;

    #[test]
    fn a_slow_call_is_told_as_the_operation_it_belongs_to() {
        let waited = Duration::from_millis(6);
        let slow = || RemoteError::Slow { tid: Tid(7), name: "worker".into(), number: 9, waited };
        let limit = Duration::from_secs(3);
        let long_ago = Instant::now() - Duration::from_secs(9);
        let told = ApplyError::from(slow()).within(long_ago, limit).to_string();
        let words = "thread 7 (worker) did not get through system call 9 in the 6 ms that were left for it";
        assert_eq!(told, format!("not quiescent within 3000 ms: {words}"));
        assert_eq!(slow().to_string(), words);
        let sooner = ApplyError::from(slow()).within(Instant::now(), limit).to_string();
        assert!(!sooner.contains("3000 ms"), "{sooner}");
    }
}
