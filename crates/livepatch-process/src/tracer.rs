//! A thread for tracing.
//!
//! ptrace binds tracees to the OS thread that attached. When that thread ends, the kernel lets go of all of them at once, and
//! none is interrupted for it; to detach from a running thread, it would have to be stopped.
//!
//! Threads of the target wait for this one while they are held, so it gets a processor before others then where the system
//! permits that (root, or CAP_SYS_NICE), and only then: the target shares the processors with it.

use crate::error::{ProcessError, Tracer};
use crate::loan::is_crowded;
use crate::{Tid, numbered, procfs, sys};
use std::io;
use std::panic::resume_unwind;

/// Lets the calling thread, and those that it starts, run when they are wanted. For tools that do nothing but trace: on a busy machine the
/// way to the first stop is long otherwise.
///
/// A thread's priority counts among the threads of its session only where the kernel shares processors among sessions first
/// (sched(7), "The autogroup feature"). So a session that this process leads, and that ends with it, is preferred as a whole.
/// A session of somebody else's, say a shell's, is left alone.
pub fn be_prompt() {
    sys::be_prompt();
    leave_the_crowd();
    if sys::leads_session() {
        // The kernel may have no such groups, or permit nothing.
        let _ = std::fs::write("/proc/self/autogroup", sys::PREFERRED.to_string());
    }
}

/// Gives the calling thread a processor before others where the system permits that. For the time in which threads may wait for it.
pub fn come_first() {
    sys::come_first();
    leave_the_crowd();
}

/// With a processor to spare, a real-time thread would take one from the program all the same.
fn leave_the_crowd() {
    if is_crowded() {
        sys::run_at_once();
    }
}

/// Starts a thread that needs little stack. All of them by one function: a program that patches itself has it, too.
pub(crate) fn start_small(
    name: &str,
    work: Box<dyn FnOnce() + Send>,
) -> io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(64 << 10).spawn(work)
}

/// Name of the threads that trace, by which other runs know them. The kernel keeps 15 bytes of a name.
const NAME: &str = "livepatch-trace";

/// Who traces a thread whose status names `tid` as the tracer; `None` if that one is gone.
pub(crate) fn identify(tid: Tid) -> Option<Tracer> {
    let pid = procfs::process_of(tid)?;
    let livepatch = procfs::name(pid, tid)? == NAME;
    Some(Tracer { pid, name: procfs::name(pid, pid.leader()).unwrap_or_default(), livepatch })
}

/// Does work that traces a process on an OS thread of its own, and returns when everything that it still traced is let go.
///
/// # Errors
/// The thread could not be started.
///
/// # Panics
/// If the work does.
pub fn on_tracer_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ProcessError> {
    let own = numbered::own_pid();
    let name = NAME.to_owned();
    let (outcome, tid) = std::thread::scope(|scope| -> io::Result<_> {
        let work = || {
            leave_the_crowd();
            (work(), numbered::own_tid())
        };
        let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
    .map_err(|error| ProcessError::io(own, "start a thread", error))?;
    // A thread can be joined a moment before it lets go of its tracees; it leaves the list after that.
    while procfs::task_dir(own, tid).exists() {
        numbered::yield_now();
    }
    Ok(outcome)
}
