//! Why an operation did not happen.

use crate::command::OWN;
use crate::report::Report;
use nix::errno::Errno;
use serde::Deserialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why nothing was done. Unless a variant says otherwise the program runs as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The patch cannot be applied safely to this process.
    #[error("{message}")]
    Refused {
        /// What is in the way and what to do.
        message: String,
        /// Of a selection that is not safe by itself: what it needs besides.
        missing: Vec<Missing>,
    },
    /// Changed code was in use by other threads for the whole time, or a debugger or another livepatch has the program.
    #[error("{message}")]
    Busy {
        /// Who was where, in one line.
        message: String,
        /// The threads that were in the way at the last attempt.
        inside: Vec<ThreadInside>,
        /// Who has the program: a debugger, or another livepatch.
        held_by: Option<Holder>,
    },
    /// The calling thread is inside a function that would change, so that it cannot wait for the change. Told at once, but with
    /// [`Options::tool`](crate::Options::tool) at the end of the tool's time.
    #[error(
        "the calling thread {reason}, and cannot wait for itself; call from another thread, or start one for it"
    )]
    CallerInside {
        /// Path of the changed function.
        function: String,
        /// What is in the way, with a verb.
        reason: String,
        /// What changed of the program, if that is inlined into the function: a task's body, say, in a function of its runtime.
        inlines: Option<String>,
        /// The calling thread's stack as far as it is known, innermost frame first.
        backtrace: Vec<String>,
    },
    /// Another thread of this program was applying or rolling back for the whole time.
    #[error("another operation of this program was under way for {} ms", .waited.as_millis())]
    InProgress {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The patch is for another build, or damaged, or the running code is not what it was made from.
    #[error("{0}")]
    Mismatch(String),
    /// The system does not let the helper trace this process. The text says what to grant.
    #[error("{0}")]
    Permission(String),
    /// The patch is in force already. Whether that is an error is for the caller to say.
    #[error("the patch is applied already")]
    AlreadyApplied(Box<Report>),
    /// The selection names something that the patch does not hold.
    #[error("{message}")]
    NotHeld {
        /// What was not found, in one line.
        message: String,
        /// Paths of everything that can be selected in the patch.
        holds: Vec<String>,
    },
    /// No applied patch is meant.
    #[error("{0}")]
    NothingToRollBack(String),
    /// The patch file cannot be read.
    #[error("cannot read the patch file {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The helper could not do its work, or not in time.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// Something in the environment failed while the helper worked, or (the text says so then) undoing failed, and the next
    /// operation on this process repairs it.
    #[error("{0}")]
    Environment(String),
}

/// Something that a selection needs and does not name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Missing {
    /// A selected function.
    pub selected: String,
    /// What has to be selected with it.
    pub needs: String,
    /// Why, as in "`selected` calls `needs`".
    pub reason: String,
}

/// A process that traces this one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// Whether it is another run of livepatch.
    pub livepatch: bool,
}

/// What is wrong with the helper process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperError {
    /// This program's executable cannot serve as its own helper.
    #[error(
        "this program cannot start itself as a helper ({reason}); name the livepatch tool with `Options::tool`"
    )]
    Unavailable {
        /// Why.
        reason: &'static str,
    },
    /// It could not be started.
    #[error("cannot start {what}: {source}{}", advice(.what, .source))]
    Start {
        /// What was to be started.
        what: String,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
    /// Something that it needs could not be made.
    #[error("cannot make the helper's {what}: {source}{}", limit(.source).unwrap_or_default())]
    Prepare {
        /// What it is.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
    /// It ended, or was killed, without a report. What it had begun is undone as far as the system does that; the next
    /// operation on this process repairs the rest.
    #[error("the helper ended without a report{}", quoted(.said))]
    Ended {
        /// What it wrote to standard error.
        said: String,
    },
    /// It had no answer at the deadline, or was not even started, and runs no more; as [`Self::Ended`] otherwise.
    #[error("the helper had no answer after {} ms, when the deadline passed, and was ended", .waited.as_millis())]
    Deadline {
        /// How long it had.
        waited: Duration,
    },
    /// Its report is not understood: a tool of another version, or something that is not the tool.
    #[error("the helper's report is not understood: {reason}")]
    Report {
        /// What is wrong.
        reason: String,
    },
}

/// A thread that stood in the way.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ThreadInside {
    /// Thread id.
    pub tid: i32,
    /// Thread name.
    pub name: String,
    /// Path of the changed function that it is inside of, if that is the reason.
    pub function: Option<String>,
    /// What is in the way.
    pub reason: String,
    /// What changed of the program, if that is inlined into the function.
    #[serde(default)]
    pub inlines: Option<String>,
    /// Its stack, innermost frame first.
    pub backtrace: Vec<String>,
}

/// What helps where something cannot be started.
fn advice(what: &str, source: &std::io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::NotFound if what.as_bytes() == OWN.to_bytes() && !has_proc() => {
            "; livepatch needs the processes' file system, which is not there: mount it at /proc"
        }
        ErrorKind::PermissionDenied | ErrorKind::NotFound if what.as_bytes() == OWN.to_bytes() => {
            "; if the executable cannot be started again (another root folder, a file system mounted noexec), name the livepatch tool with \
             `Options::tool`"
        }
        ErrorKind::PermissionDenied | ErrorKind::NotFound => {
            "; `Options::tool` has to be the path of an executable `livepatch` tool"
        }
        _ => limit(source).unwrap_or_default(),
    }
}

/// Whether the kernel's file system with processes is where it belongs.
fn has_proc() -> bool {
    Path::new("/proc/self/stat").exists()
}

/// The limit of the system that was met, if one was.
fn limit(source: &std::io::Error) -> Option<&'static str> {
    match Errno::from_raw(source.raw_os_error()?) {
        Errno::EMFILE => Some("; raise the limit on open files (RLIMIT_NOFILE), or close some"),
        // Also said where there is no memory for the stack of a thread.
        Errno::EAGAIN => Some(
            "; raise the limit on processes (RLIMIT_NPROC, or that of the control group) or on memory (RLIMIT_AS, RLIMIT_DATA), whichever was \
             met",
        ),
        // Also said where no further process can be.
        Errno::ENOMEM => Some(
            "; raise the limit on memory (RLIMIT_AS, RLIMIT_DATA, or that of the control group), or, if the first process of the namespace \
             for this program's children has ended, name none with `unshare` or `setns`",
        ),
        _ => None,
    }
}

fn quoted(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!("; it said: {text}") }
}
