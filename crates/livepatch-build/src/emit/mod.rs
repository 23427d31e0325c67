//! From a [`Diff`] to a [`Patch`]: what goes in, and what everything else is bound to.
//!
//! Changed functions go in, and what they refer to and the image does not have, recursively. Everything else is bound:
//!
//! | reference from patched code to | becomes |
//! |---|---|
//! | a function that the patch replaces, called | the patch's own code |
//! | a function that the patch replaces, its address taken | the baseline's address, so that rollback reaches it |
//! | an unchanged function | the baseline's |
//! | a static or thread-local of the baseline | the running instance |
//! | a constant without a name | a copy in the patch, unless it is known which of the running ones it is |
//! | a symbol of another library | the GOT slot of the image, or a lookup at `apply` |

mod bind;
mod frames;
mod tls;

use crate::diff::compare::{self, Ends, Ref, entry, is_call, is_relative, location_file, reference};
use crate::diff::names::is_anonymous;
use crate::diff::program::At;
use crate::diff::{Diff, DiffError};
use crate::image::{ImageSymbol, Import};
use crate::objects::{Kind, Merge, Reloc as ObjReloc, SymIx};
use bind::{Bound, binding};
use livepatch_patch::*;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Why a patch could not be made of a diff.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// See there.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// In a shared object: one base serves new thread-locals and those of the image.
    #[error("{function} uses new and existing thread-locals of a shared object together")]
    MixedThreadLocals {
        /// The function.
        function: String,
    },
    /// Something that a patch cannot carry.
    #[error("{function}: {what}")]
    Unsupported {
        /// Where it occurs.
        function: String,
        /// What it is, and what to do.
        what: String,
    },
}

/// A function of the image that is to enter new code.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// The running code.
    pub old: At,
    /// The new code.
    pub new: At,
    /// Offset of the first difference.
    pub first: u64,
    /// Symbol of the new code in the patch.
    pub symbol: SymbolId,
}

/// Something the patch brings in.
#[derive(Clone, Debug)]
pub struct Brought {
    /// Its section in the new program.
    pub at: At,
    /// Its symbol in the patch.
    pub symbol: SymbolId,
    /// What it is.
    pub kind: NewItemKind,
}

/// A patch without its header, and what is needed to judge it and to describe it.
#[derive(Debug)]
pub struct Emitted {
    /// Contents.
    pub sections: Vec<Section>,
    /// Names.
    pub symbols: Vec<Symbol>,
    /// Replaced functions.
    pub replaced: Vec<Replaced>,
    /// New functions, statics, thread-locals.
    pub brought: Vec<Brought>,
    /// Variables of the image that the patch refers to (old, new).
    pub shared: Vec<(At, At)>,
    /// Names of such variables whose objects did not change.
    pub shared_external: Vec<String>,
    /// Named constants of the image that come with another value.
    pub constants: Vec<(At, SymbolId)>,
}

impl Emitted {
    /// Whether a symbol is of a function in the patch.
    pub fn is_code(&self, symbol: &Symbol) -> bool {
        match symbol.place {
            Place::Section { section, .. } => self.sections[section.0 as usize].kind == SectionKind::Text,
            _ => false,
        }
    }
}

/// A piece of the new program that the patch carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Item {
    Section(At),
    /// One entry of a mergeable section: start and length.
    Entry(At, u64, u64),
}

/// A symbol of the patch before it has a number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Own(Item),
    Outside(String, Place),
}

struct Emitter<'d, 'a> {
    diff: &'d mut Diff<'a>,
    changed: HashSet<At>,
    sections: Vec<Section>,
    symbols: Vec<Symbol>,
    numbers: HashMap<Key, SymbolId>,
    work: Vec<(Item, SectionId)>,
    brought: Vec<Brought>,
    shared: BTreeMap<At, At>,
    shared_external: HashSet<String>,
    ends: Ends,
}

/// Selects and binds.
///
/// # Errors
/// The change needs something that a patch cannot carry; the message names it.
pub fn emit(diff: &mut Diff<'_>) -> Result<Emitted, EmitError> {
    diff.anchor();
    let changed: Vec<_> = diff.changed.clone();
    let mut emitter = Emitter {
        changed: changed.iter().map(|c| c.new).collect(),
        diff,
        sections: Vec::new(),
        symbols: Vec::new(),
        numbers: HashMap::new(),
        work: Vec::new(),
        brought: Vec::new(),
        shared: BTreeMap::new(),
        shared_external: HashSet::new(),
        ends: Ends::new(),
    };
    let mut replaced = Vec::new();
    for change in changed {
        let symbol = emitter.own(Item::Section(change.new));
        replaced.push(Replaced { old: change.old, new: change.new, first: change.first, symbol });
    }
    while let Some((item, section)) = emitter.work.pop() {
        emitter.fill(item, section)?;
    }
    emitter.frames()?;
    let constants = emitter.constants();
    let mut shared_external: Vec<_> = emitter.shared_external.into_iter().collect();
    shared_external.sort();
    Ok(Emitted {
        sections: emitter.sections,
        symbols: emitter.symbols,
        replaced,
        brought: emitter.brought,
        shared: emitter.shared.into_iter().map(|(new, old)| (old, new)).collect(),
        shared_external,
        constants,
    })
}

impl<'a> Emitter<'_, 'a> {
    fn number(&mut self, key: Key, symbol: Symbol) -> SymbolId {
        let next = SymbolId(self.symbols.len() as u32);
        let id = *self.numbers.entry(key).or_insert(next);
        if id == next {
            self.symbols.push(symbol);
        }
        id
    }

    /// The symbol of a piece that the patch carries; takes it in on first use.
    fn own(&mut self, item: Item) -> SymbolId {
        if let Some(id) = self.numbers.get(&Key::Own(item)) {
            return *id;
        }
        let section_id = SectionId(self.sections.len() as u32);
        let (section, name, size) = self.skeleton(item);
        let kind = section.kind;
        self.sections.push(section);
        let place = Place::Section { section: section_id, offset: 0, size };
        let id = self.number(Key::Own(item), Symbol { name, place });
        self.work.push((item, section_id));
        let new_kind = match kind {
            SectionKind::Text => Some(NewItemKind::Function),
            SectionKind::Data | SectionKind::Bss => Some(NewItemKind::Static),
            SectionKind::TlsData | SectionKind::TlsBss => Some(NewItemKind::ThreadLocal),
            SectionKind::ReadOnly | SectionKind::EhFrame => None,
        };
        if let (Item::Section(at), Some(kind)) = (item, new_kind)
            && !self.changed.contains(&at)
        {
            self.brought.push(Brought { at, symbol: id, kind });
        }
        id
    }

    /// Carried constants that have a name and that the image has, too.
    fn constants(&self) -> Vec<(At, SymbolId)> {
        let constant = |(key, id): (&Key, &SymbolId)| {
            let Key::Own(Item::Section(at)) = key else { return None };
            let is_one =
                self.diff.new.section(*at).kind == Kind::ReadOnly && self.diff.partners.contains_key(at);
            is_one.then_some((*at, *id))
        };
        let mut found: Vec<_> = self.numbers.iter().filter_map(constant).collect();
        found.sort_by_key(|(_, id)| *id);
        found
    }

    /// A section without contents yet, the name of what it holds, and that thing's size.
    fn skeleton(&self, item: Item) -> (Section, String, u64) {
        let (Item::Section(at) | Item::Entry(at, ..)) = item;
        let unit = self.diff.new.unit(at);
        let section = unit.section(at.section);
        let kind = match section.kind {
            Kind::Text => SectionKind::Text,
            Kind::ReadOnly | Kind::Special => SectionKind::ReadOnly,
            Kind::Data => SectionKind::Data,
            Kind::Bss => SectionKind::Bss,
            Kind::TlsData => SectionKind::TlsData,
            Kind::TlsBss => SectionKind::TlsBss,
        };
        let (size, name) = match item {
            Item::Entry(_, start, size) => (size, format!("{}+{start:#x}", section.name)),
            Item::Section(_) => (section.size, name_of(&self.diff.new, at).to_owned()),
        };
        let is_location = matches!(item, Item::Section(_)) && location_file(&self.diff.new, at).is_some();
        let out = Section {
            name: if is_location { LOCATION } else { section.name }.to_owned(),
            kind,
            align: section.align.min(4096),
            bytes: Vec::new(),
            size,
            relocs: Vec::new(),
        };
        (out, name, size)
    }

    /// Fills in contents and relocations of a piece, taking in what they need.
    fn fill(&mut self, item: Item, id: SectionId) -> Result<(), EmitError> {
        let (Item::Section(at) | Item::Entry(at, ..)) = item;
        let (bytes, relocs) = {
            let section = self.diff.new.section(at);
            match item {
                Item::Section(_) => (section.bytes.to_vec(), section.relocs.clone()),
                Item::Entry(_, start, size) => {
                    (section.bytes[start as usize..(start + size) as usize].to_vec(), Vec::new())
                }
            }
        };
        let mut out = Vec::with_capacity(relocs.len());
        let mut bytes = bytes;
        let relaxed = tls::relax(self.diff.old.image.kind, &mut bytes, &relocs)
            .map_err(|what| self.unsupported(at, what))?;
        for reloc in &relaxed {
            let call = is_call(&bytes, reloc);
            out.push(self.reloc(at, reloc, call)?);
        }
        if self.diff.old.image.kind == ImageKind::SharedObject && tls::mixes_modules(&out, &self.symbols) {
            let function = crate::guard::demangle(name_of(&self.diff.new, at));
            return Err(EmitError::MixedThreadLocals { function });
        }
        let section = &mut self.sections[id.0 as usize];
        section.bytes = bytes;
        section.relocs = out;
        Ok(())
    }

    /// One relocation of a carried section.
    fn reloc(&mut self, at: At, reloc: &ObjReloc, call: bool) -> Result<Reloc, EmitError> {
        let kind = RelocKind::from_elf(reloc.kind)
            .ok_or_else(|| self.unsupported(at, format!("relocation type {} is not known", reloc.kind)))?;
        let (symbol, addend) = self.bind(at, reloc, call)?;
        Ok(Reloc { offset: reloc.offset, kind, symbol, addend })
    }

    fn bind(&mut self, at: At, reloc: &ObjReloc, call: bool) -> Result<(SymbolId, i64), EmitError> {
        match reference(&self.diff.new, at.unit, reloc) {
            Ref::Constant { at: target, offset } => Ok(self.bind_constant(at, reloc, target, offset)),
            Ref::Named { name, delta, at: target } => {
                let raw = self.raw_name(at, reloc.symbol).unwrap_or(name);
                let call = call || !self.takes_entry(at, reloc, delta);
                let bound = binding(self.diff, &self.changed, raw, target, call)
                    .map_err(|what| self.unsupported(at, what))?;
                let base = target.map_or(0, |target| self.base_of(target, raw, name));
                match bound {
                    Bound::Own(target) => Ok((self.own(Item::Section(target)), delta + base)),
                    Bound::Image { place, shared } => {
                        match (shared, target) {
                            (Some((old, new)), _) => drop(self.shared.insert(new, old)),
                            (None, _) => self.note_external(raw),
                        }
                        let base = if shared.is_some() || target.is_some() { base } else { 0 };
                        let symbol = Symbol { name: raw.to_owned(), place };
                        Ok((self.number(Key::Outside(raw.to_owned(), place), symbol), delta + base))
                    }
                    Bound::Import(Import { got, weak }) => {
                        let place = Place::Import { got, weak };
                        let symbol = Symbol { name: raw.to_owned(), place };
                        Ok((self.number(Key::Outside(raw.to_owned(), place), symbol), delta))
                    }
                }
            }
        }
    }

    /// Whether a reference that is no call takes the address of a function as a whole. References into a function (jump
    /// tables, labels) belong to that very code.
    fn takes_entry(&mut self, at: At, reloc: &ObjReloc, delta: i64) -> bool {
        let in_code = self.diff.new.section(at).kind == Kind::Text;
        match is_relative(reloc.kind) {
            true => in_code && delta + self.skew(at, reloc) == 0,
            false => delta == 0,
        }
    }

    /// Variables reached by a name whose object did not change: the guard wants to know them. A constant without a
    /// lasting name, which link-time optimisation lets other code units see, is the same bytes in the new build. The ends of a section,
    /// by which the linker lets a list be found that is collected from all objects, are no variables; that list is compared itself.
    fn note_external(&mut self, name: &str) {
        if name.starts_with("__start_") || name.starts_with("__stop_") {
            return;
        }
        let is_variable =
            |symbol: &ImageSymbol| !(symbol.code || symbol.constant && is_anonymous(name, true));
        if self.diff.old.image.symbols(name).iter().any(is_variable) {
            self.shared_external.insert(name.to_owned());
        }
    }

    /// Offset in its section of the symbol that a name means there.
    fn base_of(&self, target: At, raw: &str, name: &str) -> i64 {
        let unit = self.diff.new.unit(target);
        let symbols = &unit.section(target.section).symbols;
        let by = |wanted: &dyn Fn(&str) -> bool| symbols.iter().find(|ix| wanted(unit.symbol(**ix).name));
        let found = by(&|n| n == raw).or_else(|| by(&|n| self.diff.new.key(n) == name));
        found.map_or(0, |ix| unit.offset_of(*ix) as i64)
    }

    /// The name that a reference really uses, or for one through a section symbol the name of what lies there.
    fn raw_name(&self, at: At, symbol: SymIx) -> Option<&'a str> {
        let unit = self.diff.new.unit(at);
        let symbol = unit.symbol(symbol);
        if !symbol.is_section && !symbol.name.is_empty() {
            return Some(symbol.name);
        }
        match symbol.def {
            crate::objects::Def::Section(section, _) => {
                let first = unit.section(section).symbols.first()?;
                Some(unit.symbol(*first).name)
            }
            _ => None,
        }
    }

    fn bind_constant(&mut self, at: At, reloc: &ObjReloc, target: At, offset: i64) -> (SymbolId, i64) {
        let section = self.diff.new.section(target);
        if let Some(merge) = section.merge {
            let skew = self.skew(at, reloc);
            let section = self.diff.new.section(target);
            if let Some((start, bytes)) = entry(section, merge, offset + skew) {
                let size = bytes.len() as u64;
                // A string's tail keeps the alignment of nothing; fixed entries keep that of their section.
                let id = self.own(Item::Entry(target, start, size));
                if matches!(merge, Merge::Strings(width) if width == 1)
                    && let Place::Section { section, .. } = self.symbols[id.0 as usize].place
                {
                    self.sections[section.0 as usize].align = 1;
                }
                return (id, offset - start as i64);
            }
        }
        let running = match self.diff.twins.get(&target) {
            Some(old) => self.diff.old.addr(*old),
            None if self.diff.new.is_shared(target) => bind::addr_in_old(self.diff, target),
            None => None,
        };
        if let Some(addr) = running {
            let name = format!("{}@{addr}", self.diff.new.section(target).name);
            let place = Place::Image { addr, size: self.diff.new.section(target).size };
            return (self.number(Key::Outside(name.clone(), place), Symbol { name, place }), offset);
        }
        (self.own(Item::Section(target)), offset)
    }

    fn skew(&mut self, at: At, reloc: &ObjReloc) -> i64 {
        compare::skew(&self.diff.new, at, reloc, &mut self.ends)
    }

    fn unsupported(&self, at: At, what: String) -> EmitError {
        EmitError::Unsupported { function: crate::guard::demangle(name_of(&self.diff.new, at)), what }
    }
}

/// The name of what a section holds: its first global symbol, else its first symbol, else its own name.
pub fn name_of<'a>(program: &crate::diff::program::Program<'a>, at: At) -> &'a str {
    let unit = program.unit(at);
    let section = unit.section(at.section);
    let global = section.symbols.iter().find(|ix| unit.symbol(**ix).global);
    global.or(section.symbols.first()).map_or(section.name, |ix| unit.symbol(*ix).name)
}
