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
mod ending;
mod events;
mod looks;
mod roster;
mod settle;
mod sharers;
mod survey;

use self::admit::Stalls;
pub use self::ahead::{Ahead, look_ahead};
use self::roster::Roster;
use self::sharers::Children;
pub use self::survey::{survey, who};
use super::entries::Entries;
use super::net::{self, Serialiser};
use super::standing::{Slept, Standing};
use super::{Failed, Progress};
use crate::error::ApplyError;
use crate::guard::Guard;
use crate::unwind::Tables;
use livepatch_patch::RunAddr;
use livepatch_process::{Asleep, Pause, Process, Seized, Sharers, Tid, log, numbered};
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

impl<'a> Drain<'a> {
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
}
