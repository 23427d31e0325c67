//! Waiting for the kernel's next report.

use std::time::{Duration, Instant};

/// Waiting without a blocking wait: blocking in `waitpid` has no time limit, and a limit by signal or timer would
/// interfere with the rest of the tool's process.
///
/// A stop follows an interrupt within microseconds if there is a processor for the thread, so the processor is first only offered to
/// others. After that come sleeps that grow: a tracing thread that the scheduler prefers would, by asking again and again, keep those
/// that it waits for from the processor that they share.
#[derive(Debug, Default)]
pub struct Pause {
    since: Option<Instant>,
    sleeps: u32,
}

impl Pause {
    const AWAKE: Duration = Duration::from_micros(40);
    const FIRST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_micros(500);

    /// Waits a little, a little longer each time.
    pub fn take(&mut self, deadline: Instant) {
        let now = Instant::now();
        if now.duration_since(*self.since.get_or_insert(now)) < Self::AWAKE {
            std::thread::yield_now();
            return;
        }
        self.sleeps += 1;
        let left = deadline.saturating_duration_since(now);
        std::thread::sleep((Self::FIRST * self.sleeps).min(Self::LONGEST).min(left));
    }
}
