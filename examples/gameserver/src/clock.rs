//! Sixty ticks a second.

use std::fmt;
use std::time::{Duration, Instant};

/// Time between two ticks.
const FRAME: Duration = Duration::from_nanos(1_000_000_000 / 60);

/// Says when the next tick is due, and notes how late each began.
pub struct Clock {
    due: Instant,
    report: Report,
}

/// How punctual ticks were.
#[derive(Default)]
pub struct Report {
    ticks: u64,
    /// Ticks that began more than one frame after they were due.
    late: u64,
    worst: Duration,
}

impl Clock {
    pub fn start() -> Self {
        Self { due: Instant::now() + FRAME, report: Report::default() }
    }

    /// Waits for the next tick. A tick that is late by more than a frame does not make the following ones late.
    pub fn wait(&mut self) {
        std::thread::sleep(self.due.saturating_duration_since(Instant::now()));
        let late = self.due.elapsed();
        self.report.ticks += 1;
        self.report.worst = self.report.worst.max(late);
        self.due += FRAME;
        if late > FRAME {
            self.report.late += 1;
            self.due = Instant::now() + FRAME;
        }
    }

    /// What happened since the last report.
    pub fn report(&mut self) -> Report {
        std::mem::take(&mut self.report)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ticks={} late={} worst_us={}", self.ticks, self.late, self.worst.as_micros())
    }
}
