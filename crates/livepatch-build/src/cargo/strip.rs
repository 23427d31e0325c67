//! The copy to ship: what is loaded, nothing else.
//!
//! Symbols and debug information are not part of any segment, and linkers put them behind everything that is. So the
//! file is cut after the last segment and gets a shorter section table. Every loaded byte stays where and what it
//! is, except the three fields of the ELF header that say where the table of sections is; so a patch fits the
//! stripped copy exactly if it fits the original.

use crate::error::{Error, IoContext, Result};
use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, SectionHeader64};
use object::endian::{U32, U64};
use object::pod::bytes_of;
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _};
use std::fs;
use std::path::Path;

/// Writes a copy of an ELF executable or shared object without symbols and debug information.
///
/// # Errors
/// The file is not a 64-bit little-endian ELF image, or reading or writing fails.
pub fn strip(image: &Path, stripped: &Path) -> Result<()> {
    let bytes = fs::read(image).at("read", image)?;
    let out = stripped_bytes(&bytes)
        .map_err(|e| Error::Image { path: image.to_path_buf(), what: format!("cannot be stripped: {e}") })?;
    // Beside its place and then renamed: a running program may be mapped from the old copy.
    let folder = stripped.parent().unwrap_or(Path::new("."));
    let tmp = tempfile::NamedTempFile::new_in(folder).at("create a file in", folder)?;
    fs::write(tmp.path(), out).at("write", tmp.path())?;
    let mode = fs::metadata(image).at("read", image)?.permissions();
    fs::set_permissions(tmp.path(), mode).at("set the mode of", tmp.path())?;
    tmp.persist(stripped).map_err(|e| e.error).at("write", stripped)?;
    Ok(())
}

/// Why a file cannot be stripped.
#[derive(Debug, thiserror::Error)]
enum StripError {
    #[error(transparent)]
    Elf(#[from] object::Error),
    #[error("it is shorter than its segments")]
    Truncated,
    #[error("it has too many sections")]
    Sections,
}

fn null_section() -> SectionHeader64<LE> {
    SectionHeader64 {
        sh_name: U32::default(),
        sh_type: U32::new(LE, elf::SHT_NULL),
        sh_flags: U64::new(LE, elf::SectionFlags(0)),
        sh_addr: U64::default(),
        sh_offset: U64::default(),
        sh_size: U64::default(),
        sh_link: U32::default(),
        sh_info: U32::default(),
        sh_addralign: U64::default(),
        sh_entsize: U64::default(),
    }
}

fn stripped_bytes(bytes: &[u8]) -> Result<Vec<u8>, StripError> {
    let header = FileHeader64::<LE>::parse(bytes)?;
    let endian = header.endian()?;
    let sections = header.section_headers(endian, bytes)?;
    let names = header.section_strings(endian, bytes, sections)?;
    let segments = header.program_headers(endian, bytes)?;
    let table_end = header.e_phoff(endian) + u64::from(header.e_phentsize(endian)) * segments.len() as u64;
    let end = segments
        .iter()
        .map(|segment| segment.p_offset(endian) + segment.p_filesz(endian))
        .fold(table_end, u64::max) as usize;
    let mut out = bytes.get(..end).ok_or(StripError::Truncated)?.to_vec();

    // Symbols of the dynamic table name sections by index, so the indices of what is kept must stay.
    let keep = |section: &&SectionHeader64<LE>| section.sh_flags(endian).0 & elf::SHF_ALLOC.0 != 0;
    let count = sections.iter().rposition(|section| keep(&section)).map_or(1, |last| last + 1);
    let mut strings = vec![0u8];
    let mut table = Vec::with_capacity(count + 1);
    for section in sections.iter().take(count) {
        let mut copy = *section;
        if keep(&section) {
            copy.sh_name.set(endian, strings.len() as u32);
            strings.extend_from_slice(section.name(endian, names)?);
            strings.push(0);
        } else {
            copy = null_section();
        }
        table.push(copy);
    }
    let mut own = null_section();
    own.sh_name.set(endian, strings.len() as u32);
    own.sh_type.set(endian, elf::SHT_STRTAB);
    strings.extend_from_slice(b".shstrtab\0");
    own.sh_offset.set(endian, out.len() as u64);
    own.sh_size.set(endian, strings.len() as u64);
    own.sh_addralign.set(endian, 1);
    table.push(own);
    out.extend_from_slice(&strings);
    out.resize(out.len().next_multiple_of(8), 0);

    let mut new_header = *header;
    new_header.e_shoff.set(endian, out.len() as u64);
    let last = u16::try_from(table.len() - 1).map_err(|_| StripError::Sections)?;
    if last >= elf::SHN_LORESERVE {
        return Err(StripError::Sections);
    }
    new_header.e_shnum.set(endian, last + 1);
    new_header.e_shstrndx.set(endian, elf::SymbolSection(last));
    for section in &table {
        out.extend_from_slice(bytes_of(section));
    }
    let head = bytes_of(&new_header);
    out[..head.len()].copy_from_slice(head);
    Ok(out)
}
