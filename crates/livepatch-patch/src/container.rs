//! The patch file: a relocatable ELF object that `readelf` and `objdump` read, with a header section of our own.
//!
//! ```text
//! ELF header (ET_REL, x86-64)
//! .livepatch.meta   "LIVEPTCH" | version u32 | JSON length u32 | BLAKE3 of the file with this field zeroed | JSON
//! sections          as the kinds below, with their .rela sections
//! .symtab           symbol i+1 is SymbolId(i), all global
//!
//! kind       type               flags      symbol's place      section index   value
//! Text       PROGBITS           A X        Section             of the section  offset
//! ReadOnly   PROGBITS           A          Image               SHN_ABS         image-relative address
//! Data       PROGBITS           W A        ImageTls (STT_TLS)  SHN_ABS         offset in PT_TLS
//! Bss        NOBITS             W A        Import              SHN_UNDEF       image-relative GOT slot, 0 if none
//! TlsData    PROGBITS           W A T
//! TlsBss     NOBITS             W A T
//! EhFrame    X86_64_UNWIND      A
//! ```
//!
//! The digest finds damage, not malice: whoever can write a patch file can compute it. So everything that is read is
//! checked before it is used, and applying a patch is as much a matter of trust as starting a program.

use crate::ident::Digest;
use crate::patch::{Patch, Place, SectionKind};
use object::elf;
use object::write;

mod read;
#[cfg(test)]
pub(crate) mod tests;
mod validate;

pub use validate::Invalid;

/// Version of the format that this code writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// Largest file that is read.
pub const MAX_FILE: usize = 256 << 20;

const META: &str = ".livepatch.meta";
const MAGIC: &[u8; 8] = b"LIVEPTCH";
const PRELUDE: usize = 8 + 4 + 4 + 32;
const DIGEST_AT: usize = 16;

/// Why bytes are not a patch.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Not an ELF file, or one without our header.
    #[error("not a livepatch patch file, or one that is cut off: {0}")]
    NotAPatch(String),
    /// Written by a version of the format that this tool cannot read.
    #[error(
        "patch format version {found}, but this tool reads version {VERSION}; use the livepatch that made it"
    )]
    Version {
        /// Version in the file.
        found: u32,
    },
    /// The digest does not fit the contents.
    #[error("the patch file is damaged (its digest does not fit its contents); copy it again")]
    Damaged,
    /// Contents that no livepatch writes.
    #[error("malformed patch file")]
    Invalid(#[from] Invalid),
    /// Larger than [`MAX_FILE`].
    #[error("the file has {0} bytes; a patch has at most {MAX_FILE}")]
    TooLarge(usize),
}

/// The elements of an ELF section header that tell one kind from another.
fn elf_kind(kind: SectionKind) -> (elf::SectionType, u64) {
    let (write, alloc, exec, tls) =
        (elf::SHF_WRITE.0, elf::SHF_ALLOC.0, elf::SHF_EXECINSTR.0, elf::SHF_TLS.0);
    match kind {
        SectionKind::Text => (elf::SHT_PROGBITS, alloc | exec),
        SectionKind::ReadOnly => (elf::SHT_PROGBITS, alloc),
        SectionKind::Data => (elf::SHT_PROGBITS, alloc | write),
        SectionKind::Bss => (elf::SHT_NOBITS, alloc | write),
        SectionKind::TlsData => (elf::SHT_PROGBITS, alloc | write | tls),
        SectionKind::TlsBss => (elf::SHT_NOBITS, alloc | write | tls),
        SectionKind::EhFrame => (elf::SHT_X86_64_UNWIND, alloc),
    }
}

const KINDS: [SectionKind; 7] = [
    SectionKind::Text,
    SectionKind::ReadOnly,
    SectionKind::Data,
    SectionKind::Bss,
    SectionKind::TlsData,
    SectionKind::TlsBss,
    SectionKind::EhFrame,
];

impl SectionKind {
    /// Whether the section has no bytes in the file.
    pub fn is_zero_filled(self) -> bool {
        matches!(self, Self::Bss | Self::TlsBss)
    }
}

impl Patch {
    /// The patch file.
    ///
    /// # Errors
    /// The patch would not be read back: an index out of range, a name with a NUL byte and the like.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ContainerError> {
        validate::check(self)?;
        let json = serde_json::to_vec(&self.meta).map_err(|e| ContainerError::NotAPatch(e.to_string()))?;
        let mut object = write::Object::new(
            object::BinaryFormat::Elf,
            object::Architecture::X86_64,
            object::Endianness::Little,
        );
        let meta = object.add_section(Vec::new(), META.into(), object::SectionKind::Other);
        object.set_section_data(meta, prelude(&json), 16);
        let sections: Vec<_> =
            self.sections.iter().map(|section| add_section(&mut object, section)).collect();
        let symbols: Vec<_> = self
            .symbols
            .iter()
            .map(|symbol| object.add_symbol(elf_symbol(self, symbol, &sections)))
            .collect();
        for (section, id) in self.sections.iter().zip(&sections) {
            for reloc in &section.relocs {
                let r_type = elf::RelocationType(reloc.kind as u32);
                let relocation = write::Relocation {
                    offset: reloc.offset,
                    symbol: symbols[reloc.symbol.0 as usize],
                    addend: reloc.addend,
                    flags: object::RelocationFlags::Elf { r_type },
                };
                let added = object.add_relocation(*id, relocation);
                added.map_err(|e| ContainerError::NotAPatch(e.to_string()))?;
            }
        }
        let mut bytes = object.write().map_err(|e| ContainerError::NotAPatch(e.to_string()))?;
        seal(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a patch file and checks everything in it.
    ///
    /// # Errors
    /// See [`ContainerError`]; no input makes this panic.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ContainerError> {
        if bytes.len() > MAX_FILE {
            return Err(ContainerError::TooLarge(bytes.len()));
        }
        let patch = read::read(bytes)?;
        validate::check(&patch)?;
        Ok(patch)
    }

    /// The identity of a patch: the digest stored in its file.
    ///
    /// # Errors
    /// The bytes are not a patch file.
    pub fn id_of(bytes: &[u8]) -> Result<Digest, ContainerError> {
        let at = read::digest_offset(bytes)?;
        Ok(Digest(bytes[at..at + 32].try_into().expect("32 bytes")))
    }
}

fn prelude(json: &[u8]) -> Vec<u8> {
    let mut data = Vec::with_capacity(PRELUDE + json.len());
    data.extend_from_slice(MAGIC);
    data.extend_from_slice(&VERSION.to_le_bytes());
    data.extend_from_slice(&(json.len() as u32).to_le_bytes());
    data.extend_from_slice(&[0; 32]);
    data.extend_from_slice(json);
    data
}

/// Writes the digest into a file whose digest field is still zero.
fn seal(bytes: &mut [u8]) -> Result<(), ContainerError> {
    let at = read::digest_offset(bytes)?;
    let digest = Digest::of(bytes);
    bytes[at..at + 32].copy_from_slice(&digest.0);
    Ok(())
}

fn add_section(object: &mut write::Object<'_>, section: &crate::patch::Section) -> write::SectionId {
    let kind = match section.kind {
        SectionKind::Text => object::SectionKind::Text,
        SectionKind::ReadOnly | SectionKind::EhFrame => object::SectionKind::ReadOnlyData,
        SectionKind::Data => object::SectionKind::Data,
        SectionKind::Bss => object::SectionKind::UninitializedData,
        SectionKind::TlsData => object::SectionKind::Tls,
        SectionKind::TlsBss => object::SectionKind::UninitializedTls,
    };
    let id = object.add_section(Vec::new(), section.name.clone().into_bytes(), kind);
    let (sh_type, flags) = elf_kind(section.kind);
    object.section_mut(id).flags = object::SectionFlags::Elf { sh_type, sh_flags: elf::SectionFlags(flags) };
    if section.kind.is_zero_filled() {
        object.append_section_bss(id, section.size, section.align);
    } else {
        object.set_section_data(id, section.bytes.clone(), section.align);
    }
    id
}

fn elf_symbol(patch: &Patch, symbol: &crate::patch::Symbol, sections: &[write::SectionId]) -> write::Symbol {
    let (section, value, size, kind) = match symbol.place {
        Place::Section { section, offset, size } => {
            let kind = match patch.sections[section.0 as usize].kind {
                SectionKind::Text => object::SymbolKind::Text,
                SectionKind::TlsData | SectionKind::TlsBss => object::SymbolKind::Tls,
                _ => object::SymbolKind::Data,
            };
            (write::SymbolSection::Section(sections[section.0 as usize]), offset, size, kind)
        }
        Place::Image { addr, size } => {
            (write::SymbolSection::Absolute, addr.0, size, object::SymbolKind::Data)
        }
        Place::ImageTls { offset } => (write::SymbolSection::Absolute, offset, 0, object::SymbolKind::Tls),
        Place::Import { got, .. } => {
            (write::SymbolSection::Undefined, got.map_or(0, |slot| slot.0), 0, object::SymbolKind::Unknown)
        }
    };
    let st_type = match kind {
        object::SymbolKind::Text => elf::STT_FUNC,
        object::SymbolKind::Tls => elf::STT_TLS,
        object::SymbolKind::Data => elf::STT_OBJECT,
        _ => elf::STT_NOTYPE,
    };
    let is_weak = matches!(symbol.place, Place::Import { weak: true, .. });
    write::Symbol {
        name: symbol.name.clone().into_bytes(),
        value,
        size,
        kind,
        scope: object::SymbolScope::Dynamic,
        weak: is_weak,
        section,
        flags: object::SymbolFlags::Elf {
            st_info: elf::SymbolInfo::new(if is_weak { elf::STB_WEAK } else { elf::STB_GLOBAL }, st_type),
            st_other: elf::SymbolOther(0),
        },
    }
}
