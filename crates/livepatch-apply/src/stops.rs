//! Many threads, each stopped for one look.

use crate::error::ApplyError;
use livepatch_process::{Event, Pause, Seized, StoppedThread, Tid};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Threads that are on their way to a stop at the same time, at most. They run or want to, so they come one by one.
const AT_ONCE: usize = 64;

/// How long a thread that has to get on is left in peace.
const REST: Duration = Duration::from_micros(100);

/// Stops threads, a few at a time, until each was found `done`; one that comes from a breakpoint is sent on. Events of another
/// kind are left to the caller.
pub(crate) fn visit(
    seized: &mut Seized,
    mut tids: BTreeSet<Tid>,
    deadline: Instant,
    others: &mut Vec<Event>,
    done: &mut dyn FnMut(&StoppedThread<'_>) -> bool,
) -> Result<(), ApplyError> {
    // When each was last seen not to have stopped.
    let mut asked: BTreeMap<Tid, Instant> = BTreeMap::new();
    // A stop that is asked for comes before a signal that is to be taken: who is asked again at once never gets to take it.
    let mut resting: BTreeMap<Tid, Instant> = BTreeMap::new();
    let mut pause = Pause::default();
    loop {
        tids.retain(|tid| seized.traces(*tid));
        let now = Instant::now();
        resting.retain(|_, until| *until > now);
        asked.retain(|tid, _| tids.contains(tid));
        if tids.is_empty() {
            return Ok(());
        }
        let next: Vec<Tid> = tids
            .iter()
            .filter(|tid| !asked.contains_key(tid) && !resting.contains_key(tid))
            .take(AT_ONCE - asked.len().min(AT_ONCE))
            .copied()
            .collect();
        for tid in next {
            asked.insert(tid, Instant::now());
            seized.request_stop(tid)?;
        }
        let polled = Instant::now();
        let events = seized.poll(asked.keys().copied().collect::<Vec<_>>())?;
        let idle = events.is_empty();
        for event in events {
            let (Event::Stopped { tid } | Event::Breakpoint { tid, .. }) = event else {
                others.push(event);
                continue;
            };
            let since = asked.remove(&tid).unwrap_or(polled);
            if let Some(thread) = seized.held(tid) {
                if done(&thread) {
                    tids.remove(&tid);
                } else {
                    resting.insert(tid, Instant::now() + REST);
                }
                thread.resume_after_look(since)?;
            }
        }
        asked.values_mut().for_each(|seen| *seen = polled.max(*seen));
        if Instant::now() >= deadline {
            return Err(ApplyError::Environment {
                what: format!("threads {tids:?} could not be looked at in time"),
                source: None,
            });
        }
        match idle {
            true => pause.take(deadline),
            false => pause = Pause::default(),
        }
    }
}
