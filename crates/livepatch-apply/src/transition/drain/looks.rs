//! Looking at single threads, and dealing with those that come to a breakpoint.

use super::settle::unblock;
use super::{Drain, Parked, WINDOW};
use crate::error::ApplyError;
use crate::guard::Inside;
use crate::stacks;
use crate::transition::standing::{self, Seen, Slept, Standing};
use livepatch_patch::RunAddr;
use livepatch_process::{Asleep, Pause, Regs, Seized, StoppedThread, Tid};
use std::time::{Duration, Instant};

/// How long to look at threads before events are asked for again.
const MOMENT: Duration = Duration::from_micros(50);
/// How often a thread that is inside passes breakpoints on sight.
const PASSES: u32 = 256;

impl Drain<'_> {
    /// Looks at threads whose time has come, without waiting for anything and for a moment at most, because others may come to a
    /// breakpoint meanwhile.
    pub(super) fn look(&mut self, now: Instant) -> Result<(), ApplyError> {
        let until = now + MOMENT;
        while let Some((_, tid)) = self.roster.next().filter(|(when, _)| *when <= now) {
            self.look_at(tid, now)?;
            if !self.asked.is_empty() || Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    fn look_at(&mut self, tid: Tid, now: Instant) -> Result<(), ApplyError> {
        self.roster.unschedule(tid);
        if !self.seized.traces(tid) {
            self.forget(tid);
            return Ok(());
        }
        let process = self.job.process;
        if let Some(Standing::Inside(seen)) = self.roster.threads.get(&tid)
            && seen.sleeps_on(process)
        {
            let next = seen.next_look(now);
            self.roster.schedule(tid, next);
            return Ok(());
        }
        let slept = self.slept.remove(&tid).filter(|slept| process.slept_since(tid, &slept.asleep));
        let (judged, slept) = match slept {
            Some(Slept { outside: true, asleep, .. }) => (Some((asleep, Ok(()))), None),
            Some(slept) => (None, Some(slept)),
            None => (standing::of_sleeper(process, tid, self.job.tables, self.job.guard), None),
        };
        match judged {
            Some((asleep, Ok(()))) => {
                self.outside(tid);
                self.resting.insert(tid, asleep);
            }
            Some((asleep, Err(inside))) => self.inside(inside, Some(asleep), now),
            None if self.asked.len() < WINDOW => {
                self.asked.insert(tid, Instant::now());
                self.pause = Pause::default();
                self.seized.request_stop(tid)?;
            }
            None => {
                self.slept.extend(slept.map(|slept| (tid, slept)));
                self.roster.schedule(tid, now);
            }
        }
        Ok(())
    }

    /// `look` is when the look began that found it inside.
    pub(super) fn inside(&mut self, who: Inside, asleep: Option<Asleep>, look: Instant) {
        let (now, tid) = (Instant::now(), who.tid);
        let since = match self.roster.threads.get(&tid) {
            Some(Standing::Inside(seen)) => seen.since,
            _ => now,
        };
        let seen = Seen::new(since, who, asleep, look);
        let next = seen.next_look(now);
        self.roster.schedule(tid, next);
        match seen.who.outermost {
            Some(frame) => self.seized.let_pass(tid, frame, PASSES),
            None => self.seized.hold_next(tid),
        }
        self.roster.stands(tid, Standing::Inside(seen));
    }

    pub(super) fn outside(&mut self, tid: Tid) {
        self.seized.hold_next(tid);
        self.roster.outside(tid);
    }

    pub(super) fn on_stop(&mut self, tid: Tid) -> Result<(), ApplyError> {
        let since = self.asked.remove(&tid).unwrap_or_else(Instant::now);
        let process = self.job.process;
        let Some(mut thread) = told_of(&mut self.seized, tid)? else { return Ok(()) };
        if self.armed {
            self.unblocked.extend(unblock(&mut thread, self.job.tables)?.map(|mask| (tid, mask)));
        }
        let regs = thread.regs()?;
        let look = Instant::now();
        let judged = if self.deep.remove(&tid) {
            let judged = standing::of_stopped(process, tid, regs, self.job.tables, self.job.guard);
            thread.resume()?;
            self.progress.held(since.elapsed());
            judged
        } else {
            let copy = stacks::Copied::new(process, tid, regs);
            thread.resume()?;
            self.progress.held(since.elapsed());
            let walk = copy.walk(self.job.tables);
            if walk.end.is_err() {
                // Perhaps only the copy was too short.
                self.deep.insert(tid);
                self.roster.schedule(tid, Instant::now());
                return Ok(());
            }
            self.job.guard.judge(tid, walk)
        };
        match judged {
            Ok(()) => self.outside(tid),
            Err(inside) => self.inside(inside, None, look),
        }
        Ok(())
    }

    pub(super) fn on_breakpoint(&mut self, tid: Tid, entry: RunAddr) -> Result<(), ApplyError> {
        let was_asked = self.asked.remove(&tid).is_some();
        if self.stalls.lets_through(tid) {
            return self.pass(tid, Parked { entry, since: self.polled });
        }
        let process = self.job.process;
        let Some((mut thread, mut regs)) = parked_at(&mut self.seized, tid, entry)? else { return Ok(()) };
        let look = Instant::now();
        let below = match self.roster.threads.get(&tid) {
            Some(Standing::Inside(seen)) => seen.passes_unseen(regs.sp()),
            _ => None,
        };
        let passes = match self.roster.threads.get(&tid) {
            Some(Standing::Outside) => Ok(()),
            Some(Standing::Inside(_)) if below.is_some() => Err(None),
            _ => standing::of_stopped(process, tid, regs, self.job.tables, self.job.guard).map_err(Some),
        };
        match passes {
            Ok(()) => {
                thread.keep();
                self.outside(tid);
                self.parked.insert(tid, Parked { entry, since: self.polled });
            }
            Err(inside) => {
                let before = self.job.entries.before(entry).unwrap_or(entry);
                regs.set_ip(before);
                thread.set_regs(&regs)?;
                thread.resume()?;
                self.progress.parked(self.polled.elapsed());
                self.stalls.passes(tid, regs.sp());
                if let Some(below) = below {
                    self.seized.let_pass(tid, below, PASSES);
                }
                match inside {
                    Some(inside) => self.inside(inside, None, look),
                    None if was_asked => self.roster.schedule(tid, Instant::now()),
                    None => {}
                }
            }
        }
        Ok(())
    }
}

/// A thread whose stop was told: nobody but the drain lets it go on, not even who uses it for work inside the process meanwhile.
/// `None` if it is gone, which is told, too.
///
/// # Errors
/// It runs: nothing that is known of it holds.
fn told_of(seized: &mut Seized, tid: Tid) -> Result<Option<StoppedThread<'_>>, ApplyError> {
    let traced = seized.traces(tid);
    match seized.held(tid) {
        None if traced => Err(moved(tid)),
        held => Ok(held),
    }
}

/// As [`told_of`], of one that is held at an entry.
///
/// # Errors
/// It runs, or is somewhere else.
pub(super) fn parked_at(
    seized: &mut Seized,
    tid: Tid,
    entry: RunAddr,
) -> Result<Option<(StoppedThread<'_>, Regs)>, ApplyError> {
    let Some(thread) = told_of(seized, tid)? else { return Ok(None) };
    let regs = thread.regs()?;
    match regs.ip() == entry {
        true => Ok(Some((thread, regs))),
        false => Err(moved(tid)),
    }
}

fn moved(tid: Tid) -> ApplyError {
    let what = format!("thread {tid} is not where it was held: somebody else let it go on");
    ApplyError::Environment { what, source: None }
}
