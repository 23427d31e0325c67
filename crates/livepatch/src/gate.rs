//! One operation at a time in a process.

use livepatch_process::numbered::own_pid;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The process that has an operation under way, 0 if none has.
///
/// The id is kept because `fork` copies this: in the child nobody will ever open the gate again.
static BUSY: Mutex<i32> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// While this lives, the calls of other threads wait.
#[derive(Debug)]
pub(crate) struct Pass(());

impl Pass {
    /// Waits for all earlier operations. `None` if that takes until the deadline.
    pub fn take(deadline: Instant) -> Option<Self> {
        let mut busy = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
        while *busy == own_pid().0 {
            let left =
                deadline.checked_duration_since(Instant::now()).filter(|left| *left > Duration::ZERO)?;
            busy = FREED.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *busy = own_pid().0;
        Some(Self(()))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        *BUSY.lock().unwrap_or_else(PoisonError::into_inner) = 0;
        FREED.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_and_the_next_one_waits() {
        let first = Pass::take(Instant::now()).unwrap();
        assert!(Pass::take(Instant::now()).is_none());
        let second = std::thread::spawn(|| Pass::take(Instant::now() + Duration::from_secs(60)).is_some());
        drop(first);
        assert!(second.join().unwrap());
    }
}
