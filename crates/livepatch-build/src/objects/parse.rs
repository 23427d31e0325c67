//! From the bytes of an ELF object to a [`Unit`].

use super::{Def, Kind, Merge, Reloc, SecIx, Section, SymIx, Symbol, Unit, eh_frame};
use object::LittleEndian as LE;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, Rela, SectionHeader, SectionTable, Sym, SymbolTable};

type Elf = FileHeader64<LE>;

/// An object that cannot be compared.
#[derive(Debug, thiserror::Error)]
#[error("object {file}: {what}")]
pub struct ParseError {
    /// Which.
    pub file: String,
    /// Why.
    pub what: String,
}

/// Parses one object; `None` for a file that is none (metadata, LLVM bitcode, a linker script).
///
/// # Errors
/// An ELF file that is damaged, or made for another architecture.
pub(super) fn parse<'a>(
    file: &str,
    member: Option<&str>,
    data: &'a [u8],
) -> Result<Option<Unit<'a>>, ParseError> {
    if !data.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    let fail = |what: String| ParseError {
        file: member.map_or_else(|| file.to_owned(), |member| format!("{file}({member})")),
        what,
    };
    parse_elf(data)
        .map(|parts| {
            parts.map(|(sections, symbols)| Unit {
                file: file.to_owned(),
                member: member.map(str::to_owned),
                sections,
                symbols,
            })
        })
        .map_err(fail)
}

type Parts<'a> = (Vec<Section<'a>>, Vec<Symbol<'a>>);

fn parse_elf(data: &[u8]) -> Result<Option<Parts<'_>>, String> {
    let header = Elf::parse(data).map_err(|e| e.to_string())?;
    if header.e_machine(LE) != elf::EM_X86_64 {
        return Err("not made for x86-64".into());
    }
    if header.e_type(LE) != elf::ET_REL {
        return Ok(None);
    }
    let table = header.sections(LE, data).map_err(|e| e.to_string())?;
    let (mut sections, map) = sections(&table, data)?;
    let symtab = table.symbols(LE, data, elf::SHT_SYMTAB).map_err(|e| e.to_string())?;
    let mut symbols = symbols(&symtab, &map)?;
    let merged = take_entries_apart(&mut symbols, &sections);
    sections.extend(merged);
    for (i, symbol) in symbols.iter().enumerate() {
        if let Def::Section(section, _) = symbol.def
            && !symbol.is_section
            && !symbol.name.is_empty()
        {
            sections[section.0 as usize].symbols.push(SymIx(i as u32));
        }
    }
    for section in &mut sections {
        section.symbols.sort_by_key(|ix| match symbols[ix.0 as usize].def {
            Def::Section(_, offset) => offset,
            _ => 0,
        });
    }
    let eh_frame = relocs(&table, data, &map, &mut sections)?;
    for (bytes, relocs) in eh_frame {
        eh_frame::attach(bytes, &relocs, &symbols, &mut sections)?;
    }
    Ok(Some((sections, symbols)))
}

/// Section index in the file → index in [`Unit::sections`].
type Map = Vec<Option<SecIx>>;

fn sections<'a>(table: &SectionTable<'a, Elf>, data: &'a [u8]) -> Result<(Vec<Section<'a>>, Map), String> {
    let mut out = Vec::new();
    let mut map = vec![None; table.len()];
    for (index, header) in table.enumerate() {
        let flags = header.sh_flags(LE).0;
        if flags & elf::SHF_ALLOC.0 == 0 || is_unwind(table, header) {
            continue;
        }
        let name = table.section_name(LE, header).map_err(|e| e.to_string())?;
        let name = std::str::from_utf8(name).map_err(|_| "a section name is not UTF-8".to_owned())?;
        let bytes = header.data(LE, data).map_err(|e| e.to_string())?;
        let entsize = header.sh_entsize(LE).max(1);
        let merge = (flags & elf::SHF_MERGE.0 != 0).then_some(if flags & elf::SHF_STRINGS.0 != 0 {
            Merge::Strings(entsize)
        } else {
            Merge::Fixed(entsize)
        });
        map[index.0] = Some(SecIx(out.len() as u32));
        out.push(Section {
            name,
            kind: kind(name, header.sh_type(LE), flags),
            align: header.sh_addralign(LE).max(1),
            bytes,
            size: header.sh_size(LE),
            relocs: Vec::new(),
            merge,
            merged: false,
            symbols: Vec::new(),
            frames: Vec::new(),
        });
    }
    Ok((out, map))
}

/// Makes a section of its own of each constant in a section with entries of one size, which the linker merges with equal ones of other
/// objects. Such a constant is its bytes: LLVM puts there only what has no address of significance (`unnamed_addr`), whatever its
/// name. What a reference means depends on its symbol alone, because it may point before or behind the constant.
fn take_entries_apart<'a>(symbols: &mut [Symbol<'a>], sections: &[Section<'a>]) -> Vec<Section<'a>> {
    let mut out = Vec::new();
    for symbol in symbols.iter_mut().filter(|symbol| !symbol.is_section && !symbol.name.is_empty()) {
        let Def::Section(ix, offset) = symbol.def else { continue };
        let section = &sections[ix.0 as usize];
        let Some(Merge::Fixed(size)) = section.merge else { continue };
        let size = if symbol.size == 0 { size } else { symbol.size };
        let start = offset as usize;
        let Some(bytes) = section.bytes.get(start..start.saturating_add(size as usize)) else { continue };
        symbol.def = Def::Section(SecIx((sections.len() + out.len()) as u32), 0);
        let (merge, merged) = (None, true);
        out.push(Section {
            bytes,
            size,
            merge,
            merged,
            relocs: Vec::new(),
            symbols: Vec::new(),
            frames: Vec::new(),
            ..*section
        });
    }
    out
}

fn is_unwind(table: &SectionTable<'_, Elf>, header: &elf::SectionHeader64<LE>) -> bool {
    header.sh_type(LE) == elf::SHT_X86_64_UNWIND
        || table.section_name(LE, header).is_ok_and(|name| name == b".eh_frame")
}

/// The names that compilers give by default; anything else was asked for in the source, to be found by that name.
fn kind(name: &str, sh_type: elf::SectionType, flags: u64) -> Kind {
    let known =
        [".text", ".rodata", ".data", ".bss", ".tdata", ".tbss", ".gcc_except_table", ".note", ".comment"];
    let is_known = known
        .iter()
        .any(|known| name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')));
    let (write, exec, tls) =
        (flags & elf::SHF_WRITE.0 != 0, flags & elf::SHF_EXECINSTR.0 != 0, flags & elf::SHF_TLS.0 != 0);
    let zero = sh_type == elf::SHT_NOBITS;
    match () {
        () if !is_known && !exec => Kind::Special,
        () if exec => Kind::Text,
        () if tls && zero => Kind::TlsBss,
        () if tls => Kind::TlsData,
        () if zero => Kind::Bss,
        () if !write || name.starts_with(".data.rel.ro") => Kind::ReadOnly,
        () => Kind::Data,
    }
}

fn symbols<'a>(table: &SymbolTable<'a, Elf>, map: &Map) -> Result<Vec<Symbol<'a>>, String> {
    let mut out = Vec::with_capacity(table.len());
    for (index, symbol) in table.enumerate() {
        let name = symbol.name(LE, table.strings()).map_err(|e| e.to_string())?;
        let name = std::str::from_utf8(name).map_err(|_| "a symbol name is not UTF-8".to_owned())?;
        let section = table.symbol_section(LE, symbol, index).map_err(|e| e.to_string())?;
        let def = match section {
            Some(section) => match map.get(section.0).copied().flatten() {
                Some(ix) => Def::Section(ix, symbol.st_value(LE)),
                None => Def::Other,
            },
            None if symbol.is_undefined(LE) => Def::Undefined,
            None => Def::Other,
        };
        out.push(Symbol {
            name,
            def,
            size: symbol.st_size(LE),
            global: symbol.st_bind() != elf::STB_LOCAL,
            weak: symbol.st_bind() == elf::STB_WEAK,
            is_section: symbol.st_type() == elf::STT_SECTION,
        });
    }
    Ok(out)
}

/// Contents and relocations of an unwind table.
type Unwind<'a> = (&'a [u8], Vec<Reloc>);

/// Distributes relocations over the sections; returns those of the unwind tables with their contents.
fn relocs<'a>(
    table: &SectionTable<'a, Elf>,
    data: &'a [u8],
    map: &Map,
    sections: &mut [Section<'a>],
) -> Result<Vec<Unwind<'a>>, String> {
    let mut unwind = Vec::new();
    for header in table.iter() {
        let target = header.sh_info(LE) as usize;
        let Some((entries, _)) = header.rela(LE, data).map_err(|e| e.to_string())? else { continue };
        let convert = |rela: &elf::Rela64<LE>| Reloc {
            offset: rela.r_offset(LE),
            kind: rela.r_type(LE, false).0,
            symbol: SymIx(rela.r_sym(LE, false)),
            addend: rela.r_addend(LE),
        };
        if let Some(section) = map.get(target).copied().flatten() {
            let mut list: Vec<_> = entries.iter().map(convert).collect();
            list.sort_by_key(|reloc| reloc.offset);
            let section = &mut sections[section.0 as usize];
            if list.last().is_some_and(|reloc| reloc.offset >= section.size) {
                return Err(format!("a relocation lies outside {}", section.name));
            }
            section.relocs = list;
        } else if let Ok(of) = table.section(object::SectionIndex(target))
            && is_unwind(table, of)
        {
            let bytes = of.data(LE, data).map_err(|e| e.to_string())?;
            let mut list: Vec<_> = entries.iter().map(convert).collect();
            list.sort_by_key(|reloc| reloc.offset);
            unwind.push((bytes, list));
        }
    }
    Ok(unwind)
}
