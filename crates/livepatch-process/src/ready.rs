//! What remote work has to know of a stopped thread before it begins, found out once for a stop.

use crate::drive::Saved;
use crate::error::{ProcessError, RemoteError};
use crate::trace::State;
use crate::wayback::{Gadgets, OnStack};
use crate::{Status, StoppedThread};

/// A thread that can execute system calls as it stands. Between two calls it is put back, so this holds for as long as it is stopped
/// and nobody sets its registers or its signal mask.
#[derive(Debug)]
pub(crate) struct Ready {
    pub gadgets: Gadgets,
    pub saved: Saved,
    pub stack: OnStack,
    /// Read just before. Another thread can give this one seccomp filters at any time, so it is good for one call.
    pub status: Option<Status>,
}

impl StoppedThread<'_> {
    /// Makes sure that a system call can be executed on this thread at this moment.
    ///
    /// # Errors
    /// As [`Self::remote_syscall`]; [`RemoteError::Unfit`] is about this thread, and another one may do.
    pub fn check_fit(&mut self) -> Result<(), RemoteError> {
        self.ready = Some(self.make_ready()?);
        Ok(())
    }

    /// What [`Self::check_fit`] found out, or finds out now.
    pub(crate) fn take_ready(&mut self) -> Result<Ready, RemoteError> {
        match self.ready.take().filter(|_| self.is_stopped()) {
            Some(ready) => Ok(ready),
            None => self.make_ready(),
        }
    }

    fn make_ready(&mut self) -> Result<Ready, RemoteError> {
        let gadgets = self.gadgets()?;
        let saved = self.save()?;
        let status = self.process().thread_status(self.tid)?;
        let stack = self.frame_on_stack(&gadgets, &saved, &status)?;
        Ok(Ready { gadgets, saved, stack, status: Some(status) })
    }

    /// The thread's status for a question about its filters.
    pub(crate) fn status_for_filters(&self) -> Result<Status, ProcessError> {
        match self.ready.as_ref().and_then(|ready| ready.status.as_ref()) {
            Some(status) => Ok(status.clone()),
            None => self.process().thread_status(self.tid),
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.tracees.threads.get(&self.tid).is_some_and(|thread| thread.state == State::Stopped)
    }
}
