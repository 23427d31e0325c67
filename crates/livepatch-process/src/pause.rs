//! Waiting for the kernel's next report.

use crate::numbered::{sleep, yield_now};
use std::time::{Duration, Instant};

/// Waiting without a blocking wait: blocking in `waitpid` has no time limit, and a limit by signal or timer would
/// interfere with the rest of the tool's process. Stops follow an interrupt within microseconds, so the processor is
/// first offered to the target; after that come sleeps that grow.
#[derive(Default)]
pub(crate) struct Pause {
    rounds: u32,
}

impl Pause {
    const YIELDS: u32 = 64;
    const LONGEST: Duration = Duration::from_micros(500);

    /// Waits a little, a little longer each time.
    pub fn take(&mut self, deadline: Instant) {
        if self.rounds < Self::YIELDS {
            yield_now();
        } else {
            let grown = Duration::from_micros(20) * (self.rounds - Self::YIELDS + 1);
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(grown.min(Self::LONGEST).min(left));
        }
        self.rounds = self.rounds.saturating_add(1).min(Self::YIELDS + 100);
    }
}

/// Waiting for something that follows within microseconds if the other side has a processor, for example a stop that was asked for.
///
/// Where it has none, giving way does not help: processors are shared among sessions and control groups first (sched(7), "The
/// autogroup feature"), and a thread that gives way is the only one of its group. It would use up its share with asking, and wait for the
/// next one while threads of the target wait for it. A thread that sleeps keeps its share, and comes at once when it wakes up.
#[derive(Debug, Default)]
pub struct Expect {
    rounds: u32,
}

impl Expect {
    const YIELDS: u32 = 64;
    const NAP: Duration = Duration::from_micros(20);

    /// Waits a little.
    pub fn wait(&mut self) {
        if self.rounds < Self::YIELDS {
            self.rounds += 1;
            yield_now();
        } else {
            sleep(Self::NAP);
        }
    }
}
