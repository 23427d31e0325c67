//! Names for the code of patches, for debuggers and profilers.
//!
//! Everything is in the target: the registry has the names and sizes of all functions of a patch, and the mapped patch its
//! code and unwind tables. So names can be had from a stripped process or from its core dump, without the patch file.
//!
//! | for | what |
//! |---|---|
//! | gdb, addr2line, objdump | [`PatchSymbols::object`]: an ELF file with the addresses of this process |
//! | perf | [`Symbols::add_to_perf_map`]: lines in the process's `/tmp/perf-PID.map` |
//! | people with an address from a backtrace | [`Symbols::name`] |

mod core;
mod object;

use crate::error::ApplyError;
use crate::registry::{PatchState, Record, State};
use crate::session::View;
use livepatch_patch::{BuildId, Digest, RunAddr};
use livepatch_process::{Pid, Process};
use std::path::{Path, PathBuf};

pub use self::core::CoreError;

/// Largest part of a patch that a registry is believed about: the linker makes none that is larger.
const MAX_PART: u64 = 1 << 30;

/// The code that patches brought into a process, whether their functions run or not.
#[derive(Clone, Debug)]
pub struct Symbols {
    /// The process; of a core dump, if the dump says.
    pub pid: Option<i32>,
    /// Its patches, those of one module oldest first.
    pub patches: Vec<PatchSymbols>,
}

/// The code of one patch.
#[derive(Clone, Debug)]
pub struct PatchSymbols {
    /// Digest of the patch file; for a part of it one that stands for that part.
    pub id: Digest,
    /// Name given by its author.
    pub name: String,
    /// Build-id of the module that it is for.
    pub build_id: BuildId,
    /// Where it stands.
    pub state: PatchState,
    /// All its functions, by address.
    pub functions: Vec<CodeSymbol>,
    /// Start of its text.
    pub start: RunAddr,
    text: Vec<u8>,
    eh_frame: Option<(RunAddr, Vec<u8>)>,
}

/// A function of a patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeSymbol {
    /// Demangled path.
    pub path: String,
    /// Mangled name.
    pub symbol: String,
    /// Its first byte.
    pub start: RunAddr,
    /// Its size in bytes.
    pub size: u64,
}

/// What an address is.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// The patch that it belongs to.
    pub patch: &'a PatchSymbols,
    /// The function.
    pub function: &'a CodeSymbol,
    /// How far into the function it is.
    pub offset: u64,
}

/// Reads memory of the process, or what a core dump has of it.
type Read<'a> = dyn FnMut(RunAddr, &mut [u8]) -> Result<(), ApplyError> + 'a;

impl Symbols {
    /// Of a process. It is not stopped, and whoever traces it is not in the way.
    ///
    /// # Errors
    /// The process cannot be read, or a registry in it is damaged.
    pub fn of_process(pid: i32) -> Result<Self, ApplyError> {
        let view = View::open_to_read(pid)?;
        let states = view.patched().into_iter().filter_map(|(_, found)| found.state);
        let mut read = |at: RunAddr, buf: &mut [u8]| Ok(view.process.read(at, buf)?);
        let patches = gather(states, &mut read)?;
        Ok(Self { pid: Some(pid), patches })
    }

    /// Of a core dump of a process.
    ///
    /// # Errors
    /// The file cannot be read, is no core dump of an x86-64 process, or a registry in it is damaged or cut off.
    pub fn of_core(path: &Path) -> Result<Self, ApplyError> {
        let core = core::Core::open(path)?;
        let states = core.states()?;
        let mut read = |at: RunAddr, buf: &mut [u8]| Ok(core.read(at, buf)?);
        let patches = gather(states, &mut read)?;
        Ok(Self { pid: core.pid(), patches })
    }

    /// The function of a patch that an address is in. The address right behind a function counts as its own if no other begins
    /// there: it is where a call that never returns would return to.
    pub fn name(&self, at: RunAddr) -> Option<Named<'_>> {
        let mut all = self.patches.iter().flat_map(|patch| patch.functions.iter().map(move |f| (patch, f)));
        let in_it = |f: &CodeSymbol, at: RunAddr| at >= f.start && at.0 - f.start.0 < f.size;
        let found = all.clone().find(|(_, f)| in_it(f, at));
        let (patch, function) = found.or_else(|| all.find(|(_, f)| in_it(f, at.offset(-1))))?;
        Some(Named { patch, function, offset: at.0 - function.start.0 })
    }

    /// Adds all functions to the file in which perf looks for names of code without a file. Returns the file's path.
    ///
    /// # Errors
    /// The process is gone, or the file cannot be written or is not to be trusted.
    pub fn add_to_perf_map(&self) -> Result<PathBuf, ApplyError> {
        let pid = self.pid.ok_or_else(|| ApplyError::refused("a core dump has no perf map"))?;
        let functions = self.patches.iter().flat_map(|patch| &patch.functions);
        let lines: Vec<String> = functions.filter(|f| f.size > 0).map(perf_line).collect();
        Ok(Process::open_to_read(Pid(pid))?.add_to_perf_map(&lines)?)
    }
}

/// As perf reads it: `START SIZE NAME`, both numbers hexadecimal.
fn perf_line(function: &CodeSymbol) -> String {
    let name: String = function.path.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("{:x} {:x} {name}", function.start.0, function.size)
}

fn gather(
    states: impl IntoIterator<Item = State>,
    read: &mut Read<'_>,
) -> Result<Vec<PatchSymbols>, ApplyError> {
    let mut patches = Vec::new();
    for state in states {
        for record in &state.patches {
            patches.push(PatchSymbols::new(&state.build_id, record, read)?);
        }
    }
    Ok(patches)
}

impl PatchSymbols {
    fn new(build_id: &BuildId, record: &Record, read: &mut Read<'_>) -> Result<Self, ApplyError> {
        let mut part = |start: RunAddr, size: u64| {
            if size > MAX_PART {
                return Err(ApplyError::refused(format!("the registry says that a patch has {size} bytes")));
            }
            let mut bytes = vec![0; size as usize];
            read(start, &mut bytes).map(|()| bytes)
        };
        let text = part(record.mapping.base, record.mapping.text)?;
        let eh_frame = match record.eh_frame {
            Some(region) => Some((region.start, part(region.start, region.size)?)),
            None => None,
        };
        let functions = record.code().into_iter().map(|code| CodeSymbol {
            path: code.path(),
            symbol: code.symbol.to_owned(),
            start: code.start,
            size: code.size,
        });
        Ok(Self {
            id: record.id,
            name: record.name.clone(),
            build_id: build_id.clone(),
            state: record.state,
            functions: functions.collect(),
            start: record.mapping.base,
            text,
            eh_frame,
        })
    }

    /// An ELF file with symbols, code and unwind tables at the addresses that they have in this process.
    ///
    /// # Errors
    /// The patch is too large for such a file.
    pub fn object(&self) -> Result<Vec<u8>, ApplyError> {
        object::write(self).map_err(|error| ApplyError::environment("a symbol file cannot be made", error))
    }
}

#[cfg(test)]
mod tests;
