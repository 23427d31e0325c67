//! Facts about a linked image: symbols, imports, thread-local segment, bytes.

use livepatch_patch::{BuildId, ImageKind, LinkAddr, TlsSegment};
use object::LittleEndian as LE;
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Rela, SectionHeader, Sym};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

type Elf = FileHeader64<LE>;

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("image {path}: {what}")]
pub struct ImageError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub what: String,
}

/// A symbol of a linked image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSymbol {
    /// Address, or offset in the TLS segment for thread-locals.
    pub value: u64,
    /// Size in bytes.
    pub size: u64,
    /// Whether it is a thread-local.
    pub tls: bool,
    /// Whether it is code.
    pub code: bool,
    /// Whether it is data that nothing writes to once the program is loaded.
    pub constant: bool,
}

/// What the diff and the emitter need of a linked image.
#[derive(Debug)]
pub struct Image {
    data: Vec<u8>,
    /// File name, for messages.
    pub path: PathBuf,
    /// How it is loaded.
    pub kind: ImageKind,
    /// Whether it is loaded where it was linked for (`ET_EXEC`).
    pub fixed: bool,
    /// Its identity.
    pub build_id: Option<BuildId>,
    /// Its `PT_TLS` segment.
    pub tls: Option<TlsSegment>,
    /// Libraries that it asks the loader for, by soname.
    pub needed: Vec<String>,
    segments: Vec<Segment>,
    symbols: HashMap<String, Vec<ImageSymbol>>,
    imports: HashMap<String, Import>,
    exports: BTreeSet<String>,
}

/// A name that an image imports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Import {
    /// The GOT slot that the loader fills with its address, if there is one.
    pub got: Option<LinkAddr>,
    /// Whether the program starts without it, too.
    pub weak: bool,
}

#[derive(Debug)]
struct Segment {
    addr: u64,
    file: std::ops::Range<usize>,
}

impl Image {
    /// Reads an image.
    ///
    /// # Errors
    /// The file cannot be read or is no x86-64 executable or shared object.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let fail = |what: String| ImageError { path: path.to_owned(), what };
        let data = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        Self::parse(path, data).map_err(fail)
    }

    fn parse(path: &Path, data: Vec<u8>) -> Result<Self, String> {
        let text = |e: object::Error| e.to_string();
        let bytes = data.as_slice();
        let header = Elf::parse(bytes).map_err(text)?;
        if header.e_machine(LE) != elf::EM_X86_64 {
            return Err("not made for x86-64".into());
        }
        let mut image = Self {
            data: Vec::new(),
            path: path.to_owned(),
            kind: ImageKind::SharedObject,
            fixed: header.e_type(LE) == elf::ET_EXEC,
            build_id: None,
            tls: None,
            needed: Vec::new(),
            segments: Vec::new(),
            symbols: HashMap::new(),
            imports: HashMap::new(),
            exports: BTreeSet::new(),
        };
        let mut interpreted = image.fixed;
        for segment in header.program_headers(LE, bytes).map_err(text)? {
            let range = segment.p_offset(LE) as usize..(segment.p_offset(LE) + segment.p_filesz(LE)) as usize;
            match segment.p_type(LE) {
                elf::PT_LOAD if range.end <= bytes.len() => {
                    image.segments.push(Segment { addr: segment.p_vaddr(LE), file: range });
                }
                elf::PT_INTERP => interpreted = true,
                elf::PT_TLS => {
                    image.tls = Some(TlsSegment {
                        addr: LinkAddr(segment.p_vaddr(LE)),
                        size: segment.p_memsz(LE),
                        align: segment.p_align(LE).max(1),
                    });
                }
                elf::PT_DYNAMIC => {
                    interpreted |= is_pie(segment.dynamic(LE, bytes).map_err(text)?.unwrap_or(&[]));
                }
                _ => {}
            }
        }
        if interpreted {
            image.kind = ImageKind::Executable;
        }
        image.build_id = object::File::parse(bytes)
            .and_then(|file| object::Object::build_id(&file).map(|id| id.map(BuildId::new)))
            .map_err(text)?;
        image.read_symbols(bytes).map_err(text)?;
        image.read_imports(bytes).map_err(text)?;
        image.read_exports(bytes).map_err(text)?;
        image.read_needed(bytes).map_err(text)?;
        image.data = data;
        Ok(image)
    }

    fn read_symbols(&mut self, bytes: &[u8]) -> object::Result<()> {
        let sections = Elf::parse(bytes)?.sections(LE, bytes)?;
        let table = sections.symbols(LE, bytes, elf::SHT_SYMTAB)?;
        let (mut constants, mut executable) = (Vec::new(), Vec::new());
        for (index, section) in sections.enumerate() {
            let flags = section.sh_flags(LE);
            let written = flags.0 & elf::SHF_WRITE.0 != 0;
            let relocated = sections.section_name(LE, section)?.starts_with(b".data.rel.ro");
            if flags.0 & elf::SHF_ALLOC.0 != 0 && (!written || relocated) {
                constants.extend(u16::try_from(index.0).ok());
            }
            if flags.0 & elf::SHF_EXECINSTR.0 != 0 {
                executable.extend(u16::try_from(index.0).ok());
            }
        }
        for symbol in table.iter() {
            let kind = symbol.st_type();
            if symbol.is_undefined(LE) || kind == elf::STT_FILE || kind == elf::STT_SECTION {
                continue;
            }
            let Ok(name) = std::str::from_utf8(symbol.name(LE, table.strings())?) else { continue };
            // Labels of assembly have no type.
            let label = || kind == elf::STT_NOTYPE && executable.contains(&symbol.st_shndx(LE).0);
            let entry = ImageSymbol {
                value: symbol.st_value(LE),
                size: symbol.st_size(LE),
                tls: kind == elf::STT_TLS,
                code: kind == elf::STT_FUNC || label(),
                constant: constants.contains(&symbol.st_shndx(LE).0),
            };
            let known = self.symbols.entry(name.to_owned()).or_default();
            if !known.contains(&entry) {
                known.push(entry);
            }
        }
        Ok(())
    }

    /// GOT slots by the name of the imported symbol. Slots in `.data` are left out: the program may overwrite them.
    fn read_imports(&mut self, bytes: &[u8]) -> object::Result<()> {
        let sections = Elf::parse(bytes)?.sections(LE, bytes)?;
        let table = sections.symbols(LE, bytes, elf::SHT_DYNSYM)?;
        for symbol in table.iter().filter(|symbol| symbol.is_undefined(LE)) {
            if let Ok(name) = std::str::from_utf8(symbol.name(LE, table.strings())?)
                && !name.is_empty()
            {
                let weak = symbol.st_bind() == elf::STB_WEAK;
                self.imports.entry(name.to_owned()).or_insert(Import { got: None, weak });
            }
        }
        for section in sections.iter() {
            let Some((relocs, link)) = section.rela(LE, bytes)? else { continue };
            if link != table.section() {
                continue;
            }
            for reloc in relocs {
                let kind = reloc.r_type(LE, false);
                if (kind != elf::R_X86_64_GLOB_DAT && kind != elf::R_X86_64_JUMP_SLOT)
                    || reloc.r_addend(LE) != 0
                {
                    continue;
                }
                let Some(index) = reloc.symbol(LE, false) else { continue };
                let symbol = table.symbol(index)?;
                if let Ok(name) = std::str::from_utf8(symbol.name(LE, table.strings())?) {
                    let slot = Some(LinkAddr(reloc.r_offset(LE)));
                    let known =
                        self.imports.entry(name.to_owned()).or_insert(Import { got: None, weak: false });
                    if known.got.is_none() || kind == elf::R_X86_64_GLOB_DAT {
                        known.got = slot;
                    }
                }
            }
        }
        Ok(())
    }

    fn read_exports(&mut self, bytes: &[u8]) -> object::Result<()> {
        let table = Elf::parse(bytes)?.sections(LE, bytes)?.symbols(LE, bytes, elf::SHT_DYNSYM)?;
        for symbol in table.iter().filter(|symbol| !symbol.is_undefined(LE) && !symbol.is_local()) {
            let name = std::str::from_utf8(symbol.name(LE, table.strings())?);
            self.exports.extend(name.ok().filter(|name| !name.is_empty()).map(str::to_owned));
        }
        Ok(())
    }

    fn read_needed(&mut self, bytes: &[u8]) -> object::Result<()> {
        let sections = Elf::parse(bytes)?.sections(LE, bytes)?;
        let Some((entries, strings)) = sections.dynamic(LE, bytes)? else { return Ok(()) };
        let strings = sections.strings(LE, bytes, strings)?;
        for entry in entries.iter().filter(|entry| entry.d_tag(LE) == elf::DT_NEEDED) {
            let name = u32::try_from(entry.d_val(LE)).ok().and_then(|at| strings.get(at).ok());
            self.needed.extend(name.and_then(|name| std::str::from_utf8(name).ok()).map(str::to_owned));
        }
        Ok(())
    }

    /// All definitions of a name in the full symbol table.
    pub fn symbols(&self, name: &str) -> &[ImageSymbol] {
        self.symbols.get(name).map_or(&[], Vec::as_slice)
    }

    /// Every name with its definitions.
    pub fn all_symbols(&self) -> impl Iterator<Item = (&str, &[ImageSymbol])> {
        self.symbols.iter().map(|(name, list)| (name.as_str(), list.as_slice()))
    }

    /// What other modules of a process can find in the image by these names.
    pub fn exports(&self) -> &BTreeSet<String> {
        &self.exports
    }

    /// What the image imports by this name.
    pub fn import(&self, name: &str) -> Option<Import> {
        self.imports.get(name).copied()
    }

    /// The bytes at an address, as far as they are stored in the file.
    pub fn bytes(&self, addr: LinkAddr, size: u64) -> Option<&[u8]> {
        let segment = self.segments.iter().find(|s| {
            addr.0 >= s.addr
                && addr.0.checked_add(size).is_some_and(|end| end - s.addr <= s.file.len() as u64)
        })?;
        let start = segment.file.start + (addr.0 - segment.addr) as usize;
        self.data.get(start..start + size as usize)
    }
}

/// Source: ELF gABI, `DT_FLAGS_1`; set by linkers for position-independent executables, static ones too.
fn is_pie(entries: &[elf::Dyn64<LE>]) -> bool {
    entries.iter().any(|entry| entry.d_tag(LE) == elf::DT_FLAGS_1 && entry.d_val(LE) & elf::DF_1_PIE.0 != 0)
}
