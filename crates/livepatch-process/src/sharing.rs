//! Other processes in the same address space: children of `vfork` until they call `execve`, and of `clone` with `CLONE_VM` but without
//! `CLONE_THREAD`. They execute the same text and are in no thread list.

use crate::error::ProcessError;
use crate::sharer::Sharer;
use crate::trace::Tracees;
use crate::{Pid, Process, Seized, Stopped, Tid, procfs, sys};
use nix::errno::Errno;

impl Process {
    /// The other processes that share this one's address space, in the tool's pid namespace. A snapshot: only with all
    /// threads stopped, and the sharers found being none, is it certain that no new one comes.
    ///
    /// Processes that this tool may not inspect are left out: they have other credentials, which a sharer has only
    /// after it gave up or gained some.
    ///
    /// # Errors
    /// [`ProcessError::Io`] if the kernel offers no `kcmp` (built without it, or a seccomp filter of a container forbids it):
    /// then it is not known whether there are any.
    pub fn address_space_sharers(&self) -> Result<Vec<Pid>, ProcessError> {
        let own = self.pid();
        let probe = self.live_thread()?;
        let compare = |other: Pid| sys::same_address_space(Pid(probe.0), other);
        compare(own).map_err(|errno| self.not_compared(errno))?;
        let pids = procfs::process_ids().map_err(|error| self.io_error("list processes", error))?;
        let mut sharers = Vec::new();
        for pid in pids {
            if pid == own {
                continue;
            }
            match compare(pid) {
                Ok(true) => sharers.push(pid),
                Ok(false) | Err(Errno::ESRCH | Errno::EPERM | Errno::EACCES) => {}
                Err(errno) => return Err(self.not_compared(errno)),
            }
        }
        Ok(sharers)
    }

    /// Only where a process is gone the errno says something of it, and else of the kernel.
    fn not_compared(&self, errno: Errno) -> ProcessError {
        match errno {
            Errno::ESRCH => self.io_error("compare address spaces", errno.into()),
            _ => ProcessError::io(self.pid(), "compare address spaces", errno),
        }
    }
}

impl Seized {
    /// Notes that a look of [`Process::address_space_sharers`] that began after all threads were attached, and before any event of theirs was
    /// asked for, found none: on a machine with many processes the look takes long, and it may be made while something else is done.
    pub fn note_unshared(&mut self) {
        self.tracees.may_be_shared = false;
    }

    /// The processes in the same memory that are not held before their first instruction. Without a look if none has come since the
    /// last one that found none: each that is made is told to the tracer.
    ///
    /// # Errors
    /// As [`Process::address_space_sharers`], or the process is gone.
    pub fn sharers_at_large(&mut self) -> Result<Vec<Pid>, ProcessError> {
        self.tracees.sharers_at_large()
    }
}

impl Stopped {
    /// As [`Seized::sharers_at_large`].
    ///
    /// # Errors
    /// As there.
    pub fn sharers_at_large(&mut self) -> Result<Vec<Pid>, ProcessError> {
        self.tracees.sharers_at_large()
    }
}

impl Tracees {
    fn sharers_at_large(&mut self) -> Result<Vec<Pid>, ProcessError> {
        while self.collect_one()? {}
        let has_some = self.sharers.values().any(Sharer::is_at_large);
        if !self.may_be_shared && !has_some {
            return Ok(Vec::new());
        }
        let mut found = self.process.address_space_sharers()?;
        found.retain(|pid| self.sharers.get(&Tid(pid.0)).is_none_or(Sharer::is_at_large));
        self.may_be_shared = !found.is_empty();
        Ok(found)
    }
}
