//! Registries in a core dump.
//!
//! What livepatch writes to a process is private memory without a file, which every kind of dump holds unless
//! `/proc/PID/coredump_filter` was told otherwise. A dump is distrusted like a process: a digest decides what is a registry.

use crate::error::{ApplyError, Mismatch};
use crate::registry::State;
use crate::registry::format::{self, FormatError, HEADER_SIZE, Header, Load, Location, TOTAL_SIZE};
use livepatch_patch::{BuildId, RunAddr};
use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Why a core dump does not give what is looked for.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// The file cannot be read.
    #[error("{} cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{} is no core dump of an x86-64 process", .0.display())]
    NotACore(PathBuf),
    /// Memory that was not dumped, or cut off.
    #[error(
        "{} does not hold {len} bytes at {at}; the dump is cut off, or the process's coredump_filter leaves out private memory",
        .path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// First byte asked for.
        at: RunAddr,
        /// How many bytes were asked for.
        len: usize,
    },
}

impl From<CoreError> for ApplyError {
    fn from(error: CoreError) -> Self {
        match error {
            CoreError::Io { .. } => Self::environment("the core dump cannot be used", error),
            CoreError::NotACore(_) => Mismatch::Core(error.to_string()).into(),
            CoreError::Missing { .. } => Self::refused(error.to_string()),
        }
    }
}

impl From<FormatError<CoreError>> for ApplyError {
    fn from(error: FormatError<CoreError>) -> Self {
        match error {
            FormatError::Access(error) => error.into(),
            other => Self::refused(other.to_string()),
        }
    }
}

/// An open core dump.
#[derive(Debug)]
pub(super) struct Core {
    path: PathBuf,
    file: File,
    segments: Vec<Segment>,
    pid: Option<i32>,
}

/// A piece of memory that was mapped.
#[derive(Debug)]
struct Segment {
    start: u64,
    /// Bytes that are in the file; the rest was not dumped.
    dumped: u64,
    size: u64,
    offset: u64,
    read_only: bool,
}

impl Core {
    pub(super) fn open(path: &Path) -> Result<Self, CoreError> {
        let path = path.to_owned();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(source) => return Err(CoreError::Io { path, source }),
        };
        let cache = ReadCache::new(&file);
        let Some((segments, pid)) = parse(&cache) else { return Err(CoreError::NotACore(path)) };
        drop(cache);
        Ok(Self { path, file, segments, pid })
    }

    /// The process that was dumped, if the dump says.
    pub(super) fn pid(&self) -> Option<i32> {
        self.pid
    }

    pub(super) fn read(&self, at: RunAddr, buf: &mut [u8]) -> Result<(), CoreError> {
        let missing = || CoreError::Missing { path: self.path.clone(), at, len: buf.len() };
        let holds = |s: &&Segment| {
            let skipped = at.0.checked_sub(s.start);
            skipped
                .and_then(|skipped| s.dumped.checked_sub(skipped))
                .is_some_and(|left| left >= buf.len() as u64)
        };
        let segment = self.segments.iter().find(holds).ok_or_else(missing)?;
        let offset = segment.offset.checked_add(at.0 - segment.start).ok_or_else(missing)?;
        match self.file.read_exact_at(buf, offset) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(CoreError::Missing { path: self.path.clone(), at, len: buf.len() })
            }
            Err(source) => Err(CoreError::Io { path: self.path.clone(), source }),
        }
    }

    /// What the registries say. Of several for one module at one place the newest counts.
    pub(super) fn states(&self) -> Result<Vec<State>, ApplyError> {
        let mut newest: BTreeMap<(BuildId, u64), (u64, State)> = BTreeMap::new();
        // What was not dumped at all is a file's.
        let may_be_one = |s: &&Segment| s.read_only && s.size >= TOTAL_SIZE && s.dumped > 0;
        for segment in self.segments.iter().filter(may_be_one) {
            let at = RunAddr(segment.start);
            let mut header = [0; HEADER_SIZE];
            self.read(at, &mut header)?;
            if !format::looks_like_registry(&header) {
                continue;
            }
            let Header { build_id, generation } =
                format::decode_header::<CoreError>(at, &header).map_err(ApplyError::from)?;
            let Some(state) = (Location { at }).read(&mut &*self)? else { continue };
            let key = (build_id, state.bias.0);
            if newest.get(&key).is_none_or(|(known, _)| *known < generation) {
                newest.insert(key, (generation, state));
            }
        }
        Ok(newest.into_values().map(|(_, state)| state).collect())
    }
}

impl Load for &Core {
    type Error = CoreError;
    fn load(&mut self, at: RunAddr, buf: &mut [u8]) -> Result<(), CoreError> {
        self.read(at, buf)
    }
}

/// Offset of the process id in `struct elf_prpsinfo` of the Linux kernel for x86-64.
const PRPSINFO_PID: usize = 24;

fn parse(cache: &ReadCache<&File>) -> Option<(Vec<Segment>, Option<i32>)> {
    let endian = LittleEndian;
    let header = FileHeader64::<LittleEndian>::parse(cache).ok()?;
    if !header.is_little_endian()
        || header.e_type(endian) != elf::ET_CORE
        || header.e_machine(endian) != elf::EM_X86_64
    {
        return None;
    }
    let mut segments = Vec::new();
    let mut pid = None;
    for program in header.program_headers(endian, cache).ok()? {
        if program.p_type(endian) == elf::PT_LOAD {
            segments.push(Segment {
                start: program.p_vaddr(endian),
                dumped: program.p_filesz(endian),
                size: program.p_memsz(endian),
                offset: program.p_offset(endian),
                read_only: program.p_flags(endian) == elf::PF_R,
            });
        }
        let Some(mut notes) = program.notes(endian, cache).ok().flatten() else { continue };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == b"CORE" && note.n_type(endian) == elf::NT_PRPSINFO {
                let bytes = note.desc().get(PRPSINFO_PID..PRPSINFO_PID + 4);
                pid = bytes.and_then(|bytes| Some(i32::from_le_bytes(bytes.try_into().ok()?)));
            }
        }
    }
    Some((segments, pid))
}
