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
use crate::pause::Pause;
use crate::process::check_tracers;
use crate::sharer::{Sharer, Sharers};
use crate::sys::{self, Wait};
use crate::wayback::Gadgets;
use crate::{Process, Regs, Tid, numbered, procfs};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// So often the kernel must refuse to attach, with nobody to be seen who traces the thread, before that is its answer.
const REFUSALS: u32 = 16;
/// Long enough for a tracer that is on its way out.
const BETWEEN_REFUSALS: Duration = Duration::from_millis(1);

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
    /// Whether the process may have made one that is none of these since it was last looked for them.
    pub bore_sharers: bool,
    /// The last delivery of a signal to each thread.
    pub delivered: BTreeMap<Tid, Delivered>,
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
    /// No other process was in the same memory at some time after all threads were attached, and none has come since.
    pub unshared: bool,
    /// The process is a child of this one, so its end is for its owner here to collect.
    own_child: bool,
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
            bore_sharers: false,
            delivered: BTreeMap::new(),
            held_back: BTreeMap::new(),
            hold_own_traps: false,
            own_traps: BTreeSet::new(),
            asked_for_any: Instant::now(),
            awaits_since: None,
            worker: None,
            longest_stop: Duration::ZERO,
            longest_look: Duration::ZERO,
            unshared: false,
            own_child,
            _not_send: PhantomData,
        }
    }

    /// Attaches every thread that is not attached yet, until a look at the thread list shows no other. New threads of
    /// attached ones are attached by the kernel. Returns those that were found.
    pub fn seize_new(&mut self, deadline: Instant) -> Result<Vec<Tid>, ProcessError> {
        let started = Instant::now();
        let mut found = Vec::new();
        loop {
            let before = found.len();
            for tid in self.process.threads()? {
                let new = !self.threads.contains_key(&tid) && !self.process.inner.tasks.is_worker(tid);
                if new && self.seize_thread(tid)? {
                    found.push(tid);
                }
            }
            if found.len() == before {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                let (pid, what) = (self.process.pid(), "an end of new threads".to_owned());
                return Err(ProcessError::Timeout { pid, what, waited: started.elapsed() });
            }
        }
    }

    /// Attaches one thread. False if it is gone or was attached on its creation.
    ///
    /// The kernel's EPERM does not say whether the thread has another tracer, and a tracer may end between the refusal and the
    /// look at who it was: what counts is an answer that stays the same.
    fn seize_thread(&mut self, tid: Tid) -> Result<bool, ProcessError> {
        let pid = self.process.pid();
        let mut refused = 0;
        loop {
            match sys::seize(tid) {
                Ok(()) => {
                    self.add(tid);
                    if self.goal == Goal::Stop {
                        self.request_stop(tid)?;
                    }
                    return Ok(true);
                }
                Err(Errno::ESRCH) => return Ok(false),
                Err(Errno::EPERM) => {}
                Err(errno) => return Err(ProcessError::io(pid, format!("attach to thread {tid}"), errno)),
            }
            let Ok(status) = procfs::status(pid, tid) else { return Ok(false) };
            if status.state.has_exited() {
                return Ok(false);
            }
            match status.tracer {
                // Attached on creation: its first stop is still to be collected.
                Some(tracer) if tracer == numbered::own_tid() => {
                    self.started(tid);
                    return Ok(false);
                }
                Some(_) => check_tracers(pid)?,
                None => refused += 1,
            }
            if refused == REFUSALS {
                return Err(crate::process::access_error(pid, &status, "attach", Errno::EPERM.into()));
            }
            numbered::sleep(BETWEEN_REFUSALS);
        }
    }

    fn add(&mut self, tid: Tid) {
        let thread = Thread {
            goal: self.goal,
            state: State::Running,
            group_stop: false,
            parked: None,
            notice: Notice::No,
        };
        self.threads.entry(tid).or_insert(thread);
    }

    /// A thread that was attached on its creation: it has not executed anything.
    fn started(&mut self, tid: Tid) {
        self.add(tid);
        self.events.push(Event::Started { tid });
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

    fn gone(&mut self, tid: Tid) {
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

    fn handle(&mut self, tid: Tid, wait: Wait) -> Result<(), ProcessError> {
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

    /// At the event of a new task: a thread of the process, or something else.
    pub fn add_child_of(&mut self, tid: Tid, how: Wait) -> Result<(), ProcessError> {
        let child = match sys::event_tid(tid) {
            Ok(child) => child,
            Err(Errno::ESRCH) => return Ok(()),
            Err(errno) => {
                return Err(ProcessError::ptrace(self.process.pid(), tid, "read the event of", errno));
            }
        };
        if self.threads.contains_key(&child) {
            return Ok(());
        }
        if procfs::task_dir(self.process.pid(), child).exists() {
            self.started(child);
        } else {
            self.add_process(child, (tid, how));
        }
        // Its events may have been dealt with before its creator's; then it is gone already, or let go.
        self.collect(child).map(drop)
    }

    /// If the thread executed a registered breakpoint: takes it back to before, to be held there, or past it if it passes.
    pub fn park(&mut self, tid: Tid) -> Result<bool, ProcessError> {
        if self.breakpoints.is_empty() {
            return Ok(false);
        }
        let pid = self.process.pid();
        let runs = self.threads.get(&tid).is_some_and(|thread| thread.goal == Goal::Run);
        let passing = &mut self.passing;
        let breakpoints = &self.breakpoints;
        let mut moved = || {
            let Some((mut regs, addr)) = breakpoint_met(breakpoints, tid)? else { return Ok(None) };
            let past = breakpoints[&addr]
                .filter(|_| runs && passing.get_mut(&tid).is_some_and(|passing| passing.passes(regs.sp())));
            regs.set_ip(past.unwrap_or(addr));
            sys::set_regs(tid, &regs).map(|()| Some((addr, past.is_some())))
        };
        let addr = match moved() {
            Ok(addr) => addr,
            Err(Errno::ESRCH) => None,
            Err(errno) => return Err(ProcessError::ptrace(pid, tid, "move", errno)),
        };
        if let (Some((addr, false)), Some(thread)) = (addr, self.threads.get_mut(&tid)) {
            (thread.parked, thread.goal) = (Some(addr), Goal::Stop);
        }
        Ok(addr.is_some())
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

    pub fn all_stopped(&self) -> bool {
        self.threads.values().all(|thread| thread.state == State::Stopped)
    }
}

/// Whether a thread or child that reports a SIGTRAP executed one of these: its registers, and which.
pub(crate) fn breakpoint_met(breakpoints: &Breakpoints, tid: Tid) -> Result<Option<(Regs, RunAddr)>, Errno> {
    // An `int3` reports SI_KERNEL; a SIGTRAP that a process sent has a code of 0 or below.
    if !sys::signal_info(tid)?.is_from_kernel() {
        return Ok(None);
    }
    let regs = sys::get_regs(tid)?;
    let addr = regs.ip().offset(-1);
    Ok(breakpoints.contains_key(&addr).then_some((regs, addr)))
}

/// How often to look after what no event tells.
pub(crate) const RECHECK: Duration = Duration::from_millis(5);
