//! What is done when those inside do not leave: parked threads are let through.
//!
//! A parked thread may have what one inside waits for: a lock, the other end of a channel, a job. Until the commit there is the old
//! world only, so to let a thread in is as right as to let one pass that is inside already; the breakpoints stay.
//!
//! Those that are inside when nobody leaves are the *waiters*. All others that come to an entry are let through, as often as they
//! come, until no waiter is inside any more: what waits for a lock needs many chances where others take it again at once.
//! Waiters stay parked once out, so the number of threads that can come in shrinks. Where the waiters do not become fewer even
//! so (one that stays parked has what is waited for; a fair lock goes from one thread on its way through to the next), the
//! attempt is over, and the next one gives more time: calls may just last long.
//!
//! Where each waits for the next (a token goes round, all meet at a barrier), those that are let through as often as they come are
//! inside again before the others are out. So in every other attempt each takes its *turn*: whoever is parked and was inside less often than
//! is allowed is let through, as far as the next entry, and what is allowed grows by one only when nobody is left to let through. Those that
//! wait for each other come in equally often, so each such group is out after the same number of turns, however many groups there are.
//!
//! A thread that comes to an entry further down its stack than ever before is neither waiting nor spinning, and a stack has an end:
//! as long as there is one, nobody is stuck. (A recursion takes a breakpoint at each depth, so it goes down slowly, and up fast.)

use super::looks::parked_at;
use super::{Drain, Parked};
use crate::error::ApplyError;
use crate::transition::standing::Standing;
use livepatch_patch::RunAddr;
use livepatch_process::{Tid, log};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// First and longest time without a movement after which somebody is let through.
const FIRST_GRACE: Duration = Duration::from_millis(3);
const LONGEST_GRACE: Duration = Duration::from_millis(200);
/// First and longest time without a waiter leaving after which an attempt is over.
const FIRST_PATIENCE: Duration = Duration::from_millis(40);
const LONGEST_PATIENCE: Duration = Duration::from_secs(2);
/// By how much longer to be patient while those inside run: they wait for nobody, unless they spin, but maybe for a processor.
const RUNNING: u32 = 4;
/// After which part of the grace those are looked at that took their turn.
const LOOK_AFTER: u32 = 4;

/// How a drain got stuck so far.
#[derive(Debug)]
pub(super) struct Stalls {
    /// Whether threads take turns.
    in_turns: bool,
    /// How often each was inside, and how often it may be.
    turns: BTreeMap<Tid, u32>,
    allowed: u32,
    grace: Duration,
    patience: Duration,
    /// Threads that were inside when nobody left.
    waiters: BTreeSet<Tid>,
    /// Threads that are let through.
    free: BTreeSet<Tid>,
    /// How many waiters, or threads at all, are inside, and since when that is the smallest number.
    inside: usize,
    stands_since: Instant,
    /// When somebody was let through for the first time, or when that was over.
    turned: Instant,
    /// When a thread inside passed an entry, so that it waits for nobody.
    passed: Instant,
    /// The lowest stack pointer of each at an entry, and when there was a lower one.
    deepest: BTreeMap<Tid, RunAddr>,
    deeper: Instant,
}

impl Stalls {
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            in_turns: false,
            turns: BTreeMap::new(),
            allowed: 1,
            grace: FIRST_GRACE,
            patience: FIRST_PATIENCE,
            waiters: BTreeSet::new(),
            free: BTreeSet::new(),
            inside: 0,
            stands_since: now,
            turned: now,
            passed: now,
            deepest: BTreeMap::new(),
            deeper: now,
        }
    }

    /// For another attempt.
    pub fn again(&mut self) {
        // Both ways have their chance with the same grace.
        let factor = 1 + u32::from(self.in_turns);
        *self = Self {
            in_turns: !self.in_turns,
            inside: usize::MAX,
            grace: (self.grace * factor).min(LONGEST_GRACE),
            patience: (self.patience * 2).min(LONGEST_PATIENCE),
            ..Self::new()
        };
    }

    /// A thread inside passes an entry with this stack pointer.
    pub fn passes(&mut self, tid: Tid, sp: RunAddr) {
        self.passed = Instant::now();
        let deepest = self.deepest.entry(tid).or_insert(sp);
        if sp < *deepest {
            *deepest = sp;
            self.deeper = self.passed;
        }
    }

    /// The drain dealt with one thread for so long, and no other that had come to a breakpoint could get on: that does not count. A
    /// walk of a deep stack takes longer than the first grace.
    pub fn worked(&mut self, time: Duration) {
        for since in [&mut self.stands_since, &mut self.turned, &mut self.passed, &mut self.deeper] {
            *since += time;
        }
    }

    /// Whether a thread is not to be held at an entry.
    pub fn lets_through(&self, tid: Tid) -> bool {
        self.free.contains(&tid)
    }
}

impl Drain<'_> {
    /// Lets parked threads through if nobody leaves. Whether that leads nowhere.
    pub(super) fn check_stall(&mut self, now: Instant) -> Result<bool, ApplyError> {
        match (self.stalls.in_turns, self.stalls.free.is_empty()) {
            (true, _) => self.take_turns(now),
            (false, true) => self.begin_stall(now),
            (false, false) => self.go_on_with_stall(now),
        }
    }

    /// For how long nobody has left, if it is time to do something about it.
    fn stuck(&self, now: Instant) -> Option<Duration> {
        let moved = self.roster.stands_since()?;
        let stood = now.saturating_duration_since(moved.max(self.stalls.turned).max(self.stalls.deeper));
        let gets_on = now.saturating_duration_since(self.stalls.passed) < self.stalls.grace;
        let waits = |standing: &Standing| matches!(standing, Standing::Inside(seen) if seen.is_asleep());
        let grace = match self.roster.threads.values().any(waits) {
            _ if gets_on => LONGEST_GRACE,
            true => self.stalls.grace,
            false => self.stalls.grace * RUNNING,
        };
        (stood >= grace).then_some(stood)
    }

    fn take_turns(&mut self, now: Instant) -> Result<bool, ApplyError> {
        if self.stuck(now).is_none() || self.parked.is_empty() {
            return Ok(false);
        }
        let (inside, factor) = self.how_many_inside(|_| true);
        let stalls = &mut self.stalls;
        if stalls.turns.is_empty() {
            let is_inside = |standing: &Standing| !matches!(standing, Standing::Outside);
            let first = self.roster.threads.iter().filter(|(_, standing)| is_inside(standing));
            stalls.turns.extend(first.map(|(tid, _)| (*tid, 1)));
            log::debug(format_args!("{inside} inside do not leave: others take turns"));
            self.progress.retries += 1;
        }
        let turns = |tid: &Tid| stalls.turns.get(tid).copied().unwrap_or(0);
        let fewest = self.parked.keys().map(turns).min().unwrap_or(0);
        if inside < stalls.inside || fewest == 0 {
            (stalls.inside, stalls.stands_since) = (inside.min(stalls.inside), now);
        }
        if now.saturating_duration_since(stalls.stands_since) >= stalls.patience * factor {
            return Ok(true);
        }
        stalls.allowed = stalls.allowed.max(fewest + 1);
        let is_due = |(tid, _): &(&Tid, &Parked)| turns(tid) < stalls.allowed;
        let due: Vec<(Tid, Parked)> =
            self.parked.iter().filter(is_due).map(|(tid, at)| (*tid, *at)).collect();
        for (tid, parked) in due {
            *self.stalls.turns.entry(tid).or_default() += 1;
            self.parked.remove(&tid);
            self.pass(tid, parked)?;
            self.roster.schedule(tid, now + self.stalls.grace / LOOK_AFTER);
        }
        Ok(false)
    }

    fn begin_stall(&mut self, now: Instant) -> Result<bool, ApplyError> {
        let Some(stood) = self.stuck(now) else { return Ok(false) };
        let inside =
            self.roster.threads.iter().filter(|(_, standing)| matches!(standing, Standing::Inside(_)));
        self.stalls.waiters.extend(inside.map(|(tid, _)| *tid));
        let (inside, factor) = self.waiters_inside();
        (self.stalls.inside, self.stalls.stands_since) = (inside, now);
        if self.let_through(now)? {
            log::debug(format_args!("{inside} inside do not leave: others are let through"));
            self.stalls.turned = now;
            self.progress.retries += 1;
            return Ok(false);
        }
        Ok(!self.parked.is_empty() && stood >= self.stalls.patience * factor)
    }

    fn go_on_with_stall(&mut self, now: Instant) -> Result<bool, ApplyError> {
        let (inside, factor) = self.waiters_inside();
        if inside == 0 {
            self.stalls.turned = now;
            for tid in std::mem::take(&mut self.stalls.free) {
                if matches!(self.roster.threads.get(&tid), Some(Standing::Unknown)) {
                    self.roster.schedule(tid, now);
                }
            }
            return Ok(false);
        }
        if inside < self.stalls.inside {
            (self.stalls.inside, self.stalls.stands_since) = (inside, now);
        }
        self.let_through(now)?;
        let stands_since = self.stalls.stands_since.max(self.stalls.deeper);
        Ok(now.saturating_duration_since(stands_since) >= self.stalls.patience * factor)
    }

    /// How many of these are inside, and how much longer to be patient with them.
    fn how_many_inside(&self, among: impl Fn(&Tid) -> bool) -> (usize, u32) {
        let (mut inside, mut factor) = (0, 1);
        for (_, standing) in self.roster.threads.iter().filter(|(tid, _)| among(tid)) {
            match standing {
                Standing::Inside(seen) if seen.is_asleep() => inside += 1,
                Standing::Inside(_) | Standing::Unknown => (inside, factor) = (inside + 1, RUNNING),
                Standing::Outside => {}
            }
        }
        (inside, factor)
    }

    fn waiters_inside(&self) -> (usize, u32) {
        self.how_many_inside(|tid| self.stalls.waiters.contains(tid))
    }

    /// Lets those through that are parked for the grace period and no waiters. Whether there are any.
    fn let_through(&mut self, now: Instant) -> Result<bool, ApplyError> {
        let Stalls { waiters, grace, .. } = &self.stalls;
        let is_due = |(tid, parked): &(&Tid, &Parked)| {
            !waiters.contains(tid) && now.saturating_duration_since(parked.since) >= *grace / 2
        };
        let due: Vec<(Tid, Parked)> =
            self.parked.iter().filter(is_due).map(|(tid, at)| (*tid, *at)).collect();
        for (tid, parked) in &due {
            self.parked.remove(tid);
            self.stalls.free.insert(*tid);
            self.pass(*tid, *parked)?;
        }
        Ok(!due.is_empty())
    }

    /// Sends a thread that is held at an entry into the old code.
    pub(super) fn pass(&mut self, tid: Tid, Parked { entry, since }: Parked) -> Result<(), ApplyError> {
        if let Some((mut thread, mut regs)) = parked_at(&mut self.seized, tid, entry)? {
            regs.set_ip(self.job.entries.before(entry).unwrap_or(entry));
            thread.set_regs(&regs)?;
            thread.resume()?;
            self.roster.stands(tid, Standing::Unknown);
            // As long as it is let through it need not be known where it is.
            self.roster.schedule(tid, Instant::now() + self.stalls.grace);
        }
        self.progress.parked(since.elapsed());
        Ok(())
    }
}
