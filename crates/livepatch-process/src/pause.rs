//! Waiting for the kernel's next report.

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
            std::thread::yield_now();
        } else {
            let grown = Duration::from_micros(20) * (self.rounds - Self::YIELDS + 1);
            let left = deadline.saturating_duration_since(Instant::now());
            std::thread::sleep(grown.min(Self::LONGEST).min(left));
        }
        self.rounds = self.rounds.saturating_add(1).min(Self::YIELDS + 100);
    }
}
