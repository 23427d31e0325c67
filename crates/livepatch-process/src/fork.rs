//! Children that the process makes while it is traced.
//!
//! A child with a copy of the memory holds a copy of every breakpoint, and nobody who would look after them: it is held at its
//! first stop until the caller has put the copy in order. For a child in the same memory (`vfork`, `posix_spawn`) see `sharer.rs`.

use crate::error::ProcessError;
use crate::event::Event;
use crate::fault::{Effect, operation};
use crate::sharer::Sharers;
use crate::sys::Wait;
use crate::trace::Tracees;
use crate::{Pid, Seized, Tid, numbered, sys};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use std::fs::File;
use std::io;

/// A child on its way to its first stop, or there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forked {
    stopped: bool,
}

impl Tracees {
    /// A new task that is no thread of the process.
    pub fn add_process(&mut self, child: Tid, (parent, how): (Tid, Wait)) {
        let own = self.process.pid();
        let shares = sys::same_address_space(Pid(own.0), Pid(child.0));
        // A child that is gone again answers ECHILD when it is waited for.
        if self.hold_forked && shares == Ok(false) {
            self.forked.insert(child, Forked { stopped: false });
        } else if self.sharer_mode != Sharers::LetGo && shares == Ok(true) {
            self.add_sharer(child, parent, how);
        } else {
            self.may_be_shared |= shares != Ok(false);
            self.foreign.insert(child);
        }
    }

    /// The first stop of a held child.
    pub fn forked_stopped(&mut self, child: Tid) -> Result<(), ProcessError> {
        if !self.hold_forked {
            return self.let_go(child);
        }
        self.forked.insert(child, Forked { stopped: true });
        self.events.push(Event::Forked { child });
        Ok(())
    }

    fn let_go(&mut self, child: Tid) -> Result<(), ProcessError> {
        self.forked.remove(&child);
        self.accept_death(child, "detach from", sys::detach(child, 0))
    }

    /// Lets all children go.
    pub fn let_go_of_children(&mut self) {
        self.let_go_of_forked();
        self.let_go_of_sharers();
    }

    /// Lets all held children go; those on the way to their first stop follow there.
    fn let_go_of_forked(&mut self) {
        self.hold_forked = false;
        for (child, forked) in std::mem::take(&mut self.forked) {
            if forked.stopped {
                // One that is gone needs nothing.
                let _ = sys::detach(child, 0);
            } else {
                self.foreign.insert(child);
            }
        }
    }
}

impl Seized {
    /// Whether children with a copy of the memory are held at their first stop and told by [`Event::Forked`]. Without it they
    /// are let go there.
    pub fn hold_forked(&mut self, hold: bool) {
        self.tracees.hold_forked = hold;
        if !hold {
            self.tracees.let_go_of_forked();
        }
    }

    /// The children that are held.
    pub fn forked(&self) -> Vec<Tid> {
        let held = self.tracees.forked.iter().filter(|(_, forked)| forked.stopped);
        held.map(|(&child, _)| child).collect()
    }

    /// Whether some child has not come to its first stop yet.
    pub fn has_forked_on_the_way(&self) -> bool {
        self.tracees.forked.values().any(|forked| !forked.stopped)
    }

    /// Reads and writes the memory of a held child.
    ///
    /// # Errors
    /// [`ProcessError::Lost`] if it is not held (its id may be another process's by now), [`ProcessError::Io`] if it cannot be
    /// opened; the child may be gone.
    pub fn forked_memory(&self, child: Tid) -> Result<ForkedMemory, ProcessError> {
        if !self.tracees.forked.get(&child).is_some_and(|forked| forked.stopped) {
            return Err(ProcessError::ended(Pid(child.0)));
        }
        let file = File::options().read(true).write(true).open(format!("/proc/{child}/mem"));
        file.map(|mem| ForkedMemory { child, mem })
            .map_err(|error| ProcessError::io(Pid(child.0), "open the memory", error))
    }

    /// Lets a held child go. It runs from its first instruction on.
    ///
    /// # Errors
    /// The kernel refused to detach; a child that is gone is no error.
    pub fn release_forked(&mut self, child: Tid) -> Result<(), ProcessError> {
        self.tracees.let_go(child)
    }
}

/// The memory of a child at its first stop.
#[derive(Debug)]
pub struct ForkedMemory {
    child: Tid,
    mem: File,
}

impl ForkedMemory {
    /// Fills the buffer from `addr` on.
    ///
    /// # Errors
    /// The memory is not there, or the child is gone.
    pub fn read(&self, addr: RunAddr, buffer: &mut [u8]) -> Result<(), ProcessError> {
        let len = buffer.len();
        numbered::read_exact_at(&self.mem, buffer, addr.0)
            .map_err(|error| self.error("read", addr, len, error))
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&self, addr: RunAddr, bytes: &[u8]) -> Result<(), ProcessError> {
        let write = || {
            operation(Effect::Write, "write memory of a child", || {
                numbered::write_all_at(&self.mem, bytes, addr.0)
            })
        };
        write().map_err(|error| self.error("write", addr, bytes.len(), error))
    }

    fn error(&self, access: &'static str, addr: RunAddr, len: usize, source: io::Error) -> ProcessError {
        let pid = Pid(self.child.0);
        match source.kind() {
            // The memory of a process that has ended reads as an empty file.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => ProcessError::ended(pid),
            _ if source.raw_os_error() == Some(Errno::ESRCH as i32) => ProcessError::ended(pid),
            _ => ProcessError::Memory { pid, access, addr, len, source },
        }
    }
}
