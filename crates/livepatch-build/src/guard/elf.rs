//! The ELF side of an image: sections, symbols, and what the loader writes into pointers.

use super::demangle::{identity, strip_suffix};
use super::report::GuardError;
use object::read::elf::{ElfFile64, FileHeader};
use object::{
    LittleEndian as Le, Object, ObjectKind, ObjectSection, ObjectSegment, ObjectSymbol, ObjectSymbolTable,
    RelocationFlags, RelocationTarget, SectionKind, SymbolKind, elf,
};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The bytes of an image file.
pub(super) struct ImageFile {
    pub(super) path: PathBuf,
    bytes: Vec<u8>,
}

impl ImageFile {
    pub(super) fn read(path: &Path) -> Result<Self, GuardError> {
        let bytes = std::fs::read(path).map_err(|source| GuardError::Io { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    pub(super) fn elf(&self) -> Result<ElfFile64<'_, Le>, GuardError> {
        let broken = |source| GuardError::Elf { path: self.path.clone(), source };
        let file = ElfFile64::<Le>::parse(self.bytes.as_slice()).map_err(broken)?;
        if file.elf_header().e_machine(Le) != elf::EM_X86_64 {
            return Err(GuardError::Machine { path: self.path.clone() });
        }
        Ok(file)
    }

    /// A section's contents, decompressed; empty if there is none of this name.
    pub(super) fn section<'a>(
        &'a self,
        elf: &ElfFile64<'a, Le>,
        name: &str,
    ) -> Result<Cow<'a, [u8]>, GuardError> {
        match elf.section_by_name(name) {
            Some(section) => section
                .uncompressed_data()
                .map_err(|source| GuardError::Elf { path: self.path.clone(), source }),
            None => Ok(Cow::Borrowed(&[])),
        }
    }
}

/// A defined symbol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol<'a> {
    pub(super) name: &'a str,
    pub(super) addr: u64,
    pub(super) kind: SymbolKind,
}

/// What a pointer-sized place holds once the image is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// A plain number.
    Number(u64),
    /// An address of this image.
    Address(u64),
    /// The address of a symbol of another module.
    Import(String),
}

/// Symbols and pointers of an image.
pub(super) struct Elf<'a> {
    file: ElfFile64<'a, Le>,
    symbols: Vec<Symbol<'a>>,
    by_name: HashMap<&'a str, Vec<u64>>,
    pointers: OnceLock<BTreeMap<u64, Word>>,
}

impl<'a> Elf<'a> {
    pub(super) fn new(file: ElfFile64<'a, Le>) -> Self {
        let mut symbols: Vec<Symbol<'a>> = file
            .symbols()
            .filter(|symbol| symbol.is_definition() || symbol.kind() == SymbolKind::Tls)
            .filter_map(|symbol| {
                let name = symbol.name().ok().filter(|name| !name.is_empty())?;
                Some(Symbol { name, addr: symbol.address(), kind: symbol.kind() })
            })
            .collect();
        symbols.sort_by_key(|symbol| symbol.addr);
        let mut by_name: HashMap<&str, Vec<u64>> = HashMap::with_capacity(symbols.len());
        for symbol in &symbols {
            by_name.entry(symbol.name).or_default().push(symbol.addr);
        }
        Self { file, symbols, by_name, pointers: OnceLock::new() }
    }

    /// Functions whose first byte is at `addr`.
    pub(super) fn functions_at(&self, addr: u64) -> impl Iterator<Item = Symbol<'a>> + '_ {
        let start = self.symbols.partition_point(|symbol| symbol.addr < addr);
        self.symbols[start..]
            .iter()
            .take_while(move |symbol| symbol.addr == addr)
            .filter(|symbol| symbol.kind == SymbolKind::Text)
            .copied()
    }

    /// Addresses of the symbols of exactly this name.
    pub(super) fn addresses(&self, name: &str) -> &[u64] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// Symbols (without the optimiser's suffixes) of the functions at an address.
    pub(super) fn names_at(&self, addr: u64) -> BTreeSet<&'a str> {
        self.functions_at(addr).map(|symbol| strip_suffix(symbol.name)).collect()
    }

    /// What the function symbols of the image stand for, see [`identity`].
    pub(super) fn identities(&self) -> HashSet<&'a str> {
        let functions = self.symbols.iter().filter(|symbol| symbol.kind == SymbolKind::Text);
        functions.map(|symbol| identity(symbol.name)).collect()
    }

    /// All code, cut at function symbols: where a piece begins, and its bytes.
    pub(super) fn code(&self) -> Vec<(u64, &'a [u8])> {
        let mut pieces = Vec::new();
        for section in self.file.sections().filter(|section| section.kind() == SectionKind::Text) {
            let Ok(data) = section.data() else { continue };
            let (start, end) = (section.address(), section.address() + data.len() as u64);
            let inside = self.symbols.iter().filter(|symbol| symbol.kind == SymbolKind::Text);
            let inside = inside.map(|symbol| symbol.addr).filter(|addr| (start..end).contains(addr));
            let mut borders: Vec<u64> = [start].into_iter().chain(inside).chain([end]).collect();
            borders.dedup();
            pieces.extend(
                borders
                    .windows(2)
                    .map(|pair| (pair[0], &data[(pair[0] - start) as usize..(pair[1] - start) as usize])),
            );
        }
        pieces
    }

    /// Whether the image may be loaded anywhere, so that the loader is told of every pointer in it.
    pub(super) fn is_relocatable(&self) -> bool {
        self.file.kind() == ObjectKind::Dynamic
    }

    /// Which of these addresses pointers of the image hold.
    pub(super) fn pointed(&self, addrs: &BTreeSet<u64>) -> BTreeSet<u64> {
        let pointers = self.pointers.get_or_init(|| self.read_pointers()).values();
        let pointed = pointers.filter_map(|word| match word {
            Word::Address(addr) => Some(*addr),
            _ => None,
        });
        pointed.filter(|addr| addrs.contains(addr)).collect()
    }

    /// The word at `addr` as the loader leaves it, or `None` outside the image.
    pub(super) fn word(&self, addr: u64) -> Option<Word> {
        if let Some(word) = self.pointers.get_or_init(|| self.read_pointers()).get(&addr) {
            return Some(word.clone());
        }
        let value = self.raw_word(addr)?;
        // Without run-time relocations (position-dependent images) pointers stand in the file as they are.
        let is_code = value != 0 && self.is_function(value);
        Some(if is_code { Word::Address(value) } else { Word::Number(value) })
    }

    fn raw_word(&self, addr: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(addr, 8)?.try_into().ok()?))
    }

    /// Bytes of the image as the file has them, or `None` outside of what is loaded from it.
    pub(super) fn bytes(&self, addr: u64, len: u64) -> Option<&'a [u8]> {
        self.file.segments().find_map(|segment| segment.data_range(addr, len).ok().flatten())
    }

    /// Whether a function begins at this address.
    pub(super) fn is_function(&self, addr: u64) -> bool {
        self.functions_at(addr).next().is_some()
    }

    fn read_pointers(&self) -> BTreeMap<u64, Word> {
        let mut pointers = BTreeMap::new();
        for (place, relocation) in self.file.dynamic_relocations().into_iter().flatten() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
            let word = match (r_type, relocation.target()) {
                (elf::R_X86_64_RELATIVE, _) => Word::Address(relocation.addend() as u64),
                (elf::R_X86_64_64 | elf::R_X86_64_GLOB_DAT, RelocationTarget::Symbol(index)) => {
                    self.symbol_word(index, relocation.addend())
                }
                _ => continue,
            };
            pointers.insert(place, word);
        }
        for place in self.relr_places() {
            if let Some(value) = self.raw_word(place) {
                pointers.insert(place, Word::Address(value));
            }
        }
        pointers
    }

    fn symbol_word(&self, index: object::SymbolIndex, addend: i64) -> Word {
        let symbol = self.file.dynamic_symbol_table().and_then(|table| table.symbol_by_index(index).ok());
        match symbol {
            Some(symbol) if symbol.is_definition() => {
                Word::Address(symbol.address().wrapping_add_signed(addend))
            }
            Some(symbol) => Word::Import(symbol.name().unwrap_or_default().to_owned()),
            None => Word::Number(addend as u64),
        }
    }

    /// Places named by `SHT_RELR` (the compact form of relative relocations: an even word is a place, an odd one a
    /// bitmap of the 63 words after the last place).
    fn relr_places(&self) -> Vec<u64> {
        let mut places = Vec::new();
        let mut next = 0u64;
        let Ok(data) = self.file.section_by_name(".relr.dyn").map_or(Ok(&[][..]), |section| section.data())
        else {
            return places;
        };
        for entry in data.chunks_exact(8) {
            let entry = u64::from_le_bytes(entry.try_into().expect("chunks of eight"));
            if entry & 1 == 0 {
                places.push(entry);
                next = entry.wrapping_add(8);
            } else {
                places.extend(
                    (0..63).filter(|bit| entry >> (bit + 1) & 1 == 1).map(|bit| next.wrapping_add(8 * bit)),
                );
                next = next.wrapping_add(63 * 8);
            }
        }
        places
    }
}
