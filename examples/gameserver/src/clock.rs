//! Sixty ticks a second.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Time between two ticks.
const FRAME: Duration = Duration::from_nanos(1_000_000_000 / 60);

/// Says when the next tick is due, and notes how late each began.
pub struct Clock {
    due: Instant,
    queue: Queue,
    /// The part of the last tick's lateness for which it waited for a core; it may make the next one late, too.
    queued: Duration,
    report: Report,
}

/// How punctual ticks were.
#[derive(Default)]
pub struct Report {
    ticks: u64,
    /// Ticks that began more than one frame after they were due.
    late: u64,
    worst: Duration,
    /// The same without the time that the thread was ready and waited for a core, which is the machine's doing.
    held: u64,
    worst_held: Duration,
}

impl Clock {
    /// A clock for the calling thread.
    pub fn start() -> Self {
        let queue = Queue::of_this_thread();
        Self { due: Instant::now() + FRAME, queue, queued: Duration::ZERO, report: Report::default() }
    }

    /// Waits for the next tick. A tick that is late by more than a frame does not make the following ones late.
    pub fn wait(&mut self) {
        std::thread::sleep(self.due.saturating_duration_since(Instant::now()));
        let mut queued = self.queued + self.queue.waited();
        let late = loop {
            let late = self.due.elapsed();
            match self.queue.waited() {
                Duration::ZERO => break late,
                // It waited just now, so the clock is ahead of the account.
                more => queued += more,
            }
        };
        self.queued = queued.min(late);
        let held = late - self.queued;
        self.report.ticks += 1;
        self.report.worst = self.report.worst.max(late);
        self.report.worst_held = self.report.worst_held.max(held);
        self.report.held += u64::from(held > FRAME);
        self.due += FRAME;
        if late > FRAME {
            self.report.late += 1;
            self.due = Instant::now() + FRAME;
            self.queued = Duration::ZERO;
        }
    }

    /// What happened since the last report.
    pub fn report(&mut self) -> Report {
        std::mem::take(&mut self.report)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (worst, worst_held) = (self.worst.as_micros(), self.worst_held.as_micros());
        let Self { ticks, late, held, .. } = self;
        write!(f, "ticks={ticks} late={late} worst_us={worst} held={held} worst_held_us={worst_held}")
    }
}

/// The kernel's account of the time for which a thread was ready and waited for a core.
struct Queue {
    /// None where the kernel keeps none: then no lateness is the machine's.
    account: Option<File>,
    total: Duration,
}

impl Queue {
    fn of_this_thread() -> Self {
        let mut queue =
            Self { account: File::open("/proc/thread-self/schedstat").ok(), total: Duration::ZERO };
        queue.waited();
        queue
    }

    /// Time since the last call.
    fn waited(&mut self) -> Duration {
        let total = self.account.as_ref().and_then(read).unwrap_or(self.total);
        total.saturating_sub(std::mem::replace(&mut self.total, total))
    }
}

/// The second of three numbers, in nanoseconds.
fn read(account: &File) -> Option<Duration> {
    let mut text = [0; 96];
    let length = account.read_at(&mut text, 0).ok()?;
    let mut words = str::from_utf8(&text[..length]).ok()?.split_ascii_whitespace();
    words.nth(1)?.parse().ok().map(Duration::from_nanos)
}
