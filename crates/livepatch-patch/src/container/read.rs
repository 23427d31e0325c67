//! Reading a patch file. Shapes are checked here, meaning in [`super::validate`].

use super::{ContainerError, DIGEST_AT, KINDS, MAGIC, META, PRELUDE, VERSION, elf_kind};
use crate::addr::LinkAddr;
use crate::ident::Digest;
use crate::patch::{Meta, Patch, Place, Reloc, Section, SectionId, Symbol, SymbolId};
use crate::reloc::RelocKind;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, Rela, SectionHeader, SectionTable, Sym};
use object::{LittleEndian, SymbolIndex};

type Elf = FileHeader64<LittleEndian>;

fn bad(what: impl ToString) -> ContainerError {
    ContainerError::NotAPatch(what.to_string())
}

struct File<'a> {
    bytes: &'a [u8],
    endian: LittleEndian,
    sections: SectionTable<'a, Elf>,
}

impl<'a> File<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, ContainerError> {
        let header = Elf::parse(bytes).map_err(|_| bad("not a 64-bit ELF file"))?;
        let endian = LittleEndian;
        if !header.is_little_endian() || header.e_machine(endian) != elf::EM_X86_64 {
            return Err(bad("made for an architecture other than x86-64"));
        }
        if header.e_type(endian) != elf::ET_REL {
            return Err(bad("an ELF file, but a program or library and not a patch"));
        }
        let sections = header.sections(endian, bytes).map_err(bad)?;
        Ok(Self { bytes, endian, sections })
    }

    /// Data of the header section and its offset in the file.
    fn meta(&self) -> Result<(&'a [u8], usize), ContainerError> {
        let (_, section) = self
            .sections
            .section_by_name(self.endian, META.as_bytes())
            .ok_or_else(|| bad(format!("an ELF object without a {META} section")))?;
        let data = section.data(self.endian, self.bytes).map_err(bad)?;
        if data.len() < PRELUDE || !data.starts_with(MAGIC) {
            return Err(bad(format!("the {META} section has another content")));
        }
        let (start, _) = section.file_range(self.endian).ok_or_else(|| bad("empty header"))?;
        Ok((data, start as usize))
    }
}

pub(super) fn digest_offset(bytes: &[u8]) -> Result<usize, ContainerError> {
    Ok(File::parse(bytes)?.meta()?.1 + DIGEST_AT)
}

pub(super) fn read(bytes: &[u8]) -> Result<Patch, ContainerError> {
    let file = File::parse(bytes)?;
    let (data, start) = file.meta()?;
    let word = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().expect("4 bytes"));
    if word(8) != VERSION {
        return Err(ContainerError::Version { found: word(8) });
    }
    check_digest(bytes, start + DIGEST_AT)?;
    let json = data.get(PRELUDE..PRELUDE + word(12) as usize).ok_or_else(|| bad("header cut short"))?;
    let meta: Meta = serde_json::from_slice(json).map_err(|e| bad(format!("header: {e}")))?;
    let (mut sections, index_map) = read_sections(&file)?;
    let symbols = read_symbols(&file, &index_map)?;
    read_relocs(&file, &index_map, &mut sections)?;
    Ok(Patch { meta, sections, symbols })
}

fn check_digest(bytes: &[u8], at: usize) -> Result<(), ContainerError> {
    let stored: [u8; 32] = bytes[at..at + 32].try_into().expect("32 bytes");
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..at]).update(&[0; 32]).update(&bytes[at + 32..]);
    if Digest(*hasher.finalize().as_bytes()) == Digest(stored) {
        Ok(())
    } else {
        Err(ContainerError::Damaged)
    }
}

/// The allocated sections, and for each ELF section index which of them it is.
fn read_sections(file: &File<'_>) -> Result<(Vec<Section>, Vec<Option<SectionId>>), ContainerError> {
    let mut sections = Vec::new();
    let mut index_map = vec![None; file.sections.len()];
    for (index, header) in file.sections.enumerate() {
        let flags = header.sh_flags(file.endian).0;
        if flags & elf::SHF_ALLOC.0 == 0 {
            continue;
        }
        let wanted = (header.sh_type(file.endian), flags);
        let kind = KINDS.into_iter().find(|kind| elf_kind(*kind) == wanted);
        let name = file.sections.section_name(file.endian, header).map_err(bad)?;
        let name = String::from_utf8_lossy(name).into_owned();
        let kind = kind.ok_or_else(|| bad(format!("section {name} has an unknown kind")))?;
        let bytes = header.data(file.endian, file.bytes).map_err(bad)?.to_vec();
        index_map[index.0] = Some(SectionId(sections.len() as u32));
        sections.push(Section {
            name,
            kind,
            align: header.sh_addralign(file.endian),
            bytes,
            size: header.sh_size(file.endian),
            relocs: Vec::new(),
        });
    }
    Ok((sections, index_map))
}

fn read_symbols(file: &File<'_>, index_map: &[Option<SectionId>]) -> Result<Vec<Symbol>, ContainerError> {
    let table = file.sections.symbols(file.endian, file.bytes, elf::SHT_SYMTAB).map_err(bad)?;
    let mut symbols = Vec::new();
    for (index, symbol) in table.enumerate() {
        if index == SymbolIndex(0) {
            continue;
        }
        let name = table.symbol_name(file.endian, symbol).map_err(bad)?;
        let name = std::str::from_utf8(name).map_err(|_| bad("a symbol name is not UTF-8"))?.to_owned();
        let (value, size) = (symbol.st_value(file.endian), symbol.st_size(file.endian));
        let is_tls = symbol.st_type() == elf::STT_TLS;
        let place = if symbol.st_shndx(file.endian) == elf::SHN_ABS {
            if is_tls {
                Place::ImageTls { offset: value }
            } else {
                Place::Image { addr: LinkAddr(value), size }
            }
        } else {
            match table.symbol_section(file.endian, symbol, index).map_err(bad)? {
                None => Place::Import {
                    got: (value != 0).then_some(LinkAddr(value)),
                    weak: symbol.st_bind() == elf::STB_WEAK,
                },
                Some(section) => {
                    let section = index_map.get(section.0).copied().flatten();
                    let section =
                        section.ok_or_else(|| bad(format!("symbol {name} lies in no loaded section")))?;
                    Place::Section { section, offset: value, size }
                }
            }
        };
        symbols.push(Symbol { name, place });
    }
    Ok(symbols)
}

fn read_relocs(
    file: &File<'_>,
    index_map: &[Option<SectionId>],
    sections: &mut [Section],
) -> Result<(), ContainerError> {
    for header in file.sections.iter() {
        let Some((relocs, _)) = header.rela(file.endian, file.bytes).map_err(bad)? else { continue };
        let of = index_map.get(header.sh_info(file.endian) as usize).copied().flatten();
        let section = of.ok_or_else(|| bad("relocations for a section that is not loaded"))?;
        for rela in relocs {
            let number = rela.r_type(file.endian, false);
            let kind =
                RelocKind::from_elf(number.0).ok_or_else(|| bad(format!("relocation type {}", number.0)))?;
            let symbol = rela.r_sym(file.endian, false);
            let symbol = symbol.checked_sub(1).ok_or_else(|| bad("a relocation without a symbol"))?;
            sections[section.0 as usize].relocs.push(Reloc {
                offset: rela.r_offset(file.endian),
                kind,
                symbol: SymbolId(symbol),
                addend: rela.r_addend(file.endian),
            });
        }
    }
    Ok(())
}
