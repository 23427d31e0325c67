//! Collecting what the kernel reports of the threads.

use crate::error::{Loss, ProcessError};
use crate::event::Event;
use crate::pause::Pause;
use crate::sys;
use crate::trace::{Goal, State, Thread, Tracees};
use crate::{Tid, numbered, procfs};
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// How often to look after what no event tells.
pub(crate) const RECHECK: Duration = Duration::from_millis(5);

impl Tracees {
    /// Deals with what the kernel reports until `done` or the deadline; says whether it was `done`.
    pub fn pump(&mut self, deadline: Instant, done: impl Fn(&Self) -> bool) -> Result<bool, ProcessError> {
        let mut pause = Pause::default();
        loop {
            let mut busy = self.sweep()?;
            while self.collect_one()? {
                busy = true;
                if Instant::now() >= deadline {
                    break;
                }
            }
            if let Some(how) = self.lost {
                return Err(ProcessError::Lost { pid: self.process.pid(), how });
            }
            if done(self) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            if busy { pause = Pause::default() } else { pause.take(deadline) }
        }
    }

    /// Asks about one thread alone for a while. Its stop follows within microseconds if it has a processor, and the other
    /// threads of a large process need not be looked through for it.
    pub fn await_one(
        &mut self,
        tid: Tid,
        deadline: Instant,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), ProcessError> {
        const ALONE: Duration = Duration::from_micros(500);
        let limit = deadline.min(Instant::now() + ALONE);
        let mut pause = Pause::default();
        while !done(self) && Instant::now() < limit {
            if !self.collect(tid)? {
                pause.take(limit);
            }
        }
        Ok(())
    }

    /// While many threads are awaited: asks about each of them. Asking for any event at all makes the kernel look through
    /// all tracees every time, which is quadratic in the number of threads.
    fn sweep(&mut self) -> Result<bool, ProcessError> {
        const MANY: usize = 8;
        let mut any = false;
        loop {
            let awaited = |thread: &Thread| {
                thread.state == State::Running && matches!(thread.goal, Goal::Stop | Goal::Detach)
            };
            let tids: Vec<Tid> =
                self.threads.iter().filter(|(_, thread)| awaited(thread)).map(|(&tid, _)| tid).collect();
            if tids.len() < MANY {
                return Ok(any);
            }
            let mut collected = 0;
            for &tid in &tids {
                collected += usize::from(self.collect(tid)?);
            }
            if collected == 0 {
                return Ok(any);
            }
            any = true;
            if collected < tids.len() / 2 {
                numbered::yield_now();
            }
        }
    }

    /// Collects and handles one event, if there is one.
    pub fn collect_one(&mut self) -> Result<bool, ProcessError> {
        let peeked = sys::peek_any().map_err(|errno| self.wait_error(errno))?;
        match peeked {
            None => {
                if !self.threads.is_empty() && self.process.is_reapable() {
                    self.lost.get_or_insert(Loss::Ended);
                }
                Ok(false)
            }
            Some(tid) if self.is_ours(tid) && self.collect(tid)? => Ok(true),
            // A child or a tracee of somebody else on this OS thread hides the events behind it.
            Some(_) => {
                let children = self.foreign.iter().chain(self.forked.keys()).chain(self.sharers.keys());
                let all = self.threads.keys().chain(children);
                let tids: Vec<Tid> = all.copied().collect();
                tids.into_iter().try_fold(false, |any, tid| Ok(self.collect(tid)? || any))
            }
        }
    }

    fn is_ours(&self, tid: Tid) -> bool {
        self.threads.contains_key(&tid)
            || self.foreign.contains(&tid)
            || self.forked.contains_key(&tid)
            || self.sharers.contains_key(&tid)
            || procfs::task_dir(self.process.pid(), tid).exists()
    }

    pub fn collect(&mut self, tid: Tid) -> Result<bool, ProcessError> {
        let leader = self.process.pid().leader();
        if tid == leader && self.own_child && self.process.is_reapable() {
            let known = self.threads.contains_key(&tid);
            self.gone(tid);
            return Ok(known);
        }
        // A thread that is left at a stop for a signal, by remote work or because it waits, would be told again and again.
        let leave_signals = self.threads.get(&tid).is_none_or(|thread| thread.goal != Goal::Raw)
            && !self.own_traps.contains(&tid);
        match sys::wait_thread(tid, leave_signals) {
            Ok(None) => Ok(false),
            Ok(Some(wait)) => self.handle(tid, wait).map(|()| true),
            // A thread that called execve goes on under the id of the first thread; its own id vanishes unreported.
            Err(Errno::ECHILD) => {
                self.gone(tid);
                Ok(true)
            }
            Err(errno) => Err(self.wait_error(errno)),
        }
    }

    fn wait_error(&self, errno: Errno) -> ProcessError {
        ProcessError::io(self.process.pid(), "wait for threads", errno)
    }

    pub fn gone(&mut self, tid: Tid) {
        self.foreign.remove(&tid);
        self.forked.remove(&tid);
        self.sharers.remove(&tid);
        self.own_traps.remove(&tid);
        self.passing.remove(&tid);
        self.delivered.remove(&tid);
        self.held_back.remove(&tid);
        if self.threads.remove(&tid).is_none() {
            return;
        }
        self.events.push(Event::Exited { tid });
        // The kernel reports the first thread only after all others. While threads are let go, the last one here is not the
        // last one of the process.
        let last = self.threads.is_empty() && self.goal != Goal::Detach;
        if tid == self.process.pid().leader() || last {
            self.lost.get_or_insert(Loss::Ended);
        }
    }

    /// Looks after what no event tells: an exited first thread, and threads that are awaited but no tracees any more.
    pub fn recheck(&mut self) -> Result<(), ProcessError> {
        self.forget_exited_leader();
        let awaited = self
            .threads
            .iter()
            .filter(|(_, thread)| thread.state == State::Running && thread.goal != Goal::Run);
        let tids: Vec<Tid> = awaited.map(|(tid, _)| tid).chain(&self.foreign).copied().collect();
        tids.into_iter().try_for_each(|tid| self.collect(tid).map(drop))
    }

    /// Forgets the first thread if it has exited: the kernel reports its end only with the last thread's.
    pub fn forget_exited_leader(&mut self) {
        let leader = self.process.pid().leader();
        let exited = || self.process.thread_state(leader).is_none_or(|state| state.has_exited());
        if self.threads.len() > 1 && self.threads.contains_key(&leader) && exited() {
            self.threads.remove(&leader);
            self.events.push(Event::Exited { tid: leader });
        }
    }
}
