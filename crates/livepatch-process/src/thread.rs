//! One stopped thread: registers, state and signal mask.

use crate::drive::FAULTS;
use crate::error::ProcessError;
use crate::log;
use crate::ready::Ready;
use crate::sys;
use crate::trace::Tracees;
use crate::{Process, Regs, Tid, XState};
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// A thread at a canonical stop: no signal in flight, and what it goes on with is fully in its registers.
#[derive(Debug)]
pub struct StoppedThread<'t> {
    pub(crate) tracees: &'t mut Tracees,
    pub(crate) tid: Tid,
    /// Since when it has been stopped for this work, after which it is to run again; `None` if somebody else decides that.
    since: Option<Instant>,
    /// What was found out for remote work.
    pub(crate) ready: Option<Ready>,
}

impl<'t> StoppedThread<'t> {
    pub(crate) fn new(tracees: &'t mut Tracees, tid: Tid, since: Option<Instant>) -> Self {
        Self { tracees, tid, since, ready: None }
    }

    /// Its id.
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.tracees.process
    }

    /// The general registers.
    pub fn regs(&self) -> Result<Regs, ProcessError> {
        sys::get_regs(self.tid).map_err(|errno| self.error("read the registers of", errno))
    }

    /// Sets the general registers, exactly.
    pub fn set_regs(&mut self, regs: &Regs) -> Result<(), ProcessError> {
        self.ready = None;
        sys::set_regs(self.tid, regs).map_err(|errno| self.error("set the registers of", errno))
    }

    /// Floating-point and vector state.
    pub fn xstate(&self) -> Result<XState, ProcessError> {
        sys::get_xstate(self.tid).map_err(|errno| self.error("read the vector registers of", errno))
    }

    /// Sets floating-point and vector state.
    pub fn set_xstate(&mut self, state: &XState) -> Result<(), ProcessError> {
        self.ready = None;
        sys::set_xstate(self.tid, state).map_err(|errno| self.error("set the vector registers of", errno))
    }

    /// The blocked signals; bit `n - 1` stands for signal `n`.
    pub fn signal_mask(&self) -> Result<u64, ProcessError> {
        sys::get_sigmask(self.tid).map_err(|errno| self.error("read the signal mask of", errno))
    }

    /// Sets the blocked signals.
    pub fn set_signal_mask(&mut self, mask: u64) -> Result<(), ProcessError> {
        self.ready = None;
        sys::set_sigmask(self.tid, mask).map_err(|errno| self.error("set the signal mask of", errno))
    }

    /// Whether an instruction of the thread raised a signal that is not delivered yet: a stop on request comes before it. The
    /// thread stands behind a breakpoint then, or at an instruction that failed, and the signal is the next thing that happens.
    pub fn has_fault_pending(&self) -> Result<bool, ProcessError> {
        let pending =
            sys::pending_signals(self.tid).map_err(|errno| self.error("read the signals of", errno))?;
        Ok(pending.iter().any(|info| info.is_from_kernel() && FAULTS.contains(&info.signal())))
    }

    /// Notes that this thread was chosen for work that others could do as well ([`crate::Seized::worker`]).
    pub fn note_as_worker(&mut self) {
        self.tracees.worker = Some(self.tid);
    }

    /// Lets the thread run (or stay in its group stop, if the program is stopped).
    pub fn resume(mut self) -> Result<(), ProcessError> {
        self.end_of_stop();
        self.tracees.resume(self.tid)
    }

    /// As [`Self::resume`], for a thread that was only looked at, and was last seen not to have stopped at that time.
    pub fn resume_after_look(self, since: Instant) -> Result<(), ProcessError> {
        self.tracees.longest_look = self.tracees.longest_look.max(since.elapsed());
        self.resume()
    }

    fn end_of_stop(&mut self) {
        let time = self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        log::trace(format_args!("thread {} was held for work for {} µs", self.tid, time.as_micros()));
        self.tracees.longest_stop = self.tracees.longest_stop.max(time);
    }

    /// Leaves the thread stopped until [`crate::Seized::held`] gives access to it again, or all threads are resumed or let go.
    pub fn keep(mut self) {
        self.since = None;
    }

    pub(crate) fn error(&self, request: &str, errno: Errno) -> ProcessError {
        ProcessError::ptrace(self.tracees.process.pid(), self.tid, request, errno)
    }
}

impl Drop for StoppedThread<'_> {
    fn drop(&mut self) {
        if self.since.is_some() && self.is_stopped() {
            self.end_of_stop();
            if !self.tracees.is_told_of(self.tid) {
                // If the thread is beyond reach now, the next request about the process says so.
                let _ = self.tracees.resume(self.tid);
            }
        }
    }
}
