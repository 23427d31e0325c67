//! Writing the entries: all of them or none.

use crate::error::ApplyError;
use crate::registry::{Code, EntryWrite};
use crate::transition::{Progress, Quiesced};
use livepatch_patch::RunAddr;
use livepatch_process::{Process, ProcessError, Seized};

/// All threads run in the new world.
#[derive(Debug)]
pub struct Switched {
    /// The process, still seized.
    pub seized: Seized,
    /// How the threads were held.
    pub progress: Progress,
}

/// The switch did not happen; every thread runs and every entry is as before, unless `left` says otherwise.
#[derive(Debug)]
pub struct NotSwitched {
    /// The process, still seized, if it is still there.
    pub seized: Option<Seized>,
    /// What failed.
    pub error: ApplyError,
}

impl Quiesced {
    /// Writes every entry, reads it back, and lets the threads run.
    ///
    /// # Errors
    /// An entry does not hold what it should before, or a write failed. The entries written until then are put back, and that
    /// is checked, too; [`ApplyError::NotUndone`] says that it failed.
    pub fn switch(self, writes: &[EntryWrite]) -> Result<Switched, Box<NotSwitched>> {
        let process = self.stopped.process().clone();
        let outcome = write_all(&process, writes);
        match (outcome, self.resume()) {
            (Ok(()), Ok((seized, progress))) => Ok(Switched { seized, progress }),
            (Ok(()), Err(error)) => Err(Box::new(NotSwitched { seized: None, error: error.into() })),
            (Err(error), resumed) => {
                Err(Box::new(NotSwitched { seized: resumed.ok().map(|(seized, _)| seized), error }))
            }
        }
    }
}

fn write_all(process: &Process, writes: &[EntryWrite]) -> Result<(), ApplyError> {
    for write in writes {
        let found = read_code(process, write.at)?;
        if found != write.before {
            return Err(ApplyError::Environment {
                what: format!("the entry at {} changed while the switch was prepared", write.at),
                source: None,
            });
        }
    }
    for (done, write) in writes.iter().enumerate() {
        if let Err(error) = write_checked(process, write.at, write.after) {
            return Err(undo(process, &writes[..=done], error));
        }
    }
    Ok(())
}

fn undo(process: &Process, writes: &[EntryWrite], error: ProcessError) -> ApplyError {
    if error.is_lost() {
        return error.into();
    }
    for write in writes.iter().rev() {
        if let Err(second) = write_checked(process, write.at, write.before) {
            return ApplyError::NotUndone { what: error.to_string(), undo: second.to_string() };
        }
    }
    error.into()
}

fn write_checked(process: &Process, at: RunAddr, code: Code) -> Result<(), ProcessError> {
    process.write(at, &code.0)?;
    if read_code(process, at)? == code {
        return Ok(());
    }
    Err(ProcessError::Memory {
        pid: process.pid(),
        access: "write",
        addr: at,
        len: code.0.len(),
        source: std::io::Error::other("the bytes read back differ"),
    })
}

/// The bytes at an entry.
pub fn read_code(process: &Process, at: RunAddr) -> Result<Code, ProcessError> {
    process.read_array(at).map(Code)
}
