//! Getting every thread out of what is to be replaced, and the switch.
//!
//! | method | policy | module |
//! |---|---|---|
//! | breakpoints at the entries, threads one at a time | `quiescent`, `immediate` | [`drain`], [`entries`], [`net`] |
//! | all threads stopped at once | `snapshot`, and functions that cannot have a breakpoint | [`snapshot`] |
//!
//! Either yields a value that proves quiescence ([`drain::Drained`], [`snapshot::Quiesced`]), and only such a value writes the
//! jumps.

pub mod drain;
pub mod entries;
pub mod net;
pub mod snapshot;
mod standing;

use crate::error::ApplyError;
use crate::guard::Inside;
use crate::report::Holds;
use livepatch_process::log;
use livepatch_process::{Pid, ProcessError, Seized, ThreadState, Tid};
use std::time::Duration;

/// How it went so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    pub(crate) held: Duration,
    pub(crate) parked: Duration,
    pub(crate) threads: usize,
    pub(crate) retries: u32,
}

impl Progress {
    /// A thread was held without regard to what it runs.
    fn held(&mut self, time: Duration) {
        self.held = self.held.max(time);
    }

    /// A thread was held because it came to an entry.
    fn parked(&mut self, time: Duration) {
        self.parked = self.parked.max(time);
    }

    /// The figures for the report. A thread that comes to an entry may have been held before, as any other.
    pub fn holds(&self, seized: &Seized) -> Holds {
        let held = self.held.max(seized.longest_look());
        Holds {
            world_stopped_us: held.as_micros() as u64,
            parked_us: held.max(self.parked).as_micros() as u64,
            worker_us: seized.longest_stop().as_micros() as u64,
            threads: self.threads,
            retries: self.retries,
        }
    }
}

/// Quiescence was not reached by the deadline. Every thread runs.
#[derive(Debug)]
pub struct NotQuiescent {
    /// The process, still seized.
    pub seized: Seized,
    /// Who was in the way at the last attempt.
    pub inside: Vec<Inside>,
    /// Threads that did not stop, and so were not looked at.
    pub unseen: Vec<Tid>,
    /// What holds up the process as a whole.
    pub process: Option<String>,
}

/// How an attempt to reach quiescence ended without it.
#[derive(Debug)]
pub enum Failed {
    /// Somebody was inside all the time.
    Busy(Box<NotQuiescent>),
    /// This way of getting there is not open to the process; nothing was changed.
    Unable(Box<Seized>, ApplyError),
    /// The process or the system failed.
    Error(ApplyError),
}

impl From<ProcessError> for Failed {
    fn from(error: ProcessError) -> Self {
        Self::Error(error.into())
    }
}

/// All threads run in the new world.
#[derive(Debug)]
pub struct Switched {
    /// The process, still seized.
    pub seized: Seized,
    /// How the threads were held.
    pub progress: Progress,
}

impl Switched {
    /// The process, and the figures for the report.
    pub fn done(self) -> (Seized, Holds) {
        let holds = self.progress.holds(&self.seized);
        (self.seized, holds)
    }
}

/// The switch failed.
#[derive(Debug)]
pub struct NotSwitched {
    /// The process, if it can be worked with.
    pub seized: Option<Seized>,
    /// What failed.
    pub error: ApplyError,
    /// The new world is in force, if some entries perhaps lead there only by breakpoints.
    pub committed: bool,
}

/// Processes that run in the same memory without being threads of the process, as text. The parent of a `vfork` child shows
/// besides as a thread that does not stop, so that one born after this look is noticed. A kernel without `kcmp` leaves only
/// that.
fn sharers(seized: &mut Seized) -> Option<String> {
    let found = if_told(seized.sharers_at_large()).unwrap_or_default();
    (!found.is_empty()).then(|| describe_sharers(seized, &found))
}

/// None, where the kernel does not tell of processes in the same memory.
fn if_told(found: Result<Vec<Pid>, ProcessError>) -> Result<Vec<Pid>, ProcessError> {
    match found {
        Err(error) if !error.is_lost() => {
            log::debug(format_args!("cannot look for processes in the same memory: {error}"));
            Ok(Vec::new())
        }
        found => found,
    }
}

/// What a report says of other processes in the same memory.
fn describe_sharers(seized: &Seized, found: &[Pid]) -> String {
    let list: Vec<String> = found.iter().map(ToString::to_string).collect();
    let whom = format!("shares its memory with process {} (vfork or clone)", list.join(", "));
    match in_vfork(seized).as_slice() {
        [] => whom,
        waiting => format!("{whom}, which thread {} waits for", waiting.join(", ")),
    }
}

/// The system calls that make processes: `clone`, `fork`, `vfork`, `clone3` of x86-64.
const PROCESS_MAKERS: [u64; 4] = [56, 57, 58, 435];

/// Threads that wait uninterruptibly in a system call that makes processes: for a child of `vfork`.
fn in_vfork(seized: &Seized) -> Vec<String> {
    let process = seized.process();
    let waits = |tid: &Tid| {
        process.thread_state(*tid) == Some(ThreadState::Uninterruptible)
            && process
                .asleep(*tid)
                .and_then(|asleep| asleep.syscall)
                .is_some_and(|call| PROCESS_MAKERS.contains(&call))
    };
    let name = |tid: Tid| format!("{tid} ({})", process.thread_name(tid).unwrap_or_default());
    seized.threads().into_iter().filter(waits).map(name).collect()
}
