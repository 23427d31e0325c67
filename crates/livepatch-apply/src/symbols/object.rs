//! The symbol file: sections of a mapped patch, at the addresses that they have in the process.
//!
//! It is an executable without program headers, so that no tool moves it: what it says of addresses is true as it stands.

use super::PatchSymbols;
use livepatch_patch::RunAddr;
use object::Endianness;
use object::elf;
use object::write::elf::{FileHeader, SectionHeader, SectionIndex, Sym, Writer};
use object::write::{Error, StringId};

const TEXT_ALIGN: u64 = 16;
const TABLE_ALIGN: u64 = 8;

/// A section with contents.
struct Section<'a> {
    name: StringId,
    index: SectionIndex,
    at: RunAddr,
    bytes: &'a [u8],
    align: u64,
    code: bool,
    offset: u64,
}

/// Writes the file.
pub(super) fn write(patch: &PatchSymbols) -> Result<Vec<u8>, Error> {
    let mut buffer = Vec::new();
    let mut writer = Writer::new(Endianness::Little, true, &mut buffer);
    writer.reserve_file_header();
    writer.reserve_null_section_index();
    let mut sections = vec![section(&mut writer, b".text", patch.start, &patch.text, TEXT_ALIGN, true)];
    let text = sections[0].index;
    if let Some((start, bytes)) = &patch.eh_frame {
        sections.push(section(&mut writer, b".eh_frame", *start, bytes, TABLE_ALIGN, false));
    }
    writer.reserve_symtab_section_index();
    writer.reserve_strtab_section_index();
    writer.reserve_shstrtab_section_index();
    writer.reserve_null_symbol_index();
    let mut symbols = Vec::new();
    for function in patch.functions.iter().filter(|function| !function.symbol.contains('\0')) {
        symbols.push((writer.add_string(function.symbol.as_bytes()), function));
        writer.reserve_symbol_index(Some(text));
    }
    for section in &mut sections {
        section.offset = writer.reserve(section.bytes.len() as u64, section.align);
    }
    writer.reserve_symtab();
    writer.reserve_strtab()?;
    writer.reserve_shstrtab()?;
    writer.reserve_section_headers();

    writer.write_file_header(&FileHeader {
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        e_type: elf::ET_EXEC,
        e_machine: elf::EM_X86_64,
        e_entry: 0,
        e_flags: elf::FileFlags(0),
    })?;
    for section in &sections {
        writer.pad_until(section.offset);
        writer.write(section.bytes);
    }
    writer.write_null_symbol();
    for (name, function) in symbols {
        let st_name = writer.string_offset(Some(name));
        writer.write_symbol(&Sym {
            st_name,
            section: Some(text.0),
            st_info: elf::SymbolInfo::new(elf::STB_GLOBAL, elf::STT_FUNC),
            st_other: elf::SymbolOther(0),
            st_shndx: elf::SHN_UNDEF,
            st_value: function.start.0,
            st_size: function.size,
        });
    }
    writer.write_strtab();
    writer.write_shstrtab();
    writer.write_null_section_header();
    for section in &sections {
        let name = writer.section_name_offset(Some(section.name));
        writer.write_section_header(&header(section, name));
    }
    writer.write_symtab_section_header(1);
    writer.write_strtab_section_header();
    writer.write_shstrtab_section_header();
    Ok(buffer)
}

fn section<'a>(
    writer: &mut Writer<'a>,
    name: &'a [u8],
    at: RunAddr,
    bytes: &'a [u8],
    align: u64,
    code: bool,
) -> Section<'a> {
    let name = writer.add_section_name(name);
    Section { name, index: writer.reserve_section_index(), at, bytes, align, code, offset: 0 }
}

fn header(section: &Section<'_>, sh_name: u32) -> SectionHeader {
    let execute = if section.code { elf::SHF_EXECINSTR } else { elf::SectionFlags(0) };
    SectionHeader {
        sh_name,
        sh_type: elf::SHT_PROGBITS,
        sh_flags: elf::SHF_ALLOC | execute,
        sh_addr: section.at.0,
        sh_offset: section.offset,
        sh_size: section.bytes.len() as u64,
        sh_link: 0,
        sh_info: 0,
        sh_addralign: section.align,
        sh_entsize: 0,
    }
}
