//! How long the steps of `create` take, in the log.

use std::time::Instant;

/// Does a step, and notes how long it took.
pub(crate) fn timed<T>(step: &str, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let done = work();
    tracing::debug!(step, ms = started.elapsed().as_millis() as u64, "took");
    done
}
