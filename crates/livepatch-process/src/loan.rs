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
use crate::{Tid, numbered, sys};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, available_parallelism};
use std::time::Duration;

/// Longest that a loan lasts beyond its end if the lender cannot be told of that.
const TERM: Duration = Duration::from_millis(1);

/// A loan. It ends when this goes away.
#[derive(Debug)]
pub struct Loan {
    terms: Arc<Terms>,
    lender: Option<JoinHandle<()>>,
}

/// What both sides know.
#[derive(Debug, Default)]
struct Terms {
    ended: AtomicBool,
    until: sys::Moment,
    /// The lender's thread id, once it has begun.
    lender: AtomicI32,
}

impl Loan {
    /// To a thread, if more threads of the system want to run than can, and if this tool has something to lend.
    pub fn to(tid: Tid) -> Option<Self> {
        let tid = u32::try_from(tid.0).ok().filter(|_| is_crowded())?;
        let terms = Arc::new(Terms::default());
        let theirs = Arc::clone(&terms);
        let lender = start_small("livepatch-lend", Box::new(move || theirs.lend(tid))).ok()?;
        Some(Self { terms, lender: Some(lender) })
    }
}

impl Terms {
    fn lend(&self, to: u32) {
        sys::run_at_once();
        self.lender.store(numbered::own_tid().0, SeqCst);
        let word = AtomicU32::new(to);
        while sys::has_real_time() {
            self.until.set_after(TERM);
            // Whoever ends the loan after this look ends the wait, too.
            if self.ended.load(SeqCst) || !sys::wait_for_holder(&word, &self.until) {
                return;
            }
        }
    }
}

impl Drop for Loan {
    /// When this returns, the thread has its own priority.
    fn drop(&mut self) {
        self.terms.ended.store(true, SeqCst);
        self.terms.until.set_passed();
        let lender = self.terms.lender.load(SeqCst);
        if lender != 0 {
            sys::nudge(Tid(lender));
        }
        if let Some(lender) = self.lender.take() {
            let _ = lender.join();
        }
    }
}

/// From so many threads to a processor on, what is gained is more than what a loan costs: a thread of this tool starts and ends for it.
const CROWD: usize = 2;

/// Whether threads wait long for a processor. The system's count has this thread, too.
pub(crate) fn is_crowded() -> bool {
    let running = std::fs::read_to_string("/proc/loadavg").ok().and_then(|text| running(&text));
    running.is_some_and(|running| running > CROWD * processors())
}

/// How many threads of this tool the system lets run at a time. Asked of it once: it takes a look into several files.
pub fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| available_parallelism().map_or(1, usize::from))
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
