//! The snapshot method: stop all threads, prove every stack, and if somebody is inside let all run for a short while and try
//! again. A function that is on some stack at every moment never lets it succeed, and the more threads, the longer all of
//! them are held: it is there to be compared with, and for functions that cannot have a breakpoint.

use super::entries::{read_code, write_checked};
use super::{Failed, NotQuiescent, NotSwitched, Progress, Switched, describe_sharers, if_told, sharers};
use crate::error::ApplyError;
use crate::guard::{Guard, Inside};
use crate::registry::EntryWrite;
use crate::stacks;
use crate::unwind::Tables;
use livepatch_process::log;
use livepatch_process::{InterruptError, Process, ProcessError, Seized, Stopped};
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

/// Tries until all threads are stopped outside of what is guarded, or the deadline passes. At least one attempt is made.
pub fn quiesce(
    mut seized: Seized,
    tables: &Tables,
    guard: &Guard,
    deadline: Instant,
) -> Result<Quiesced, Failed> {
    let mut progress = Progress::default();
    let mut pause = FIRST_PAUSE;
    loop {
        let (inside, process);
        (seized, inside, process) = match attempt(seized, tables, guard, &mut progress)? {
            Attempt::Quiet(stopped) => return Ok(Quiesced { stopped, progress }),
            Attempt::Occupied(seized, inside) => (seized, inside, None),
            Attempt::Stuck(seized, who) => (seized, Vec::new(), Some(who)),
        };
        progress.retries += 1;
        log::debug(format_args!("not quiescent: {} inside, {} retries", inside.len(), progress.retries));
        if Instant::now() >= deadline {
            return Err(Failed::Busy(Box::new(NotQuiescent { seized, inside, unseen: Vec::new(), process })));
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
    mut seized: Seized,
    tables: &Tables,
    guard: &Guard,
    progress: &mut Progress,
) -> Result<Attempt, Failed> {
    if let Some(text) = sharers(&mut seized) {
        return Ok(Attempt::Stuck(seized, text));
    }
    let mut stopped = match seized.interrupt_all(Instant::now() + STOP_LIMIT) {
        Ok(stopped) => stopped,
        Err((seized, error @ InterruptError::Stuck { .. })) => {
            progress.held(seized.last_stop().unwrap_or_default());
            return Ok(Attempt::Stuck(seized, error.to_string()));
        }
        Err((_, error)) => return Err(Failed::Error(error.into())),
    };
    // One may have come before its maker stopped. Nobody makes one now.
    let found = if_told(stopped.sharers_at_large())?;
    if !found.is_empty() {
        let seized = stopped.resume_all()?;
        progress.held(seized.last_stop().unwrap_or_default());
        let text = describe_sharers(&seized, &found);
        return Ok(Attempt::Stuck(seized, text));
    }
    let stacks = stacks::of_all(&stopped, tables)?;
    progress.threads = stacks.len();
    let inside = guard.inside(stacks);
    if inside.is_empty() {
        return Ok(Attempt::Quiet(stopped));
    }
    let seized = stopped.resume_all()?;
    progress.held(seized.last_stop().unwrap_or_default());
    Ok(Attempt::Occupied(seized, inside))
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
        progress.held(seized.last_stop().unwrap_or_default());
        Ok((seized, progress))
    }
}

impl Quiesced {
    /// Writes every entry, reads it back, and lets the threads run.
    ///
    /// # Errors
    /// An entry does not hold what it should before, or a write failed. The entries written until then are put back, and that
    /// is checked, too; [`ApplyError::NotUndone`] says that it failed.
    pub fn switch(self, writes: &[EntryWrite]) -> Result<Switched, Box<NotSwitched>> {
        let process = self.stopped.process().clone();
        let outcome = write_all(&process, writes);
        match (outcome, self.resume()) {
            (Ok(()), Ok((seized, progress))) => Ok(Switched { seized, progress }),
            (Ok(()), Err(error)) => {
                Err(Box::new(NotSwitched { seized: None, error: error.into(), committed: true }))
            }
            (Err(error), resumed) => Err(Box::new(NotSwitched {
                seized: resumed.ok().map(|(seized, _)| seized),
                error,
                committed: false,
            })),
        }
    }
}

fn write_all(process: &Process, writes: &[EntryWrite]) -> Result<(), ApplyError> {
    for write in writes {
        let found = read_code(process, write.at)?;
        if found != write.before {
            return Err(ApplyError::Environment {
                what: format!("the entry at {} changed while the switch was prepared", write.at),
                source: None,
            });
        }
    }
    for (done, write) in writes.iter().enumerate() {
        if let Err(error) = write_checked(process, write.at, &write.after.0) {
            return Err(undo(process, &writes[..=done], error));
        }
    }
    Ok(())
}

fn undo(process: &Process, writes: &[EntryWrite], error: ProcessError) -> ApplyError {
    if error.is_lost() {
        return error.into();
    }
    for write in writes.iter().rev() {
        if let Err(second) = write_checked(process, write.at, &write.before.0) {
            return ApplyError::NotUndone { what: error.to_string(), undo: second.to_string() };
        }
    }
    error.into()
}
