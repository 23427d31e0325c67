//! What can be known before anything is written or anybody held: who sleeps where.

use super::{BREATH, Job};
use crate::quietest::notices_nothing;
use crate::transition::net::Serialiser;
use crate::transition::standing::{self, Slept};
use crate::transition::{Failed, NotQuiescent, sharers};
use livepatch_process::{Seized, Tid};
use std::collections::BTreeMap;
use std::time::Instant;

/// A process whose sleeping threads were looked at.
#[derive(Debug)]
pub struct Ahead {
    pub(super) seized: Seized,
    pub(super) serialiser: Serialiser,
    pub(super) slept: BTreeMap<Tid, Slept>,
}

impl Ahead {
    /// The process.
    pub fn seized(&mut self) -> &mut Seized {
        &mut self.seized
    }

    /// The process, without what was seen.
    pub fn into_seized(self) -> Seized {
        self.seized
    }
}

/// Looks at the threads that sleep: of those outside, only whether they slept on is to be asked later. The one that ran the fewest
/// times is used for what the process has to do itself.
///
/// # Errors
/// [`Failed::Busy`] if the process shares its memory with another one until the deadline, or an error.
pub fn look_ahead(mut seized: Seized, job: Job<'_>) -> Result<Ahead, Failed> {
    let serialiser = Serialiser::start();
    while let Some(shares) = sharers(&mut seized) {
        if Instant::now() >= job.deadline {
            let (inside, unseen, process) = (Vec::new(), Vec::new(), Some(shares));
            let busy = NotQuiescent { seized, inside, unseen, process };
            return Err(Failed::Busy(Box::new(busy)));
        }
        seized.pump(Instant::now() + BREATH)?;
    }
    let mut slept = BTreeMap::new();
    for tid in seized.threads() {
        slept.extend(standing::slept(job.process, tid, job.tables, job.guard).map(|slept| (tid, slept)));
    }
    let quiet = slept.iter().filter(|(_, slept)| notices_nothing(&slept.asleep));
    if let Some((tid, _)) = quiet.min_by_key(|(_, slept)| slept.asleep.times()) {
        seized.suggest_worker(*tid);
    }
    Ok(Ahead { seized, serialiser, slept })
}
