//! Children in the same memory (`vfork`, `clone` with `CLONE_VM`), which are in no thread list.
//!
//! Before the first breakpoint those that are there are waited for: they may be inside, and have another handler of SIGTRAP than the net.
//! Those that come meanwhile are held before their first instruction, though not for long: who makes one may wait for it. With the breakpoints
//! in place they run, outside, and are held at the first entry that they come to, so that the commit finds none of them inside. One
//! whose maker is inside and waits in `vfork` is inside as long as that one is, and may pass.

use super::Drain;
use crate::error::ApplyError;
use crate::transition::standing::Standing;
use crate::transition::{describe_sharers, if_told};
use livepatch_process::{HeldSharer, Sharers};
use std::time::{Duration, Instant};

/// First and longest time that new children are held for the sake of those that are there.
const FIRST_HOLD: Duration = Duration::from_millis(4);
const LONGEST_HOLD: Duration = Duration::from_millis(64);
/// How long a child may be held at an entry before the attempt is over: who is inside may wait for it.
const PATIENCE: Duration = Duration::from_millis(40);

/// What a drain knows of such children.
#[derive(Debug, Default)]
pub(super) struct Children {
    /// Since when one is held at an entry.
    held_since: Option<Instant>,
    /// Who was there at the deadline, for the report.
    pub at_deadline: Option<String>,
}

impl Drain<'_> {
    /// Waits until no child is at large that was made before the breakpoints. New ones are held then. False at the deadline.
    pub(super) fn await_sharers(&mut self) -> Result<bool, ApplyError> {
        let mut hold = FIRST_HOLD;
        loop {
            self.seized.treat_sharers(Sharers::Hold);
            let until = Instant::now() + hold;
            loop {
                let found = if_told(self.seized.sharers_at_large())?;
                if found.is_empty() {
                    return Ok(true);
                }
                let now = Instant::now();
                if now >= self.job.deadline {
                    self.children.at_deadline = Some(describe_sharers(&self.seized, &found));
                    return Ok(false);
                }
                if now >= until {
                    break;
                }
                self.pump_at_rest(until.min(self.job.deadline))?;
            }
            self.seized.treat_sharers(Sharers::LetGo);
            self.pump_at_rest(Instant::now() + hold)?;
            hold = (hold * 2).min(LONGEST_HOLD);
        }
    }

    /// Lets children pass whose makers are inside. Whether others have been held for so long that the attempt is over.
    pub(super) fn check_sharers(&mut self, now: Instant) -> Result<bool, ApplyError> {
        let entries = self.job.entries;
        let passes = |held: &HeldSharer| {
            let maker = held.waited_for_by.and_then(|maker| self.roster.threads.get(&maker));
            matches!(maker, Some(Standing::Inside(_)))
        };
        let (passing, held): (Vec<_>, Vec<_>) = self.seized.held_sharers().into_iter().partition(passes);
        for HeldSharer { child, addr, .. } in passing {
            self.seized.resume_sharer(child, entries.before(addr).unwrap_or(addr))?;
        }
        let since = (!held.is_empty()).then(|| self.children.held_since.unwrap_or(now));
        self.children.held_since = since;
        Ok(since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE))
    }

    /// While there are no breakpoints.
    fn pump_at_rest(&mut self, until: Instant) -> Result<(), ApplyError> {
        self.seized.pump(until)?.into_iter().try_for_each(|event| self.on_event_at_rest(event))
    }
}
