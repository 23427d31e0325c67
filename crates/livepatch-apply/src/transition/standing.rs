//! Where a thread stands: inside of what is to be replaced, or outside.

use crate::guard::{Guard, Inside};
use crate::stacks;
use crate::transition::net::SIGTRAP_BIT;
use crate::unwind::Tables;
use livepatch_patch::RunAddr;
use livepatch_process::{Asleep, Process, Regs, Tid};
use std::time::{Duration, Instant};

/// First and longest time between two looks at a thread that is inside.
const FIRST_LOOK: Duration = Duration::from_micros(100);
const LONGEST_LOOK: Duration = Duration::from_millis(5);
/// For how many times as long as the last look took there is none. A stack of a hundred thousand frames takes long to walk.
const REST: u32 = 8;

/// What is known of a thread since the breakpoints are in place.
#[derive(Debug)]
pub(super) enum Standing {
    /// Not looked at yet.
    Unknown,
    /// It was inside, or its stack could not be proven.
    Inside(Box<Seen>),
    /// It was outside, and cannot have come in since.
    Outside,
}

/// The last look at a thread that is in the way.
#[derive(Debug)]
pub(super) struct Seen {
    /// When it was first found in the way.
    pub since: Instant,
    /// Its stack.
    pub who: Inside,
    /// Its sleep, if it slept.
    asleep: Option<Asleep>,
    /// Not to be looked at before.
    rests_until: Instant,
}

impl Seen {
    /// `look` is when the look at it began.
    pub fn new(since: Instant, who: Inside, asleep: Option<Asleep>, look: Instant) -> Box<Self> {
        let now = Instant::now();
        let rests_until = now + now.duration_since(look) * REST;
        Box::new(Self { since, who, asleep, rests_until })
    }

    /// When to look again: the longer it has been inside, the later.
    pub fn next_look(&self, now: Instant) -> Instant {
        let next = now + (now.duration_since(self.since) / 8).clamp(FIRST_LOOK, LONGEST_LOOK);
        next.max(self.rests_until)
    }

    /// Whether it slept at the last look.
    pub fn is_asleep(&self) -> bool {
        self.asleep.is_some()
    }

    /// Whether it has not run since the last look.
    pub fn sleeps_on(&self, process: &Process) -> bool {
        self.asleep.as_ref().is_some_and(|asleep| process.slept_since(self.who.tid, asleep))
    }

    /// Whether it may be taken for being inside at a breakpoint without a look at its stack: the stack pointer is below the
    /// frame that makes it so, whose address is returned. The frame may have gone since, so this holds only for a limited time; to
    /// let a thread pass is always right, because it is looked at again afterwards.
    pub fn passes_unseen(&self, sp: RunAddr) -> Option<RunAddr> {
        let rests = Instant::now() < self.rests_until;
        self.who.outermost.filter(|cfa| rests && sp.offset(8) < *cfa)
    }
}

/// Judges a sleeping thread without stopping it, by the sleep that is returned. `None` if that is not possible at this moment.
pub(super) fn of_sleeper(
    process: &Process,
    tid: Tid,
    tables: &Tables,
    guard: &Guard,
) -> Option<(Asleep, Result<(), Inside>)> {
    let asleep = process.asleep(tid)?;
    let walk = stacks::of_sleeper(process, tid, &asleep, tables);
    // Without all registers, an unproven stack may be provable.
    if walk.end.is_err() || !process.slept_since(tid, &asleep) {
        return None;
    }
    Some((asleep, guard.judge(tid, walk)))
}

/// A sleep, and what it is known to mean as long as it lasts.
#[derive(Debug)]
pub(super) struct Slept {
    pub asleep: Asleep,
    /// Outside by a proven stack; otherwise its stack cannot be proven without all registers.
    pub outside: bool,
    /// Whether it is known not to block SIGTRAP.
    pub takes_traps: bool,
}

/// The sleep of a thread, seen ahead of time.
pub(super) fn slept(process: &Process, tid: Tid, tables: &Tables, guard: &Guard) -> Option<Slept> {
    let asleep = process.asleep(tid)?;
    let walk = stacks::of_sleeper(process, tid, &asleep, tables);
    let provable = walk.end.is_ok();
    let outside = guard.judge(tid, walk).is_ok();
    let takes_traps = takes_traps(process, tid);
    // Who is inside is looked at again: it is to be known where.
    let of_use = (outside || !provable) && process.slept_since(tid, &asleep);
    of_use.then_some(Slept { asleep, outside, takes_traps })
}

/// Whether a thread is known not to block SIGTRAP.
pub(super) fn takes_traps(process: &Process, tid: Tid) -> bool {
    process.blocked_signals(tid).is_none_or(|blocked| blocked & SIGTRAP_BIT == 0)
}

/// Judges a stopped thread.
pub(super) fn of_stopped(
    process: &Process,
    tid: Tid,
    regs: Regs,
    tables: &Tables,
    guard: &Guard,
) -> Result<(), Inside> {
    guard.judge(tid, stacks::of_one(process, tid, regs, tables).walk)
}
