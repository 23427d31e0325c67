//! The traced threads of one process, and what to do with each event that the kernel reports about them.
//!
//! Every thread has a goal. An event that leads to the goal ends there; any other event is dealt with and the thread sent
//! on at once. The one canonical stop is `PTRACE_EVENT_STOP`: a thread that is to stop and first reports a signal
//! gets the signal delivered with another interrupt pending, and so stops again before it executes an instruction. Hence
//! no signal is ever kept by this tool, and a tool that dies at any moment loses none.

use crate::drive::Saved;
use crate::error::{Loss, ProcessError};
use crate::event::Event;
use crate::fork::Forked;
use crate::nested::Delivered;
use crate::passing::{Breakpoints, Passing};
use crate::sharer::{Sharer, Sharers};
use crate::sys::{self, Wait};
use crate::wayback::Gadgets;
use crate::{Process, Tid};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// What a thread is wanted to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Run; every stop is answered at once.
    Run,
    /// Be at a canonical stop.
    Stop,
    /// Report every stop as it is: remote work decides.
    Raw,
    /// Be let go at the next stop of any kind.
    Detach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// At a canonical stop.
    Stopped,
    /// At some stop, while the goal is [`Goal::Raw`].
    Raw(Wait),
}

#[derive(Debug)]
pub(crate) struct Thread {
    pub goal: Goal,
    pub state: State,
    /// Whether the last canonical stop was a group stop: the thread then stays stopped for the program's own reasons.
    pub group_stop: bool,
    /// The breakpoint that this thread is on its way to be held at.
    pub parked: Option<RunAddr>,
    pub notice: Notice,
}

/// Whether an event tells of a thread's stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// It is nobody's business.
    No,
    /// Somebody asked for the stop and did not wait.
    Due,
    /// An event told of it. Until whoever gets that lets the thread go on it stays where it is, whatever else is done with it.
    Given,
}

impl Thread {
    /// Nobody wants it to stop, or waits for that.
    pub fn is_to_run(&mut self) {
        (self.goal, self.parked, self.notice) = (Goal::Run, None, Notice::No);
    }
}

#[derive(Debug)]
pub(crate) struct Tracees {
    pub process: Process,
    pub threads: BTreeMap<Tid, Thread>,
    /// The goal of threads that come into being.
    pub goal: Goal,
    pub breakpoints: Breakpoints,
    pub passing: BTreeMap<Tid, Passing>,
    pub events: Vec<Event>,
    pub lost: Option<Loss>,
    /// Instructions of the target for remote system calls.
    pub gadgets: Option<Gadgets>,
    /// Threads that are stuck in remote work, and what to put back at their next stop.
    pub stuck: BTreeMap<Tid, Saved>,
    /// Tasks that were attached on creation but are no threads of the process: let go at their first stop.
    pub foreign: BTreeSet<Tid>,
    /// Children with a memory of their own: held at their first stop while [`Self::hold_forked`] is set.
    pub forked: BTreeMap<Tid, Forked>,
    /// Whether somebody looks after forked children.
    pub hold_forked: bool,
    /// Children in the same memory that are traced, and what is done with new ones.
    pub sharers: BTreeMap<Tid, Sharer>,
    pub sharer_mode: Sharers,
    /// Whether there may be one that is none of these: nobody has looked since all threads were attached, or the last look found some, or
    /// one was made or let go since.
    pub may_be_shared: bool,
    /// Deliveries of signals to each thread, each on top of the one before.
    pub delivered: BTreeMap<Tid, Vec<Delivered>>,
    /// Threads for which a signal was blocked that interrupted its own handler: the mask that they were given, and such signals' bits.
    pub held_back: BTreeMap<Tid, (u64, u64)>,
    /// Whether SIGTRAPs of the program's own wait while the process has no action for them.
    pub hold_own_traps: bool,
    /// Threads that wait at such a signal.
    pub own_traps: BTreeSet<Tid>,
    /// When any event at all was last asked for.
    pub asked_for_any: Instant,
    /// Since when some thread has been asked to stop and has not done so.
    pub awaits_since: Option<Instant>,
    /// The thread that did the last work that any thread can do.
    pub worker: Option<Tid>,
    /// Longest time that one thread was held to do something with it.
    pub longest_stop: Duration,
    /// Longest time that one thread was held to see where it is ([`crate::StoppedThread::resume_after_look`]).
    pub longest_look: Duration,
    /// The process is a child of this one, so its end is for its owner here to collect.
    pub own_child: bool,
    /// ptrace requests work only from the thread that attached.
    _not_send: PhantomData<*mut ()>,
}

impl Tracees {
    pub fn new(process: Process, own_child: bool) -> Self {
        Self {
            process,
            threads: BTreeMap::new(),
            goal: Goal::Run,
            breakpoints: Breakpoints::new(),
            passing: BTreeMap::new(),
            events: Vec::new(),
            lost: None,
            gadgets: None,
            stuck: BTreeMap::new(),
            foreign: BTreeSet::new(),
            forked: BTreeMap::new(),
            hold_forked: false,
            sharers: BTreeMap::new(),
            sharer_mode: Sharers::LetGo,
            may_be_shared: true,
            delivered: BTreeMap::new(),
            held_back: BTreeMap::new(),
            hold_own_traps: false,
            own_traps: BTreeSet::new(),
            asked_for_any: Instant::now(),
            awaits_since: None,
            worker: None,
            longest_stop: Duration::ZERO,
            longest_look: Duration::ZERO,
            own_child,
            _not_send: PhantomData,
        }
    }

    /// Makes the thread stop soon. A thread that is about to go is left to the event that says so.
    pub fn request_stop(&mut self, tid: Tid) -> Result<(), ProcessError> {
        self.accept_death(tid, "interrupt", sys::interrupt(tid))
    }

    /// A thread can be killed at any moment; the kernel answers ESRCH then and reports the end later.
    pub fn accept_death(
        &self,
        tid: Tid,
        request: &str,
        result: Result<(), Errno>,
    ) -> Result<(), ProcessError> {
        match result {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(ProcessError::ptrace(self.process.pid(), tid, request, errno)),
        }
    }

    /// Lets a thread at a canonical stop go on: into its group stop if the program is stopped.
    pub fn resume(&mut self, tid: Tid) -> Result<(), ProcessError> {
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        let before = std::mem::replace(&mut thread.state, State::Running);
        thread.is_to_run();
        let in_group_stop = thread.group_stop;
        let result = sys::insist(|| if in_group_stop { sys::listen(tid) } else { sys::cont(tid, 0) });
        if result.is_err_and(|errno| errno != Errno::ESRCH)
            && let Some(thread) = self.threads.get_mut(&tid)
        {
            thread.state = before;
        }
        self.accept_death(tid, "resume", result)
    }

    pub fn handle(&mut self, tid: Tid, wait: Wait) -> Result<(), ProcessError> {
        if wait == Wait::Gone {
            self.gone(tid);
            return Ok(());
        }
        if self.foreign.remove(&tid) {
            return self.accept_death(tid, "detach from", sys::detach(tid, 0));
        }
        if self.forked.contains_key(&tid) {
            return self.forked_stopped(tid);
        }
        if self.sharers.contains_key(&tid) {
            return self.handle_sharer(tid, wait);
        }
        if !self.threads.contains_key(&tid) {
            // Attached on creation; its first stop came before its creator's event.
            self.started(tid);
        }
        if matches!(wait, Wait::Clone | Wait::Fork | Wait::Vfork) {
            self.add_child_of(tid, wait)?;
        }
        if wait == Wait::Exec {
            self.lost.get_or_insert(Loss::Exec);
        }
        self.deal_with(tid, wait)
    }

    /// Answers a stop, one that has just come or one at which the thread was left.
    pub fn deal_with(&mut self, tid: Tid, wait: Wait) -> Result<(), ProcessError> {
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.state = State::Running;
        }
        let dealt_with = self.answer(tid, wait);
        if dealt_with.as_ref().is_err_and(|error| !error.is_lost())
            && let Some(thread) = self.threads.get_mut(&tid)
        {
            // It still is at its stop, and can be let go from there.
            thread.state = State::Raw(wait);
        }
        dealt_with
    }

    fn answer(&mut self, tid: Tid, wait: Wait) -> Result<(), ProcessError> {
        if self.stuck.contains_key(&tid) && !self.unstick(tid, wait)? {
            return Ok(());
        }
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        if matches!(wait, Wait::Trap | Wait::GroupStop) {
            thread.group_stop = wait == Wait::GroupStop;
        }
        match (thread.goal, wait) {
            // Under an execve the new program stays where it is until it is let go.
            (Goal::Raw, wait) | (Goal::Run | Goal::Stop, wait @ Wait::Exec) => {
                thread.state = State::Raw(wait)
            }
            (Goal::Detach, Wait::Signal(libc::SIGTRAP)) if self.park(tid)? => self.release(tid, 0)?,
            (Goal::Detach, Wait::Signal(signal)) => self.release(tid, signal)?,
            (Goal::Detach, _) => self.release(tid, 0)?,
            (Goal::Stop, Wait::Trap | Wait::GroupStop) => self.stopped(tid),
            (Goal::Run, Wait::Trap | Wait::GroupStop) => self.resume(tid)?,
            (_, Wait::Signal(libc::SIGTRAP)) if self.park(tid)? => self.send_on(tid, 0)?,
            (_, Wait::Signal(libc::SIGTRAP)) if self.has_to_wait(tid) => {}
            (_, Wait::Signal(signal)) => {
                self.before_delivery(tid, signal);
                self.send_on(tid, signal)?;
            }
            (_, Wait::Clone | Wait::Fork | Wait::Vfork | Wait::Syscall | Wait::Other | Wait::Gone) => {
                self.send_on(tid, 0)?
            }
        }
        Ok(())
    }

    fn stopped(&mut self, tid: Tid) {
        let Some(thread) = self.threads.get_mut(&tid) else { return };
        thread.state = State::Stopped;
        let event = match (thread.notice, thread.parked) {
            (Notice::Given, _) | (Notice::No, None) => return,
            (_, Some(addr)) => Event::Breakpoint { tid, addr },
            (Notice::Due, None) => Event::Stopped { tid },
        };
        thread.notice = Notice::Given;
        self.events.push(event);
    }

    /// Whether an event told of the stop at which the thread is.
    pub fn is_told_of(&self, tid: Tid) -> bool {
        self.threads.get(&tid).is_some_and(|thread| thread.notice == Notice::Given)
    }

    /// From a stop of another kind: on with it, to a canonical stop if that is the goal. Any stop cancels a pending
    /// interrupt, so it is asked for again.
    pub fn send_on(&mut self, tid: Tid, signal: i32) -> Result<(), ProcessError> {
        if self.threads.get(&tid).is_some_and(|thread| thread.goal == Goal::Stop) {
            self.request_stop(tid)?;
        }
        self.accept_death(tid, "resume", sys::cont(tid, signal))
    }

    pub fn release(&mut self, tid: Tid, signal: i32) -> Result<(), ProcessError> {
        self.threads.remove(&tid);
        self.accept_death(tid, "detach from", sys::detach(tid, signal))
    }

    pub fn all_stopped(&self) -> bool {
        self.threads.values().all(|thread| thread.state == State::Stopped)
    }
}
