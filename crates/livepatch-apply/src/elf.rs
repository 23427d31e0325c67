//! ELF images as they lie in the target's memory.
//!
//! Everything is what the memory holds, never what a file of that name holds: the file may have been replaced or deleted since
//! (large tables come from the mapped file itself, where no page differs). Sources: ELF-64 object file format, System V ABI AMD64
//! supplement, the GNU hash table format.

use livepatch_patch::{Bias, BuildId, LinkAddr, RunAddr};
use livepatch_process::ProcessError;
use object::elf;
use std::ops::Range;

/// Readable memory of the target.
pub trait Peek {
    /// Fills `buf` from `at`.
    fn peek(&self, at: RunAddr, buf: &mut [u8]) -> Result<(), ProcessError>;

    /// `len` bytes from `at`.
    fn bytes(&self, at: RunAddr, len: usize) -> Result<Vec<u8>, ProcessError> {
        let mut buf = vec![0; len];
        self.peek(at, &mut buf)?;
        Ok(buf)
    }

    /// `len` bytes of a table that nothing writes to: as [`Self::bytes`], if possible without making it resident in the target.
    fn table(&self, at: RunAddr, len: usize) -> Result<Vec<u8>, ProcessError> {
        self.bytes(at, len)
    }

    /// A little-endian word.
    fn word(&self, at: RunAddr) -> Result<u64, ProcessError> {
        let mut buf = [0; 8];
        self.peek(at, &mut buf)?;
        Ok(u64::from_le_bytes(buf))
    }
}

/// Largest table of program headers, note segment or dynamic section that is believed.
const MAX_HEADERS: u64 = 1024;
const MAX_NOTES: u64 = 64 * 1024;
const MAX_DYNAMIC: u64 = 64 * 1024;
const EHDR_SIZE: usize = 64;
const PHDR_SIZE: u64 = 56;
const DYN_SIZE: usize = 16;

/// A loadable segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it is.
    pub range: Range<RunAddr>,
    /// Whether it holds code.
    pub execute: bool,
    /// Whether it is writable (before any RELRO protection).
    pub write: bool,
}

/// The thread-local segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsHeader {
    /// Address of the initialisation image.
    pub addr: LinkAddr,
    /// Size in memory.
    pub size: u64,
    /// Alignment.
    pub align: u64,
}

/// Headers of an image in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What is added to the image's own addresses.
    pub bias: Bias,
    /// The loadable segments.
    pub segments: Vec<Segment>,
    /// The `NT_GNU_BUILD_ID` note.
    pub build_id: Option<BuildId>,
    /// The thread-local segment.
    pub tls: Option<TlsHeader>,
    /// The `PT_GNU_EH_FRAME` segment.
    pub eh_frame_hdr: Option<Range<RunAddr>>,
    /// The dynamic section, tag by tag.
    pub dynamic: Option<Dynamic>,
    /// Where an executable starts.
    pub entry: RunAddr,
}

/// The dynamic section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dynamic {
    /// Where it is.
    pub at: RunAddr,
    entries: Vec<(u64, u64)>,
}

impl Dynamic {
    /// Value of the first entry with this tag.
    pub fn get(&self, tag: i64) -> Option<u64> {
        self.entries.iter().find(|(t, _)| *t == tag as u64).map(|(_, value)| *value)
    }

    /// Values of all entries with this tag.
    pub fn all(&self, tag: i64) -> impl Iterator<Item = u64> + '_ {
        self.entries.iter().filter(move |(t, _)| *t == tag as u64).map(|(_, value)| *value)
    }
}

struct Header {
    kind: u32,
    offset: u64,
    addr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
    flags: u32,
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        out.copy_from_slice(found);
    }
    out
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

pub(crate) fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

pub(crate) fn quad(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

impl Image {
    /// Reads the image whose first page (the one with the ELF header) is mapped at `start`. `None` if there is no 64-bit
    /// AMD64 image there.
    pub fn read(memory: &dyn Peek, start: RunAddr) -> Result<Option<Self>, ProcessError> {
        let ehdr = memory.bytes(start, EHDR_SIZE)?;
        let suits = ehdr.starts_with(&elf::ELFMAG)
            && ehdr[4] == elf::ELFCLASS64.0
            && ehdr[5] == elf::ELFDATA2LSB.0
            && half(&ehdr, 18) == elf::EM_X86_64.0
            && u64::from(half(&ehdr, 54)) == PHDR_SIZE;
        let (offset, count) = (quad(&ehdr, 32), u64::from(half(&ehdr, 56)));
        if !suits || count == 0 || count > MAX_HEADERS || offset > 1 << 32 {
            return Ok(None);
        }
        let table = memory.bytes(start.offset(offset as i64), (count * PHDR_SIZE) as usize)?;
        let headers: Vec<Header> = table.chunks_exact(PHDR_SIZE as usize).map(program_header).collect();
        let Some(first) = headers.iter().find(|h| h.kind == elf::PT_LOAD.0 && h.offset < 4096) else {
            return Ok(None);
        };
        let bias = Bias(start.0.wrapping_sub(first.addr & !4095));
        let find = |kind: u32| headers.iter().find(|h| h.kind == kind);
        let range = |h: &Header| {
            let at = LinkAddr(h.addr).at(bias);
            at..at.offset(h.memsz as i64)
        };
        let mut build_id = None;
        for note in headers.iter().filter(|h| h.kind == elf::PT_NOTE.0 && h.filesz <= MAX_NOTES) {
            let bytes = memory.bytes(LinkAddr(note.addr).at(bias), note.filesz as usize)?;
            build_id = build_id.or_else(|| find_build_id(&bytes, note.align));
        }
        let dynamic = match find(elf::PT_DYNAMIC.0).filter(|h| h.memsz <= MAX_DYNAMIC) {
            Some(h) => Some(read_dynamic(memory, LinkAddr(h.addr).at(bias), h.memsz)?),
            None => None,
        };
        Ok(Some(Self {
            bias,
            segments: headers
                .iter()
                .filter(|h| h.kind == elf::PT_LOAD.0)
                .map(|h| Segment {
                    range: range(h),
                    execute: h.flags & elf::PF_X.0 != 0,
                    write: h.flags & elf::PF_W.0 != 0,
                })
                .collect(),
            build_id,
            tls: find(elf::PT_TLS.0).map(|h| TlsHeader {
                addr: LinkAddr(h.addr),
                size: h.memsz,
                align: h.align.max(1),
            }),
            eh_frame_hdr: find(elf::PT_GNU_EH_FRAME.0).map(range),
            dynamic,
            entry: LinkAddr(quad(&ehdr, 24)).at(bias),
        }))
    }

    /// The segment that holds an address.
    pub fn segment(&self, at: RunAddr) -> Option<&Segment> {
        self.segments.iter().find(|s| s.range.contains(&at))
    }

    /// From the first to the last byte of all segments.
    pub fn span(&self) -> Range<RunAddr> {
        let start = self.segments.iter().map(|s| s.range.start).min().unwrap_or(RunAddr(0));
        let end = self.segments.iter().map(|s| s.range.end).max().unwrap_or(start);
        start..end
    }

    /// What a patch has to be within 2 GiB of. Code of an image with a fixed place refers to itself by absolute addresses
    /// of 32 bits (`R_X86_64_32S`), so that a patch of it has to stay in the lowest 2 GiB.
    pub fn neighbourhood(&self) -> Range<RunAddr> {
        let span = self.span();
        if self.bias == Bias(0) { RunAddr(0)..span.end } else { span }
    }

    /// A pointer in the dynamic section as an address: loaders relocate some of them in place, others not.
    pub fn dynamic_address(&self, value: u64) -> RunAddr {
        let relocated = RunAddr(value);
        if self.segment(relocated).is_some() { relocated } else { LinkAddr(value).at(self.bias) }
    }
}

fn program_header(bytes: &[u8]) -> Header {
    Header {
        kind: long(bytes, 0),
        flags: long(bytes, 4),
        offset: quad(bytes, 8),
        addr: quad(bytes, 16),
        filesz: quad(bytes, 32),
        memsz: quad(bytes, 40),
        align: quad(bytes, 48),
    }
}

fn read_dynamic(memory: &dyn Peek, at: RunAddr, size: u64) -> Result<Dynamic, ProcessError> {
    let bytes = memory.bytes(at, size as usize)?;
    let entries = bytes.chunks_exact(DYN_SIZE).map(|e| (quad(e, 0), quad(e, 8)));
    Ok(Dynamic { at, entries: entries.take_while(|(tag, _)| *tag != 0).collect() })
}

/// The descriptor of the `NT_GNU_BUILD_ID` note in a note segment.
fn find_build_id(mut notes: &[u8], align: u64) -> Option<BuildId> {
    let align = if align == 8 { 8 } else { 4 };
    while notes.len() >= 12 {
        let (name, desc) = (long(notes, 0) as usize, long(notes, 4) as usize);
        let name_end = 12usize.checked_add(name)?;
        let desc_start = name_end.next_multiple_of(align);
        let desc_end = desc_start.checked_add(desc)?;
        if long(notes, 8) == elf::NT_GNU_BUILD_ID.0 && notes.get(12..name_end)? == b"GNU\0" {
            return Some(BuildId::new(notes.get(desc_start..desc_end)?))
                .filter(|id| !id.as_bytes().is_empty());
        }
        notes = notes.get(desc_end.checked_next_multiple_of(align)?..)?;
    }
    None
}
