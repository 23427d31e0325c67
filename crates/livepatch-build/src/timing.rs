//! How long the steps of `create` take, in the log.

use std::time::{Duration, Instant};

/// Does a step, and notes how long it took.
pub(crate) fn timed<T>(step: &str, work: impl FnOnce() -> T) -> T {
    measured(step, work).0
}

/// The same for a time that is needed further on.
pub(crate) fn measured<T>(step: &str, work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let done = work();
    let took = started.elapsed();
    tracing::debug!(step, ms = took.as_millis() as u64, "took");
    (done, took)
}
