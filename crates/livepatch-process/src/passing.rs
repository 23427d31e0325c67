//! Threads that pass breakpoints on sight.
//!
//! A thread that executed a breakpoint is first taken to a canonical stop, where it can be looked at and kept. One that is known to
//! pass is sent on from where it reports the `int3`: that halves the switches between it and this tool, and so the time that a deep
//! recursion takes. If this tool dies between the two requests, the thread gets its SIGTRAP with its instruction pointer where it was
//! to go on, which the handler that the caller installed has to know (the net of `livepatch-apply`).

use crate::error::ProcessError;
use crate::trace::Tracees;
use crate::{Seized, Tid};
use livepatch_patch::RunAddr;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// For so long after a pass the next one is expected, and the thread asked before others.
const EXPECTED: Duration = Duration::from_micros(300);

/// Breakpoints, and where a thread goes on that passes; `None` where none can pass on sight.
pub type Breakpoints = BTreeMap<RunAddr, Option<RunAddr>>;

/// What is known of one such thread.
#[derive(Debug)]
pub(crate) struct Passing {
    below: RunAddr,
    left: u32,
    lowest: RunAddr,
    /// When it passed last, and whether that was told.
    last: Option<Instant>,
    told: bool,
}

impl Passing {
    /// Whether it passes a breakpoint at a function's entry with this stack pointer.
    pub fn passes(&mut self, sp: RunAddr) -> bool {
        // Above the return address begins the caller's frame.
        if self.left == 0 || sp.offset(8) >= self.below {
            return false;
        }
        self.left -= 1;
        self.lowest = self.lowest.min(sp);
        (self.last, self.told) = (Some(Instant::now()), false);
        true
    }
}

impl Tracees {
    /// The threads that are expected to come to the next breakpoint any time.
    pub(crate) fn expected(&self) -> Vec<Tid> {
        let is_expected = |passing: &Passing| passing.last.is_some_and(|last| last.elapsed() < EXPECTED);
        self.passing.iter().filter(|(_, passing)| is_expected(passing)).map(|(tid, _)| *tid).collect()
    }
}

impl Seized {
    /// Registers the addresses whose `int3` stops a thread instead of giving the program a SIGTRAP, at the first instruction of
    /// functions. The caller writes the bytes. No thread passes any more.
    pub fn set_breakpoints(&mut self, breakpoints: Breakpoints) {
        self.tracees.breakpoints = breakpoints;
        self.let_none_pass();
    }

    /// Lets a thread pass breakpoints on sight, so many times at most, as long as its frames there are below an address.
    pub fn let_pass(&mut self, tid: Tid, below: RunAddr, times: u32) {
        let passing = Passing { below, left: times, lowest: RunAddr(u64::MAX), last: None, told: true };
        self.tracees.passing.insert(tid, passing);
    }

    /// The thread is to be held at the next breakpoint.
    pub fn hold_next(&mut self, tid: Tid) {
        self.tracees.passing.remove(&tid);
    }

    /// All threads are to be held at the next breakpoint.
    pub fn let_none_pass(&mut self) {
        self.tracees.passing.clear();
    }

    /// The threads that passed since this was last asked, with the lowest stack pointer that each passed with.
    pub fn passed(&mut self) -> Vec<(Tid, RunAddr)> {
        let news = self.tracees.passing.iter_mut().filter(|(_, passing)| !passing.told);
        news.map(|(tid, passing)| {
            passing.told = true;
            (*tid, passing.lowest)
        })
        .collect()
    }

    /// Asks the threads that are expected at a breakpoint.
    pub(crate) fn ask_expected(&mut self) -> Result<(), ProcessError> {
        self.tracees.expected().into_iter().try_for_each(|tid| self.tracees.collect(tid).map(drop))
    }
}
