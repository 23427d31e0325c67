//! Looking without writing anything.

use super::{Ahead, Attempt, Drain, Job};
use crate::error::ApplyError;
use crate::guard::Inside;
use crate::transition::net::Serialiser;
use crate::transition::standing::Standing;
use crate::transition::{Failed, NotQuiescent, Progress};
use livepatch_process::Seized;
use std::collections::BTreeMap;
use std::time::Instant;

/// Looks whether every thread is outside at some time: what [`super::drain()`] would meet. Nothing is written, and no thread held for
/// longer than a look.
///
/// # Errors
/// As there.
pub fn survey(seized: Seized, job: Job<'_>) -> Result<(Seized, Progress), Failed> {
    let mut drain = Drain::that_only_looks(seized, job);
    match drain.attempt() {
        Ok(Attempt::Drained) => Ok((drain.seized, drain.progress)),
        Ok(_) => Err(drain.who_is_inside()),
        Err(error) => Err(Failed::Error(error)),
    }
}

/// Who is inside at this time, by one look at each thread. Nothing is written.
///
/// # Errors
/// The process is gone or cannot be traced.
pub fn who(seized: Seized, job: Job<'_>) -> Result<(Seized, Vec<Inside>), ApplyError> {
    let mut drain = Drain::that_only_looks(seized, job);
    drain.begin()?;
    let unknown = |standing: &Standing| matches!(standing, Standing::Unknown);
    while drain.roster.threads.values().any(unknown) && Instant::now() < job.deadline {
        drain.take_events()?;
        let now = Instant::now();
        drain.look(now)?;
        drain.wait(now);
    }
    drain.seized.let_all_run()?;
    let inside = drain.roster.threads.into_values().filter_map(|standing| match standing {
        Standing::Inside(seen) => Some(seen.who),
        _ => None,
    });
    Ok((drain.seized, inside.collect()))
}

impl<'a> Drain<'a> {
    /// Without breakpoints.
    pub(super) fn that_only_looks(seized: Seized, job: Job<'a>) -> Self {
        let ahead = Ahead { seized, serialiser: Serialiser::default(), slept: BTreeMap::new() };
        Self { armed: false, ..Self::new(ahead, job) }
    }
}

impl Drain<'_> {
    pub(super) fn who_is_inside(mut self) -> Failed {
        if let Err(error) = self.seized.let_all_run() {
            return Failed::Error(error.into());
        }
        let mut inside = Vec::new();
        let mut unseen = Vec::new();
        for (tid, standing) in self.roster.threads {
            match standing {
                Standing::Inside(seen) => inside.push(seen.who),
                Standing::Unknown => unseen.push(tid),
                Standing::Outside => {}
            }
        }
        // At the end there is always one that was just let through or came late. It is nobody to look after where others are inside.
        if !inside.is_empty() {
            unseen.clear();
        }
        Failed::Busy(Box::new(NotQuiescent {
            seized: self.seized,
            inside,
            unseen,
            process: self.children.at_deadline,
        }))
    }
}
