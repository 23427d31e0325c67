//! The thread that starts the clones. What it shares with them is closed when it ends.

use super::END_LIMIT;
use nix::libc;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Waits for the thread's end when it is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    thread: libc::pthread_t,
    /// How long it waits at most: a debugger may hold the thread.
    pub patience: Duration,
}

impl Worker {
    /// # Errors
    /// The kernel refuses a thread.
    pub fn start(work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let thread = std::thread::Builder::new().name("livepatch".into()).spawn(work)?;
        Ok(Self { thread: thread.into_pthread_t(), patience: END_LIMIT })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The C library measures this limit by the wall clock. Before 1970 it has passed at once.
        let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + self.patience;
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
