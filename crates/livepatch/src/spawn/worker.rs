//! The thread that starts the clones. What it shares with them is closed when it ends.

use super::END_LIMIT;
use nix::libc;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Waits for the thread's end when it is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    thread: libc::pthread_t,
    /// When it gives up: a debugger may hold the thread.
    pub until: Instant,
}

impl Worker {
    /// # Errors
    /// The kernel refuses a thread.
    pub fn start(work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let thread = std::thread::Builder::new().name("livepatch".into()).spawn(work)?;
        Ok(Self { thread: thread.into_pthread_t(), until: Instant::now() + END_LIMIT })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The C library measures this limit by the wall clock. Before 1970 it has passed at once.
        let left = self.until.saturating_duration_since(Instant::now());
        let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + left;
        let until = libc::timespec {
            tv_sec: until.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: until.subsec_nanos().into(),
        };
        // SAFETY: this value alone stands for the thread, which was neither joined nor detached.
        if unsafe { libc::pthread_timedjoin_np(self.thread, ptr::null_mut(), &raw const until) } != 0 {
            // SAFETY: as above; it was not joined.
            unsafe { libc::pthread_detach(self.thread) };
        }
    }
}
