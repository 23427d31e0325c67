//! Waiting for the kernel's next report.

use crate::numbered::{sleep, yield_now};
use std::time::{Duration, Instant};

/// Waiting without a blocking wait: blocking in `waitpid` has no time limit, and a limit by signal or timer would
/// interfere with the rest of the tool's process.
///
/// What is waited for, a stop that was asked for say, follows within microseconds if the other side has a processor. So the own one is
/// first only offered to others. Where that does not help, asking again and again does harm: a tracing thread that the scheduler
/// prefers keeps those that it waits for from the processor that they share. And where processors are shared among sessions and control
/// groups first (sched(7), "The autogroup feature"), it uses up the share of its group, and waits for the next one while threads of
/// the target wait for it. A thread that sleeps keeps its share, and comes at once when it wakes up.
///
/// What has stopped is held until it is noticed, so a sleep is short against the time that was waited already, and never long.
#[derive(Debug, Default)]
pub struct Pause {
    since: Option<Instant>,
}

impl Pause {
    const AWAKE: Duration = Duration::from_micros(40);
    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_micros(100);
    /// Part of the time that was waited already.
    const PART: u32 = 16;

    /// Waits a little, after long waiting a little longer.
    pub fn take(&mut self, deadline: Instant) {
        let now = Instant::now();
        let waited = now.duration_since(*self.since.get_or_insert(now));
        if waited < Self::AWAKE {
            yield_now();
            return;
        }
        let left = deadline.saturating_duration_since(now);
        sleep((waited / Self::PART).clamp(Self::SHORTEST, Self::LONGEST).min(left));
    }
}
