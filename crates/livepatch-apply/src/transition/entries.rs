//! The entries of the functions to be replaced: breakpoints, and the switch behind them.
//!
//! One byte is written at a time where threads may run: an `int3` over the first byte of each entry is safe under concurrent
//! execution, because a core fetches either the old or the new byte. The other bytes of an entry are written only while nobody
//! can execute them:
//!
//! | bytes | when | why nobody is there |
//! |---|---|---|
//! | behind the breakpoint, of code that returns to the image | before the commit | the old world enters by the jump's destination |
//! | the world word | the commit | eight aligned bytes |
//! | behind the breakpoint, of a jump | after the commit | the new world enters by the jump's destination |
//! | the first byte | last, with all cores serialised in between | what follows it is complete |
//!
//! So at every point between two writes the process is runnable, and wholly in the world that the word names: whoever comes to
//! a breakpoint is sent there, by the tool or, when it was killed, by the [net](super::net).

use crate::error::ApplyError;
use crate::landing::{Landing, Pad, SITES, Site, World};
use crate::registry::{Code, EntryWrite};
use livepatch_patch::RunAddr;
use livepatch_process::{Breakpoints, ForkedMemory, Process, ProcessError};
use std::collections::BTreeMap;

/// The `int3` instruction.
const INT3: u8 = 0xcc;
/// How often a write behind the commit is tried.
const ATTEMPTS: u32 = 3;

/// The entries of one transition.
#[derive(Debug)]
pub struct Entries<'a> {
    process: &'a Process,
    landing: Landing,
    writes: &'a [EntryWrite],
    sites: BTreeMap<RunAddr, Site>,
}

/// How far a failed switch got.
#[derive(Debug)]
pub enum SwitchError {
    /// The old world is still the one.
    Before(ApplyError),
    /// The new world was committed to; some entries may still lead there by their breakpoints.
    After(ApplyError),
}

impl<'a> Entries<'a> {
    /// The entries that `writes` change. `pads` holds a landing pad for each.
    ///
    /// # Errors
    /// An entry has no pad.
    pub fn new(
        process: &'a Process,
        landing: Landing,
        writes: &'a [EntryWrite],
        pads: &[Pad],
        originals: &BTreeMap<RunAddr, Code>,
    ) -> Result<Self, ApplyError> {
        let mut sites = BTreeMap::new();
        for write in writes {
            let pad = pads.iter().find(|pad| pad.entry == write.at);
            let pad = pad.ok_or_else(|| ApplyError::refused(format!("no landing pad for {}", write.at)))?;
            let destination = |code: Code| match originals.get(&write.at) == Some(&code) {
                true => pad.at,
                false => code.jump_target(write.at),
            };
            let site =
                Site { entry: write.at, before: destination(write.before), after: destination(write.after) };
            sites.insert(write.at, site);
        }
        Ok(Self { process, landing, writes, sites })
    }

    /// Where the net is.
    pub fn landing(&self) -> Landing {
        self.landing
    }

    /// The addresses of the breakpoints, and where a thread goes on that passes.
    pub fn breakpoints(&self) -> Breakpoints {
        let past = |site: &Site| Some(site.before).filter(|_| self.net_knows_past());
        self.sites.iter().map(|(at, site)| (*at, past(site))).collect()
    }

    /// What the net has to know: also of a thread that was on its way past a breakpoint when the tool died.
    pub fn sites(&self) -> Vec<Site> {
        let sites = self.sites.values().copied();
        let past = sites.clone().filter(|_| self.net_knows_past());
        let past = past.map(|site| Site { entry: site.before, before: site.before, after: site.before });
        sites.chain(past).collect()
    }

    fn net_knows_past(&self) -> bool {
        2 * self.sites.len() <= SITES
    }

    /// Where a thread at a breakpoint goes on in the old world.
    pub fn before(&self, entry: RunAddr) -> Option<RunAddr> {
        self.sites.get(&entry).map(|site| site.before)
    }

    /// Writes the breakpoints.
    ///
    /// # Errors
    /// An entry does not hold what it should, or a write failed: those written are taken back.
    pub fn arm(&self) -> Result<(), ApplyError> {
        for write in self.writes {
            if read_code(self.process, write.at)? != write.before {
                return Err(ApplyError::Environment {
                    what: format!("the entry at {} changed while the switch was prepared", write.at),
                    source: None,
                });
            }
        }
        for (done, write) in self.writes.iter().enumerate() {
            if let Err(error) = write_checked(self.process, write.at, &[INT3]) {
                return Err(undone(error.into(), self.put_back(&self.writes[..=done])));
            }
        }
        Ok(())
    }

    /// Takes the breakpoints away again.
    ///
    /// # Errors
    /// [`ApplyError::NotUndone`], or the process is gone.
    pub fn disarm(&self) -> Result<(), ApplyError> {
        self.put_back(self.writes).map_err(|error| {
            let what = "the breakpoints at the entries were to be taken away".to_owned();
            match error.is_lost() {
                true => error.into(),
                false => ApplyError::NotUndone { what, undo: error.to_string() },
            }
        })
    }

    /// Old first bytes; behind them nothing was changed, or nothing that the old world executes.
    fn put_back(&self, writes: &[EntryWrite]) -> Result<(), ProcessError> {
        for write in writes {
            let [_, tail @ ..] = write.before.0;
            retried(|| ensure(self.process, write.at.offset(1), &tail))?;
        }
        for write in writes {
            retried(|| ensure(self.process, write.at, &write.before.0[..1]))?;
        }
        Ok(())
    }

    /// Switches to the new world. No thread may be in the old one, and none may be let through a breakpoint meanwhile.
    /// `serialise` makes all cores that execute the process's code fetch it anew.
    ///
    /// # Errors
    /// See [`SwitchError`]. Before the commit everything is as it was, breakpoints included.
    pub fn switch(&self, mut serialise: impl FnMut() -> Result<(), ApplyError>) -> Result<(), SwitchError> {
        self.write_tails(|site| !self.is_jump(site)).map_err(|error| SwitchError::Before(error.into()))?;
        if let Err(error) = self.landing.set_world(self.process, World::After) {
            // A write that failed half-way is not known to have failed.
            let _ = retried(|| self.landing.set_world(self.process, World::Before));
            return Err(SwitchError::Before(error.into()));
        }
        let after = |error: ProcessError| SwitchError::After(error.into());
        self.write_tails(|site| self.is_jump(site)).map_err(after)?;
        if serialise().is_err() {
            serialise().map_err(SwitchError::After)?;
        }
        for write in self.writes {
            retried(|| ensure(self.process, write.at, &write.after.0[..1])).map_err(after)?;
        }
        Ok(())
    }

    /// Whether the new world enters by a jump to somewhere else.
    fn is_jump(&self, site: &Site) -> bool {
        !self.landing.text().contains(&site.after)
    }

    fn write_tails(&self, which: impl Fn(&Site) -> bool) -> Result<(), ProcessError> {
        for write in self.writes {
            if self.sites.get(&write.at).is_some_and(&which) {
                let [_, tail @ ..] = write.after.0;
                retried(|| ensure(self.process, write.at.offset(1), &tail))?;
            }
        }
        Ok(())
    }

    /// Finishes what a killed run left: the world that it had committed to decides.
    ///
    /// # Errors
    /// An entry holds what no run of livepatch writes, or a write failed; the next run tries again.
    pub fn finish(&self, mut serialise: impl FnMut() -> Result<(), ApplyError>) -> Result<World, ApplyError> {
        let world = self.landing.world(self.process)?;
        for write in self.writes {
            let found = read_code(self.process, write.at)?;
            let known = [write.before, write.after];
            let first = found.0[0] == INT3 || known.contains(&found);
            let tail = known.iter().any(|code| code.0[1..] == found.0[1..]);
            if !(first && tail) {
                let path = "a patched function".to_owned();
                return Err(crate::Mismatch::Entry { path, address: write.at }.into());
            }
        }
        let code = |write: &EntryWrite| match world {
            World::Before => write.before,
            World::After => write.after,
        };
        // Where there is no breakpoint, threads may execute all of the entry: it is as it should be, or it is not touched.
        let mut armed = Vec::new();
        for write in self.writes {
            let found = read_code(self.process, write.at)?;
            if found.0[0] == INT3 {
                armed.push(write);
            } else if found != code(write) {
                let path = "a patched function".to_owned();
                return Err(crate::Mismatch::Entry { path, address: write.at }.into());
            }
        }
        for write in &armed {
            ensure(self.process, write.at.offset(1), &code(write).0[1..])?;
        }
        serialise()?;
        for write in &armed {
            ensure(self.process, write.at, &code(write).0[..1])?;
        }
        Ok(world)
    }

    /// Puts the copies of the breakpoints in a forked child in order.
    ///
    /// # Errors
    /// The child's memory cannot be accessed.
    pub fn clean_child(&self, memory: &ForkedMemory) -> Result<(), ProcessError> {
        let mut world = [0; 8];
        memory.read(self.landing.world_word(), &mut world)?;
        for write in self.writes {
            let code =
                if u64::from_le_bytes(world) == World::After as u64 { write.after } else { write.before };
            memory.write(write.at, &code.0)?;
        }
        Ok(())
    }
}

/// The error after an undoing that may have failed, too.
pub(crate) fn undone(error: ApplyError, undo: Result<(), ProcessError>) -> ApplyError {
    match undo {
        Err(second) if !second.is_lost() => {
            ApplyError::NotUndone { what: error.to_string(), undo: second.to_string() }
        }
        Err(lost) => lost.into(),
        Ok(()) => error,
    }
}

fn retried(mut write: impl FnMut() -> Result<(), ProcessError>) -> Result<(), ProcessError> {
    let mut last = write();
    for _ in 1..ATTEMPTS {
        match &last {
            Err(error) if !error.is_lost() => last = write(),
            _ => break,
        }
    }
    last
}

/// Writes bytes if they are not there already.
fn ensure(process: &Process, at: RunAddr, bytes: &[u8]) -> Result<(), ProcessError> {
    if process.read_vec(at, bytes.len())? == bytes {
        return Ok(());
    }
    write_checked(process, at, bytes)
}

/// Writes bytes and reads them back.
///
/// # Errors
/// The memory cannot be written, or holds something else afterwards.
pub fn write_checked(process: &Process, at: RunAddr, bytes: &[u8]) -> Result<(), ProcessError> {
    process.write(at, bytes)?;
    if process.read_vec(at, bytes.len())? == bytes {
        return Ok(());
    }
    Err(ProcessError::Memory {
        pid: process.pid(),
        access: "write",
        addr: at,
        len: bytes.len(),
        source: std::io::Error::other("the bytes read back differ"),
    })
}

/// The bytes at an entry.
///
/// # Errors
/// The memory cannot be read.
pub fn read_code(process: &Process, at: RunAddr) -> Result<Code, ProcessError> {
    process.read_array(at).map(Code)
}
