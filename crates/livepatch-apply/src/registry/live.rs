//! Registries in a process: finding, making and writing them.

use super::format::{self, FormatError, HEADER_SIZE, Header, Load, Location, Store, TOTAL_SIZE};
use super::state::State;
use crate::error::ApplyError;
use crate::landing::{DATA_SIZE, LANDING_SIZE, Landing, TEXT_SIZE};
use livepatch_patch::{Bias, BuildId, RunAddr};
use livepatch_process::log;
use livepatch_process::{
    Backing, CallSite, Mapping, Process, ProcessError, Protection, RemoteError, StoppedThread, mmap_min_addr,
    near_gap,
};
use std::ops::Range;
use std::time::Instant;

impl Load for &Process {
    type Error = ProcessError;
    fn load(&mut self, at: RunAddr, buf: &mut [u8]) -> Result<(), ProcessError> {
        self.read(at, buf)
    }
}

impl Store for &Process {
    fn store(&mut self, at: RunAddr, bytes: &[u8]) -> Result<(), ProcessError> {
        self.write(at, bytes)
    }
}

impl From<FormatError<ProcessError>> for ApplyError {
    fn from(error: FormatError<ProcessError>) -> Self {
        match error {
            FormatError::Access(error) => error.into(),
            other => Self::refused(other.to_string()),
        }
    }
}

/// A registry that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Where it is.
    pub location: Location,
    /// What it is for.
    pub header: Header,
    /// What it says; `None` if nothing was ever committed.
    pub state: Option<State>,
}

/// The name that kernels with named anonymous memory show.
const NAME: &str = "[anon:livepatch]";

fn may_be_registry(mapping: &Mapping) -> bool {
    let private =
        mapping.perms.read && !mapping.perms.write && !mapping.perms.execute && !mapping.perms.shared;
    let anonymous = matches!(mapping.backing, Backing::Anonymous) || mapping.is_special(NAME);
    private && anonymous && mapping.len() >= TOTAL_SIZE
}

/// All registries of a process, unreadable ones as errors.
pub fn find_all(process: &Process, maps: &[Mapping]) -> Result<Vec<Found>, ApplyError> {
    let mut found = Vec::new();
    for mapping in maps.iter().filter(|mapping| may_be_registry(mapping)) {
        let at = mapping.range.start;
        let bytes = match process.read_array::<HEADER_SIZE>(at) {
            Ok(bytes) => bytes,
            Err(error) if error.is_lost() => return Err(error.into()),
            Err(_) => continue,
        };
        if !format::looks_like_registry(&bytes) {
            continue;
        }
        let header = format::decode_header::<ProcessError>(at, &bytes).map_err(ApplyError::from)?;
        let location = Location { at };
        let state = location.read(&mut &*process)?;
        found.push(Found { location, header, state });
    }
    Ok(found)
}

/// The registry of one module at one load address. One that speaks of another load address belongs to an instance of the
/// module that was unloaded since.
pub fn of_module(found: &[Found], build_id: &BuildId, bias: Bias) -> Option<Found> {
    let fits =
        |f: &&Found| f.header.build_id == *build_id && f.state.as_ref().is_some_and(|s| s.bias == bias);
    found.iter().filter(fits).max_by_key(|f| f.header.generation).cloned()
}

/// A registry of the module that a killed run made and never used.
pub fn unused(process: &Process, found: &[Found], build_id: &BuildId) -> Option<Location> {
    let unused = |f: &&Found| f.header.build_id == *build_id && f.state.is_none();
    found.iter().find(unused).map(|f| f.location).filter(|at| call_site(*at).is_ready(process))
}

/// Where functions of the process are called from: behind the landing area.
pub fn call_site(location: Location) -> CallSite {
    CallSite::at(location.at.offset((TOTAL_SIZE + LANDING_SIZE) as i64))
}

/// Maps and initialises a registry, its landing area and its call site. It is recognised as a registry only when all of it
/// is there.
pub fn create(
    thread: &mut StoppedThread<'_>,
    near: Range<RunAddr>,
    state: &State,
    generation: u64,
    deadline: Instant,
) -> Result<Location, ApplyError> {
    let size = TOTAL_SIZE + LANDING_SIZE + CallSite::SIZE;
    let at = map_near(thread, near, size, Protection::Read, deadline)?;
    let location = Location { at };
    let made = fill(thread, location, state, generation, deadline);
    if made.is_err()
        && let Err(error) = thread.unmap(at, size, deadline.max(Instant::now() + crate::session::UNDO_LIMIT))
    {
        thread
            .process()
            .warn_of_rest(format_args!("memory that nothing refers to stays in the process: {error}"));
    }
    made.map(|()| location)
}

fn fill(
    thread: &mut StoppedThread<'_>,
    location: Location,
    state: &State,
    generation: u64,
    deadline: Instant,
) -> Result<(), ApplyError> {
    let process = thread.process().clone();
    let landing = Landing::of(location);
    thread.protect(landing.text().start, TEXT_SIZE, Protection::ReadExecute, deadline)?;
    thread.protect(landing.data().start, DATA_SIZE, Protection::ReadWrite, deadline)?;
    landing.write_net(&process)?;
    call_site(location).prepare(thread, deadline)?;
    let header = Header { build_id: state.build_id.clone(), generation };
    process.write(location.at, &format::encode_header(&header))?;
    location.commit(&mut &process, state)?;
    name(thread, location.at, deadline);
    Ok(())
}

/// Maps memory in reach of a module, wherever there is room.
pub fn map_near(
    thread: &mut StoppedThread<'_>,
    near: Range<RunAddr>,
    size: u64,
    protection: Protection,
    deadline: Instant,
) -> Result<RunAddr, ApplyError> {
    const ATTEMPTS: u32 = 8;
    let floor = mmap_min_addr();
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let maps = thread.process().maps()?;
        let at = near_gap(&maps, near.clone(), size, floor).ok_or_else(|| {
            ApplyError::refused(format!(
                "no room for {size} bytes within 2 GiB of the module; restart the program with less mapped around it"
            ))
        })?;
        match thread.map_at(at, size, protection, deadline) {
            Ok(()) => return Ok(at),
            // Something was mapped there meanwhile.
            Err(error @ RemoteError::Syscall { .. }) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.map_or_else(|| ApplyError::refused("no room near the module"), ApplyError::from))
}

/// `PR_SET_VMA` and `PR_SET_VMA_ANON_NAME` of `<linux/prctl.h>`.
const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;
const SYS_PRCTL: i64 = 157;
/// Offset in the header page where the name is put for the kernel to read.
const NAME_AT: i64 = 0x100;

/// Names the mapping for people who read `/proc/PID/maps`. Many kernels cannot; nothing depends on it. A patch's code gets no such
/// name: perf would look for a file of that name, and not in its map.
fn name(thread: &mut StoppedThread<'_>, at: RunAddr, deadline: Instant) {
    let text = at.offset(NAME_AT);
    let args = [PR_SET_VMA, PR_SET_VMA_ANON_NAME, at.0, TOTAL_SIZE, text.0, 0];
    let named = thread
        .process()
        .write(text, b"livepatch\0")
        .map_err(RemoteError::from)
        .and_then(|()| thread.remote_syscall(SYS_PRCTL, args, deadline));
    let named = named.is_ok_and(|returned| returned.is_ok());
    log::trace(format_args!("registry named: {named}"));
}
