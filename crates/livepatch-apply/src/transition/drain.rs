//! The drain protocol: breakpoints on all entries, threads one at a time.
//!
//! 1. A breakpoint goes on every entry that is to be redirected. From then on a thread outside cannot come in: at an entry it
//!    is held (parked). A thread with such code on its stack is of the old world and passes through.
//! 2. Every thread is looked at: in its sleep without stopping it where possible, else stopped for the time of one look. Who is found
//!    outside stays outside; who is inside is looked at again later. So the set inside only shrinks.
//! 3. When nobody is inside, the entries are switched ([`super::entries`]), and the parked threads go on.
//!
//! A parked thread may hold a lock that one inside waits for: when nobody leaves, parked threads are let in (`drain/admit.rs`). Where that
//! leads nowhere the breakpoints are taken away, all go on, and another attempt follows. At the deadline everything is undone.
//!
//! A thread that comes into being after the breakpoints starts outside. A forked child has copies of the breakpoints, which are
//! put in order before its first instruction; a child in the same memory has the net.

mod admit;
mod ahead;
mod looks;
mod roster;
mod settle;
mod sharers;

use self::admit::Stalls;
pub use self::ahead::{Ahead, look_ahead};
use self::roster::Roster;
use self::sharers::Children;
use super::entries::{Entries, SwitchError};
use super::net::{self, Serialiser};
use super::standing::{Slept, Standing};
use super::{Failed, NotQuiescent, NotSwitched, Progress, Switched};
use crate::error::ApplyError;
use crate::guard::{Guard, Inside};
use crate::unwind::Tables;
use livepatch_patch::RunAddr;
use livepatch_process::{Asleep, Breakpoints, Event, Pause, Process, Seized, Sharers, Tid, log, numbered};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Threads that are on their way to a stop at the same time, at most: each is held until those before it were looked at.
const WINDOW: usize = 12;
/// Time between attempts, in which threads that waited for each other get on.
const BREATH: Duration = Duration::from_millis(2);
/// How often to make sure that the net is in place.
const NET_CHECK: Duration = Duration::from_millis(1);
/// Longest sleep while events may come.
const NAP: Duration = Duration::from_micros(100);
/// How long after an event to wait awake for the next one.
const AWAKE: Duration = Duration::from_micros(300);
/// Longest wait for the first stop of a forked child.
const FIRST_STOP: Duration = Duration::from_millis(250);
/// Time that undoing may take.
const UNDO: Duration = Duration::from_secs(5);

/// What a transition is about.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The process.
    pub process: &'a Process,
    /// The entries.
    pub entries: &'a Entries<'a>,
    /// Unwind tables of the process.
    pub tables: &'a Tables,
    /// What nobody may be inside of.
    pub guard: &'a Guard,
    /// When to give up.
    pub deadline: Instant,
}

/// The breakpoints are in place, and every thread is outside: running there, or parked at one of them.
#[derive(Debug)]
pub struct Drained<'a>(Drain<'a>);

#[derive(Debug)]
struct Drain<'a> {
    seized: Seized,
    job: Job<'a>,
    serialiser: Serialiser,
    roster: Roster,
    /// Threads asked to stop, and when they were last seen not to have.
    asked: BTreeMap<Tid, Instant>,
    parked: BTreeMap<Tid, Parked>,
    stalls: Stalls,
    /// Threads that were stopped, or in a system call, while there was no breakpoint.
    calm: BTreeSet<Tid>,
    /// Threads whose stack is to be walked while they are held.
    deep: BTreeSet<Tid>,
    /// Threads that slept when there was no breakpoint yet: outside, or unprovable without a stop.
    slept: BTreeMap<Tid, Slept>,
    /// Threads that were found outside in a sleep, with that sleep.
    resting: BTreeMap<Tid, Asleep>,
    children: Children,
    /// Threads that block SIGTRAP by their own will; while there are breakpoints they do not. With the mask that they were left with.
    unblocked: BTreeMap<Tid, u64>,
    /// Whether there are breakpoints at all.
    armed: bool,
    net_seen: Instant,
    last_event: Instant,
    /// No thread that is told about next was at a breakpoint before this.
    polled: Instant,
    /// Since the last event, or the last thread that was asked to stop.
    pause: Pause,
    progress: Progress,
}

/// How an attempt ended.
enum Attempt {
    Drained,
    /// Those inside do not leave, and somebody is parked.
    Stalled,
    Deadline,
}

/// A thread that is held at an entry.
#[derive(Clone, Copy, Debug)]
struct Parked {
    entry: RunAddr,
    since: Instant,
}

/// Brings all threads outside. The breakpoints stay in place until [`Drained::switch`].
///
/// # Errors
/// [`Failed::Busy`] at the deadline, or an error; the breakpoints and the net are gone then.
pub fn drain(ahead: Ahead, job: Job<'_>) -> Result<Drained<'_>, Failed> {
    let landing = job.entries.landing();
    let mut drain = Drain::new(ahead, job);
    let Drain { seized, job, serialiser, .. } = &mut drain;
    if let Err(error) = net::install(seized, landing, serialiser, job.deadline) {
        let mut seized = drain.seized;
        let removed =
            net::remove(&mut seized, landing, &BTreeSet::new(), &mut Vec::new(), Instant::now() + UNDO);
        return Err(match removed {
            Ok(()) => Failed::Unable(Box::new(seized), error),
            Err(_) => Failed::Error(error),
        });
    }
    seized.set_breakpoints(job.entries.breakpoints());
    seized.hold_forked(true);
    seized.hold_own_traps(true);
    let outcome = drain.prepare().and_then(|ready| if ready { drain.run() } else { Ok(Attempt::Deadline) });
    match outcome {
        Ok(Attempt::Drained) => Ok(Drained(drain)),
        Ok(_) => Err(drain.give_up()),
        Err(error) => Err(Failed::Error(drain.abandon(error).1)),
    }
}

/// Looks whether every thread is outside at some time: what [`drain()`] would meet. Nothing is written, and no thread held for
/// longer than a look.
///
/// # Errors
/// As [`drain()`].
pub fn survey(seized: Seized, job: Job<'_>) -> Result<(Seized, Progress), Failed> {
    let mut drain = Drain::that_only_looks(seized, job);
    match drain.attempt() {
        Ok(Attempt::Drained) => Ok((drain.seized, drain.progress)),
        Ok(_) => Err(drain.who_is_inside()),
        Err(error) => Err(Failed::Error(error)),
    }
}

/// Who is inside at this time, by one look at each thread. Nothing is written.
///
/// # Errors
/// The process is gone or cannot be traced.
pub fn who(seized: Seized, job: Job<'_>) -> Result<(Seized, Vec<Inside>), ApplyError> {
    let mut drain = Drain::that_only_looks(seized, job);
    drain.begin()?;
    let unknown = |standing: &Standing| matches!(standing, Standing::Unknown);
    while drain.roster.threads.values().any(unknown) && Instant::now() < job.deadline {
        drain.take_events()?;
        let now = Instant::now();
        drain.look(now)?;
        drain.wait(now);
    }
    drain.seized.let_all_run()?;
    let inside = drain.roster.threads.into_values().filter_map(|standing| match standing {
        Standing::Inside(seen) => Some(seen.who),
        _ => None,
    });
    Ok((drain.seized, inside.collect()))
}

impl<'a> Drain<'a> {
    /// Without breakpoints.
    fn that_only_looks(seized: Seized, job: Job<'a>) -> Self {
        let ahead = Ahead { seized, serialiser: Serialiser::default(), slept: BTreeMap::new() };
        Self { armed: false, ..Self::new(ahead, job) }
    }

    fn new(Ahead { seized, serialiser, slept }: Ahead, job: Job<'a>) -> Self {
        let now = Instant::now();
        Self {
            seized,
            job,
            serialiser,
            roster: Roster::new(),
            asked: BTreeMap::new(),
            parked: BTreeMap::new(),
            stalls: Stalls::new(),
            calm: BTreeSet::new(),
            deep: BTreeSet::new(),
            slept,
            resting: BTreeMap::new(),
            children: Children::default(),
            unblocked: BTreeMap::new(),
            armed: true,
            net_seen: now,
            last_event: now,
            polled: now,
            pause: Pause::default(),
            progress: Progress::default(),
        }
    }

    /// Attempts until drained or the deadline. Except after [`Attempt::Drained`] no breakpoint is left.
    fn run(&mut self) -> Result<Attempt, ApplyError> {
        loop {
            if !self.await_sharers()? {
                return Ok(Attempt::Deadline);
            }
            self.polled = Instant::now();
            self.job.entries.arm()?;
            self.seized.treat_sharers(Sharers::Watch);
            let attempt = self.attempt()?;
            if matches!(attempt, Attempt::Drained) {
                return Ok(attempt);
            }
            self.job.entries.disarm()?;
            self.release()?;
            self.progress.retries += 1;
            let inside = self.roster.threads.values().filter(|s| matches!(s, Standing::Inside(_))).count();
            log::debug(format_args!("an attempt to drain ended with {inside} inside"));
            if matches!(attempt, Attempt::Deadline) {
                return Ok(attempt);
            }
            self.stalls.again();
            self.breathe()?;
        }
    }

    /// Lets the threads run without breakpoints for a while.
    fn breathe(&mut self) -> Result<(), ApplyError> {
        let until = Instant::now() + BREATH;
        while Instant::now() < until {
            for event in self.seized.pump(until)? {
                self.on_event_at_rest(event)?;
            }
        }
        Ok(())
    }

    /// Breakpoints are away: whoever came to one before is sent back to the entry.
    fn on_event_at_rest(&mut self, event: Event) -> Result<(), ApplyError> {
        match event {
            Event::Stopped { tid } | Event::Breakpoint { tid, .. } => {
                if let Some(thread) = self.seized.held(tid) {
                    thread.resume()?;
                }
            }
            Event::Forked { child } => self.clean_child(child)?,
            _ => {}
        }
        Ok(())
    }

    fn attempt(&mut self) -> Result<Attempt, ApplyError> {
        self.begin()?;
        loop {
            self.take_events()?;
            let began = Instant::now();
            self.look(began)?;
            let now = Instant::now();
            self.stalls.worked(now.duration_since(began));
            if self.roster.is_done() && self.asked.is_empty() && self.nobody_missing()? {
                return Ok(Attempt::Drained);
            }
            if now >= self.job.deadline {
                return Ok(Attempt::Deadline);
            }
            if self.check_stall(now)? || self.check_sharers(now)? {
                return Ok(Attempt::Stalled);
            }
            self.check_net()?;
            self.wait(now);
        }
    }

    /// All threads that exist now may be inside. What happened before the breakpoints is of no interest.
    fn begin(&mut self) -> Result<(), ApplyError> {
        for event in self.seized.poll([])? {
            self.on_event_at_rest(event)?;
        }
        let now = Instant::now();
        (self.last_event, self.net_seen) = (now, now);
        self.seized.let_none_pass();
        self.deep.clear();
        self.calm.clear();
        self.resting.clear();
        self.asked.clear();
        self.roster = Roster::new();
        self.add_strangers(now);
        Ok(())
    }

    /// Threads that are traced but were not known yet.
    fn add_strangers(&mut self, now: Instant) {
        for tid in self.seized.threads() {
            if !self.roster.threads.contains_key(&tid) {
                self.roster.stands(tid, Standing::Unknown);
                self.roster.schedule(tid, now);
            }
        }
        self.progress.threads = self.roster.threads.len();
    }

    fn keep_net(&mut self) -> Result<(), ApplyError> {
        // The kernel takes the net away when a thread that blocks SIGTRAP comes to a breakpoint.
        if self.armed {
            if !net::is_installed(&self.seized)? {
                net::install_again(&mut self.seized, self.job.entries.landing(), self.job.deadline)?;
            }
            self.seized.deliver_own_traps();
        }
        Ok(())
    }

    fn nobody_missing(&mut self) -> Result<bool, ApplyError> {
        self.seized.seize_untraced(self.job.deadline)?;
        // Those that were born traced are told by events, and are outside.
        self.take_events()?;
        self.add_strangers(Instant::now());
        if !self.roster.is_done() {
            return Ok(false);
        }
        self.keep_net()?;
        Ok(self.roster.is_done() && self.asked.is_empty())
    }

    /// Now and then, while threads come to breakpoints.
    fn check_net(&mut self) -> Result<(), ApplyError> {
        let due = self.net_seen.elapsed() >= NET_CHECK && self.last_event > self.net_seen;
        if due || self.seized.has_own_traps() {
            self.net_seen = Instant::now();
            self.keep_net()?;
        }
        Ok(())
    }

    fn take_events(&mut self) -> Result<(), ApplyError> {
        let polled = Instant::now();
        let awaited: Vec<Tid> = self.asked.keys().copied().collect();
        let events = self.seized.poll(awaited)?;
        if !events.is_empty() {
            self.last_event = polled;
            self.pause = Pause::default();
        }
        let began = Instant::now();
        for &event in &events {
            self.on_event(event)?;
        }
        self.stalls.worked(began.elapsed());
        for (tid, sp) in self.seized.passed() {
            (self.last_event, self.pause) = (polled, Pause::default());
            self.progress.parked(self.polled.elapsed());
            self.stalls.passes(tid, sp);
        }
        self.still_on_the_way(polled);
        self.polled = self.polled.max(self.seized.polled_all());
        Ok(())
    }

    /// Whoever was asked to stop and did not tell that it has was not stopped at this time.
    fn still_on_the_way(&mut self, polled: Instant) {
        for seen in self.asked.values_mut() {
            *seen = (*seen).max(polled);
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), ApplyError> {
        match event {
            Event::Stopped { tid } => self.on_stop(tid),
            Event::Breakpoint { tid, addr } => self.on_breakpoint(tid, addr),
            Event::Started { tid } => {
                self.outside(tid);
                Ok(())
            }
            Event::Exited { tid } => {
                self.forget(tid);
                Ok(())
            }
            Event::Forked { child } => self.clean_child(child),
            _ => Ok(()),
        }
    }

    fn forget(&mut self, tid: Tid) {
        self.roster.forget(tid);
        self.asked.remove(&tid);
        self.parked.remove(&tid);
    }

    fn clean_child(&mut self, child: Tid) -> Result<(), ApplyError> {
        let cleaned =
            self.seized.forked_memory(child).and_then(|memory| self.job.entries.clean_child(&memory));
        if let Err(error) = cleaned {
            log::debug(format_args!(
                "the forked child {child} keeps the breakpoints, which its copy of the net serves: {error}"
            ));
        }
        Ok(self.seized.release_forked(child)?)
    }

    /// Puts in order what the children got that were made while there were breakpoints. Those still on the way to their first stop
    /// are waited for.
    fn clean_all_children(&mut self) -> Result<(), ApplyError> {
        let limit = Instant::now() + FIRST_STOP;
        while self.seized.has_forked_on_the_way() && Instant::now() < limit {
            for event in self.seized.pump(Instant::now() + BREATH)? {
                self.on_event_at_rest(event)?;
            }
        }
        for child in self.seized.forked() {
            self.clean_child(child)?;
        }
        self.seized.hold_forked(false);
        Ok(())
    }

    /// Lets the parked threads go on, at the entry that they came to. No breakpoint is left there.
    fn release(&mut self) -> Result<(), ApplyError> {
        for (tid, Parked { since, .. }) in std::mem::take(&mut self.parked) {
            if let Some(thread) = self.seized.held(tid) {
                thread.resume()?;
                self.calm.insert(tid);
            }
            self.progress.parked(since.elapsed());
        }
        self.seized.release_sharers();
        Ok(())
    }

    /// Waits a little, awake if a thread waits for its look or events come one after the other.
    fn wait(&mut self, now: Instant) {
        if self.roster.next().is_some_and(|(when, _)| when <= now) && self.asked.len() < WINDOW {
            return;
        }
        if !self.asked.is_empty() || now.duration_since(self.last_event) < AWAKE {
            self.pause.take(now + NAP);
        } else {
            let next = self.roster.next().map_or(NAP, |(when, _)| when.saturating_duration_since(now));
            numbered::sleep(next.min(NAP));
        }
    }

    /// At the deadline, with the breakpoints away.
    fn give_up(mut self) -> Failed {
        if let Err(error) = self.end() {
            return Failed::Error(error);
        }
        self.who_is_inside()
    }

    fn who_is_inside(mut self) -> Failed {
        if let Err(error) = self.seized.let_all_run() {
            return Failed::Error(error.into());
        }
        let mut inside = Vec::new();
        let mut unseen = Vec::new();
        for (tid, standing) in self.roster.threads {
            match standing {
                Standing::Inside(seen) => inside.push(seen.who),
                Standing::Unknown => unseen.push(tid),
                Standing::Outside => {}
            }
        }
        // At the end there is always one that was just let through or came late. It is nobody to look after where others are inside.
        if !inside.is_empty() {
            unseen.clear();
        }
        Failed::Busy(Box::new(NotQuiescent {
            seized: self.seized,
            inside,
            unseen,
            process: self.children.at_deadline,
        }))
    }

    /// After an error: everything back as it was.
    fn abandon(mut self, error: ApplyError) -> (Option<Seized>, ApplyError) {
        let process = self.job.process;
        if !process.is_alive() {
            return (None, error);
        }
        let lost = |error: ApplyError| (None, error);
        if let Err(second) = self.job.entries.disarm() {
            let what = error.to_string();
            return lost(match second {
                ApplyError::NotUndone { undo, .. } => ApplyError::NotUndone { what, undo },
                other => other,
            });
        }
        if let Err(second) = self.release().and_then(|()| self.end()) {
            log::warn(format_args!("after an error, the threads are let go: {second}"));
        }
        (Some(self.seized), error)
    }

    /// The entries are as they stay: no breakpoint is left.
    fn end(&mut self) -> Result<(), ApplyError> {
        if self.seized.has_own_traps()
            && let Err(error) = self.keep_net()
        {
            log::debug(format_args!("a SIGTRAP of the program's own meets no action: {error}"));
        }
        let process = self.job.process;
        let resting = std::mem::take(&mut self.resting).into_iter();
        let rests =
            resting.filter(|(tid, asleep)| asleep.syscall.is_some() && process.slept_since(*tid, asleep));
        self.calm.extend(rests.map(|(tid, _)| tid));
        let (landing, limit) = (self.job.entries.landing(), Instant::now() + UNDO);
        let mut events = Vec::new();
        if let Err(error) = net::remove(&mut self.seized, landing, &self.calm, &mut events, limit) {
            log::debug(format_args!("the net stays: {error}"));
        }
        events.into_iter().try_for_each(|event| self.on_event_at_rest(event))?;
        self.clean_all_children()?;
        self.seized.let_all_run()?;
        self.block_again();
        self.seized.treat_sharers(Sharers::LetGo);
        self.seized.set_breakpoints(Breakpoints::new());
        Ok(())
    }
}

impl Drained<'_> {
    /// Switches all entries and lets all threads go on. `done` is called as soon as the entries are final.
    ///
    /// # Errors
    /// Before the commit everything is undone; after it, what is missing is left to the next run.
    pub fn switch(self, done: impl FnOnce()) -> Result<Switched, Box<NotSwitched>> {
        let Self(mut drain) = self;
        let mut events = Vec::new();
        let limit = Instant::now() + UNDO;
        let (seized, how) = (&mut drain.seized, &mut drain.serialiser);
        let switched = drain.job.entries.switch(|| net::serialise(seized, how, limit, &mut events));
        match switched {
            Ok(()) => {}
            Err(SwitchError::Before(error)) => {
                let (seized, error) = drain.abandon(error);
                return Err(Box::new(NotSwitched { seized, error, committed: false }));
            }
            Err(SwitchError::After(error)) => {
                // The net leads everybody to the new world.
                let released = drain.release();
                log::warn(format_args!(
                    "the entries could not be completed: {error}; threads let go: {}",
                    released.is_ok()
                ));
                return Err(Box::new(NotSwitched { seized: None, error, committed: true }));
            }
        }
        done();
        let finished = drain.release().and_then(|()| {
            events.into_iter().try_for_each(|event| drain.on_event_at_rest(event))?;
            drain.end()
        });
        match finished {
            Ok(()) => Ok(Switched { seized: drain.seized, progress: drain.progress }),
            Err(error) => {
                log::warn(format_args!("after the switch: {error}"));
                Ok(Switched { seized: drain.seized, progress: drain.progress })
            }
        }
    }
}
