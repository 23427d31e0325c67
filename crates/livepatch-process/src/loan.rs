//! Lending a thread of the target this tool's place in the queue for a processor.
//!
//! What the process has to do itself, one of its threads does. Where more threads want to run than there are processors, that one waits
//! for its turn at every step, and all that waits for it waits, too: with 32 threads to a processor for tens of milliseconds each time.
//!
//! The priority of a thread could be raised, and would stay raised if this tool were killed then. So it is lent: a thread of this tool with
//! real-time priority waits for a lock that, as the kernel is told, the other thread holds, and the kernel gives the holder the priority
//! of the one that waits (*priority inheritance*, `FUTEX_LOCK_PI2` of futex(2); the word of a lock that is not private may name any
//! thread). Nothing is written to the target, and when the wait ends, for whatever reason, so does the loan.

use crate::tracer::start_small;
use crate::{Tid, sys};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread::{JoinHandle, available_parallelism};
use std::time::Duration;

/// Longest that a loan lasts beyond its end.
const TERM: Duration = Duration::from_millis(1);

/// A loan. It ends when this goes away.
#[derive(Debug)]
pub struct Loan {
    ended: Arc<AtomicBool>,
    lender: Option<JoinHandle<()>>,
}

impl Loan {
    /// To a thread, if more threads of the system want to run than can, and if this tool has something to lend.
    pub fn to(tid: Tid) -> Option<Self> {
        let tid = u32::try_from(tid.0).ok().filter(|_| is_crowded())?;
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let lend = move || {
            sys::run_at_once();
            let word = AtomicU32::new(tid);
            while sys::has_real_time() && !until.load(SeqCst) && sys::wait_for_holder(&word, TERM) {}
        };
        Some(Self { ended, lender: Some(start_small("livepatch-lend", Box::new(lend)).ok()?) })
    }
}

impl Drop for Loan {
    /// When this returns, the thread has its own priority.
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        if let Some(lender) = self.lender.take() {
            let _ = lender.join();
        }
    }
}

/// Whether threads wait for a processor. The system's count has this thread, too.
pub(crate) fn is_crowded() -> bool {
    let running = std::fs::read_to_string("/proc/loadavg").ok().and_then(|text| running(&text));
    running.is_some_and(|running| running > available_parallelism().map_or(1, usize::from))
}

/// How many threads run or want to: `0.20 0.18 0.12 RUNNING/ALL LAST` (proc_loadavg(5)).
fn running(loadavg: &str) -> Option<usize> {
    loadavg.split(' ').nth(3)?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_threads_want_to_run() {
        assert_eq!(running("0.20 0.18 0.12 37/80 11206\n"), Some(37));
        assert_eq!(running(""), None);
    }
}
