//! What can go wrong with a process, in the terms that the command line's exit codes need.

use crate::{Pid, ThreadState, Tid};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use std::time::Duration;

/// Why a process cannot be used, or can no longer be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// There is no process of that id, or only its zombie is left.
    #[error("no process {pid}")]
    NoSuchProcess {
        /// The id that was asked for.
        pid: Pid,
    },
    /// A kernel thread: it has no user memory and no program.
    #[error("process {pid} is a kernel thread, it runs no program")]
    KernelThread {
        /// The process.
        pid: Pid,
    },
    /// The kernel does not let this user trace the process.
    #[error("not permitted to trace process {pid}: {hint}")]
    Permission {
        /// The process.
        pid: Pid,
        /// What to grant.
        hint: String,
    },
    /// A debugger, `strace` or another livepatch holds a thread of the process.
    #[error("thread {tid} of process {pid} is traced by {tracer}")]
    AlreadyTraced {
        /// The process.
        pid: Pid,
        /// The thread that is held.
        tid: Tid,
        /// Who holds it.
        tracer: Tracer,
    },
    /// Not a 64-bit x86-64 program.
    #[error("process {pid} is {found}, only 64-bit x86-64 programs can be patched")]
    WrongArchitecture {
        /// The process.
        pid: Pid,
        /// What it is instead.
        found: String,
    },
    /// The process ended, or was replaced by `execve`, while it was in use.
    #[error("process {pid} {how}")]
    Lost {
        /// The process.
        pid: Pid,
        /// How it went.
        how: Loss,
    },
    /// Something did not happen in time. The process runs on.
    #[error("timed out after {} ms waiting for {what} in process {pid}", .waited.as_millis())]
    Timeout {
        /// The process.
        pid: Pid,
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// Memory of the process is not there, or not all of it.
    #[error("cannot {access} {len} bytes at {addr} of process {pid}")]
    Memory {
        /// The process.
        pid: Pid,
        /// `read` or `write`.
        access: &'static str,
        /// First byte asked for.
        addr: RunAddr,
        /// How many bytes were asked for.
        len: usize,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused something that it should not refuse.
    #[error("cannot {action} of process {pid}")]
    Io {
        /// The process.
        pid: Pid,
        /// What was tried, fit to follow "cannot".
        action: String,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Who traces a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracer {
    /// The process.
    pub pid: Pid,
    /// Its name (`comm`); empty if it is gone already or hidden from this user.
    pub name: String,
    /// Whether it is a run of livepatch, which is over soon.
    pub livepatch: bool,
}

impl std::fmt::Display for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.livepatch, self.name.as_str()) {
            (true, _) => write!(f, "another run of livepatch (process {})", self.pid),
            (false, "") => write!(f, "process {}", self.pid),
            (false, name) => write!(f, "`{name}` (process {})", self.pid),
        }
    }
}

/// How a process was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// It ended.
    Ended,
    /// It called `execve`: same id, other program.
    Exec,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Loss::Ended => "ended",
            Loss::Exec => "replaced its program by execve",
        })
    }
}

impl ProcessError {
    pub(crate) fn io(pid: Pid, action: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        ProcessError::Io { pid, action: action.into(), source: source.into() }
    }

    pub(crate) fn ended(pid: Pid) -> Self {
        ProcessError::Lost { pid, how: Loss::Ended }
    }

    /// The error for a ptrace request on a thread that is stopped as far as is known. Only SIGKILL, `exit_group` or
    /// `execve` can take a stopped thread away, so `ESRCH` means that the process is lost.
    pub(crate) fn ptrace(pid: Pid, tid: Tid, request: &str, errno: Errno) -> Self {
        match errno {
            Errno::ESRCH => Self::ended(pid),
            errno => Self::io(pid, format!("{request} thread {tid}"), errno),
        }
    }

    /// Whether the process is gone, so that there is nothing left to undo.
    pub fn is_lost(&self) -> bool {
        matches!(self, ProcessError::Lost { .. } | ProcessError::NoSuchProcess { .. })
    }
}

/// A thread that did not stop in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckThread {
    /// The thread.
    pub tid: Tid,
    /// What the kernel says it does; `D` (uninterruptible) is the usual reason, vfork parents included.
    pub state: Option<ThreadState>,
    /// The kernel function it waits in, if the kernel tells.
    pub wait_channel: Option<String>,
}

impl std::fmt::Display for StuckThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.tid)?;
        match (self.state, &self.wait_channel) {
            (Some(state), Some(wait)) => write!(f, " ({state}, in {wait})"),
            (Some(state), None) => write!(f, " ({state})"),
            _ => Ok(()),
        }
    }
}

/// Why not all threads could be stopped. Every thread runs again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterruptError {
    /// The deadline passed with these threads still on their way.
    #[error("threads did not stop within {} ms: {}", .waited.as_millis(), list(.threads))]
    Stuck {
        /// The threads that did not stop.
        threads: Vec<StuckThread>,
        /// How long the others were held.
        waited: Duration,
    },
    /// The thread has exited.
    #[error("no thread {tid}")]
    NoThread {
        /// The thread.
        tid: Tid,
    },
    /// The process was lost or the kernel refused something.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Fit to follow the name of a thread.
fn slow(number: nix::libc::c_long, waited: Duration) -> String {
    format!("did not get through system call {number} in the {} ms that were left for it", waited.as_millis())
}

fn list(threads: &[StuckThread]) -> String {
    threads.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why work on a thread of the target failed. Unless the variant says otherwise the thread has its registers,
/// floating-point state and signal mask back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The function did not return in time. It was broken off: what it had begun, it
    /// left half done (a lock that it took stays taken).
    #[error("{what} on thread {tid} did not end within {} ms", .waited.as_millis())]
    Timeout {
        /// The thread.
        tid: Tid,
        /// What ran there.
        what: String,
        /// How long it had.
        waited: Duration,
    },
    /// The thread did not get through the system call in time: it hardly runs, or something else holds it. The call may have
    /// been made.
    #[error("thread {tid} ({name}) {}", slow(*number, *waited))]
    Slow {
        /// The thread.
        tid: Tid,
        /// Its name.
        name: String,
        /// The system call.
        number: nix::libc::c_long,
        /// How long it had.
        waited: Duration,
    },
    /// The function broke off with a signal of its own making. The signal was not delivered to the program.
    #[error("{what} on thread {tid} got signal {signal} at {ip} (address {fault})")]
    Fault {
        /// The thread.
        tid: Tid,
        /// What ran there.
        what: String,
        /// The signal's number.
        signal: i32,
        /// The instruction.
        ip: RunAddr,
        /// The address from the signal's information, 0 if it has none.
        fault: RunAddr,
    },
    /// This thread is not fit for remote work at this moment; take another one, or try again later.
    #[error("thread {tid} cannot be used: {reason}")]
    Unfit {
        /// The thread.
        tid: Tid,
        /// Why.
        reason: String,
    },
    /// A seccomp filter of the thread stands against the system call, or might. It was not made.
    #[error("system call {number} on thread {tid}: a seccomp filter of the process {answer}")]
    Forbidden {
        /// The thread.
        tid: Tid,
        /// The system call.
        number: nix::libc::c_long,
        /// What the filter does, fit to follow "a filter".
        answer: String,
    },
    /// The system call ran and returned this error.
    #[error("{name} in the target failed")]
    Syscall {
        /// The system call.
        name: &'static str,
        /// What the kernel returned.
        source: std::io::Error,
    },
    /// The thread could not be brought to a stop again, so its registers could not be put back yet: it must be regarded as still
    /// inside the remote work. They are put back at its next stop, as long as the tracing value lives.
    #[error("thread {tid} is stuck inside {what} and could not be put back")]
    Stuck {
        /// The thread.
        tid: Tid,
        /// What it is stuck in.
        what: String,
    },
    /// The process was lost or the kernel refused something.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

impl RemoteError {
    /// What the thread did, without the thread: for lists that name it already.
    pub fn without_thread(&self) -> String {
        match self {
            Self::Slow { number, waited, .. } => slow(*number, *waited),
            other => other.to_string(),
        }
    }
}
