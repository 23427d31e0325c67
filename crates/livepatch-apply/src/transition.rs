//! Getting every thread out of what is to be replaced.
//!
//! The snapshot method: stop all threads, prove every stack, and if somebody is inside let all run for a short while and try
//! again. What it yields is a [`Quiesced`] value, the only thing that can write code; another way to reach quiescence
//! would yield the same.

use crate::error::ApplyError;
use crate::guard::{Guard, Inside};
use crate::report::{Holds, Policy};
use crate::stacks;
use crate::unwind::Tables;
use livepatch_process::{InterruptError, ProcessError, Seized, Stopped};
use std::time::{Duration, Instant};

/// Longest time that one attempt waits for all threads to stop. A thread in `vfork` or in the kernel stops late; the
/// others must not be held for it.
const STOP_LIMIT: Duration = Duration::from_millis(250);
/// First and longest pause between attempts.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// All threads are stopped and none is inside of what is guarded.
#[derive(Debug)]
pub struct Quiesced {
    pub(crate) stopped: Stopped,
    pub(crate) progress: Progress,
}

/// How it went so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    longest: Duration,
    threads: usize,
    retries: u32,
}

impl Progress {
    fn held(&mut self, time: Option<Duration>) {
        self.longest = self.longest.max(time.unwrap_or_default());
    }

    /// The figures for the report. Threads are held alike whether they enter changed code or not.
    pub fn holds(&self) -> Holds {
        let micros = self.longest.as_micros() as u64;
        Holds { world_stopped_us: micros, parked_us: micros, threads: self.threads, retries: self.retries }
    }
}

/// Quiescence was not reached by the deadline. Every thread runs.
#[derive(Debug)]
pub struct NotQuiescent {
    /// The process, still seized.
    pub seized: Seized,
    /// Who was in the way at the last attempt.
    pub inside: Vec<Inside>,
    /// Threads that did not stop, as text.
    pub stuck: Option<String>,
    /// How it went.
    pub progress: Progress,
}

/// How an attempt to reach quiescence ended without it.
#[derive(Debug)]
pub enum Failed {
    /// Somebody was inside all the time.
    Busy(Box<NotQuiescent>),
    /// The process or the system failed.
    Error(ApplyError),
}

impl From<ProcessError> for Failed {
    fn from(error: ProcessError) -> Self {
        Self::Error(error.into())
    }
}

/// Tries until all threads are stopped outside of what is guarded, or the deadline passes. At least one attempt is made.
pub fn quiesce(
    mut seized: Seized,
    tables: &Tables,
    guard: &Guard,
    policy: Policy,
    deadline: Instant,
) -> Result<Quiesced, Failed> {
    let mut progress = Progress::default();
    let mut pause = FIRST_PAUSE;
    loop {
        let (inside, stuck);
        (seized, inside, stuck) = match attempt(seized, tables, guard, &mut progress)? {
            Attempt::Quiet(stopped) => return Ok(Quiesced { stopped, progress }),
            Attempt::Occupied(seized, inside) => (seized, inside, None),
            Attempt::Stuck(seized, who) => (seized, Vec::new(), Some(who)),
        };
        progress.retries += 1;
        tracing::debug!(?policy, inside = inside.len(), retries = progress.retries, "not quiescent");
        if Instant::now() >= deadline {
            return Err(Failed::Busy(Box::new(NotQuiescent { seized, inside, stuck, progress })));
        }
        let until = deadline.min(Instant::now() + jittered(pause, progress.retries));
        while Instant::now() < until {
            seized.pump(until)?;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Attempt {
    Quiet(Stopped),
    Occupied(Seized, Vec<Inside>),
    Stuck(Seized, String),
}

fn attempt(
    seized: Seized,
    tables: &Tables,
    guard: &Guard,
    progress: &mut Progress,
) -> Result<Attempt, Failed> {
    if let Some(text) = sharers(&seized) {
        return Ok(Attempt::Stuck(seized, text));
    }
    let stopped = match seized.interrupt_all(Instant::now() + STOP_LIMIT) {
        Ok(stopped) => stopped,
        Err((seized, error @ InterruptError::Stuck { .. })) => {
            progress.held(seized.last_stop());
            return Ok(Attempt::Stuck(seized, error.to_string()));
        }
        Err((_, error)) => return Err(Failed::Error(error.into())),
    };
    let stacks = stacks::of_all(&stopped, tables)?;
    progress.threads = stacks.len();
    let inside = guard.inside(stacks);
    if inside.is_empty() {
        return Ok(Attempt::Quiet(stopped));
    }
    let seized = stopped.resume_all()?;
    progress.held(seized.last_stop());
    Ok(Attempt::Occupied(seized, inside))
}

/// Processes that run in the same memory without being threads of the process, as text. The parent of a `vfork` child shows
/// besides as a thread that does not stop, so that one born after this look is noticed. A kernel without `kcmp` leaves only
/// that.
fn sharers(seized: &Seized) -> Option<String> {
    let found = match seized.process().address_space_sharers() {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "cannot look for processes in the same memory");
            return None;
        }
    };
    let list: Vec<String> = found.iter().map(ToString::to_string).collect();
    (!list.is_empty()).then(|| format!("shares its memory with process {} (vfork or clone)", list.join(", ")))
}

/// A pause that does not fall into step with a periodic program.
fn jittered(pause: Duration, round: u32) -> Duration {
    let spread = round.wrapping_mul(2_654_435_761) >> 24;
    pause / 2 + pause * spread / 256
}

impl Quiesced {
    /// Lets all threads run again, still seized.
    pub fn resume(self) -> Result<(Seized, Progress), ProcessError> {
        let Self { stopped, mut progress } = self;
        let seized = stopped.resume_all()?;
        progress.held(seized.last_stop());
        Ok((seized, progress))
    }
}
