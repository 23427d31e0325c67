//! Letting go of all threads.

use crate::Tid;
use crate::collect::RECHECK;
use crate::log;
use crate::sys::Wait;
use crate::trace::{Goal, Notice, State, Tracees};
use nix::libc;
use std::time::{Duration, Instant};

impl Tracees {
    /// Lets every thread go, each at its next stop. Threads that do not stop in time stay attached until this tool ends;
    /// they are returned.
    pub fn detach_all(&mut self, deadline: Instant) -> Vec<Tid> {
        self.goal = Goal::Detach;
        self.forget_exited_leader();
        self.let_go_of_children();
        let tids: Vec<Tid> = self.threads.keys().copied().collect();
        for tid in tids {
            let Some(thread) = self.threads.get_mut(&tid) else { continue };
            thread.goal = Goal::Detach;
            thread.notice = Notice::No;
            let state = thread.state;
            // An error means that the thread is beyond reach; it then shows in the result.
            let _ = match state {
                State::Running => self.request_stop(tid),
                State::Raw(Wait::Signal(libc::SIGTRAP)) if self.park(tid).is_ok_and(|parked| parked) => {
                    self.release(tid, 0)
                }
                State::Raw(Wait::Signal(signal)) => self.release(tid, signal),
                State::Stopped | State::Raw(_) => self.release(tid, 0),
            };
        }
        while !(self.threads.is_empty() && self.foreign.is_empty()) && Instant::now() < deadline {
            let phase = deadline.min(Instant::now() + RECHECK);
            // A lost process ends this phase at once; its dead threads are collected all the same.
            let pumped = self.pump(phase, |tracees| tracees.threads.is_empty() && tracees.foreign.is_empty());
            if pumped.is_err() | self.recheck().is_err() {
                crate::numbered::yield_now();
            }
        }
        self.threads.keys().copied().collect()
    }
}

/// How long a drop guard waits for threads to let go of.
const DROP_LIMIT: Duration = Duration::from_secs(2);

impl Drop for Tracees {
    fn drop(&mut self) {
        if self.threads.is_empty() {
            return;
        }
        let left = self.detach_all(Instant::now() + DROP_LIMIT);
        if !left.is_empty() {
            let pid = self.process.pid();
            log::warn(format_args!("threads {left:?} of process {pid} stay attached until this tool ends"));
        }
    }
}
