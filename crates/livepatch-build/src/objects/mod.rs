//! Object files as the diff sees them: sections with their relocations, symbols and unwind entries.
//!
//! The compiler is run with one section for each function and each datum, so a section is the unit of comparison and
//! of selection. Only sections that are loaded at run time are kept; debug information is read elsewhere, from the
//! linked images.

mod eh_frame;
mod landing_pads;
mod load;
mod parse;

pub use eh_frame::{Cie, Frame};
pub use landing_pads::LandingPads;
pub(crate) use load::object;
pub use load::{Inputs, LoadError, changed_inputs};
pub use parse::ParseError;

/// Index of a section in [`Unit::sections`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecIx(pub u32);

/// Index of a symbol in [`Unit::symbols`] (the ELF symbol index).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SymIx(pub u32);

/// One object file: an input of the link, or a member of an archive.
#[derive(Debug)]
pub struct Unit<'a> {
    /// Path of the input as the linker saw it.
    pub file: String,
    /// Name in the archive, if the input is one.
    pub member: Option<String>,
    /// Loaded sections.
    pub sections: Vec<Section<'a>>,
    /// All symbols, by ELF index.
    pub symbols: Vec<Symbol<'a>>,
}

/// A loaded section of an object file.
#[derive(Debug)]
pub struct Section<'a> {
    /// Its ELF name.
    pub name: &'a str,
    /// What it holds.
    pub kind: Kind,
    /// Alignment in bytes.
    pub align: u64,
    /// Contents; empty if zero-filled.
    pub bytes: &'a [u8],
    /// Size in memory.
    pub size: u64,
    /// Relocations, sorted by offset.
    pub relocs: Vec<Reloc>,
    /// Set if the linker may merge equal entries of this section with others.
    pub merge: Option<Merge>,
    /// Whether it is one constant of a mergeable section, which the linker puts wherever an equal one is.
    pub merged: bool,
    /// Symbols defined here that name functions or data, in order of offset; no section symbols.
    pub symbols: Vec<SymIx>,
    /// Unwind entries of the functions in it.
    pub frames: Vec<Frame<'a>>,
}

#[cfg(test)]
impl<'a> Section<'a> {
    /// One that refers to nothing.
    pub(crate) fn of_bytes(kind: Kind, bytes: &'a [u8]) -> Self {
        Self {
            name: ".section",
            kind,
            align: 1,
            bytes,
            size: bytes.len() as u64,
            relocs: Vec::new(),
            merge: None,
            merged: false,
            symbols: Vec::new(),
            frames: Vec::new(),
        }
    }
}

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Code.
    Text,
    /// Data that is never written after relocation: constants, vtables, tables for unwinding.
    ReadOnly,
    /// Initialised writable data.
    Data,
    /// Zero-filled writable data.
    Bss,
    /// Initialised thread-locals.
    TlsData,
    /// Zero-filled thread-locals.
    TlsBss,
    /// Run or collected by the loader or the program through its section name: `.init_array`, `linkme_…`.
    Special,
}

impl Kind {
    /// Whether variables live here whose running value a patch must keep.
    pub fn is_variable(self) -> bool {
        matches!(self, Self::Data | Self::Bss | Self::TlsData | Self::TlsBss)
    }

    /// Whether each thread has a copy of its own.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::TlsData | Self::TlsBss)
    }
}

/// How a mergeable section is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Entries of this size.
    Fixed(u64),
    /// Strings ended by a zero of this size.
    Strings(u64),
}

/// A relocation of an object file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloc {
    /// Offset in the section.
    pub offset: u64,
    /// ELF relocation number.
    pub kind: u32,
    /// Against what.
    pub symbol: SymIx,
    /// Constant added.
    pub addend: i64,
}

/// A symbol of an object file.
#[derive(Clone, Copy, Debug)]
pub struct Symbol<'a> {
    /// Name; empty for section symbols.
    pub name: &'a str,
    /// Where it is defined.
    pub def: Def,
    /// Size in bytes, 0 if the compiler gave none.
    pub size: u64,
    /// Whether other objects can refer to it.
    pub global: bool,
    /// Whether a definition may be missing.
    pub weak: bool,
    /// Whether it stands for its section.
    pub is_section: bool,
}

/// Where a symbol is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    /// In another object or library.
    Undefined,
    /// In a loaded section, at this offset.
    Section(SecIx, u64),
    /// A fixed value, a common symbol, or in a section that is not loaded.
    Other,
}

impl<'a> Unit<'a> {
    /// The section with this index.
    pub fn section(&self, ix: SecIx) -> &Section<'a> {
        &self.sections[ix.0 as usize]
    }

    /// The symbol with this index.
    pub fn symbol(&self, ix: SymIx) -> &Symbol<'a> {
        &self.symbols[ix.0 as usize]
    }

    /// Sections with their indices.
    pub fn enumerate(&self) -> impl Iterator<Item = (SecIx, &Section<'a>)> {
        self.sections.iter().enumerate().map(|(i, s)| (SecIx(i as u32), s))
    }

    /// File name without folders, and member: the same in two builds with different target folders.
    pub fn key(&self) -> (&str, Option<&str>) {
        (self.file.rsplit('/').next().unwrap_or(&self.file), self.member.as_deref())
    }

    /// The offset in its section that a symbol has (0 for section symbols).
    pub fn offset_of(&self, ix: SymIx) -> u64 {
        match self.symbol(ix).def {
            Def::Section(_, offset) => offset,
            _ => 0,
        }
    }
}
