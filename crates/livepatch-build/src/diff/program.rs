//! One linked program: its objects, where their sections lie in the image, and what its names mean.

use super::DiffError;
use super::names::normalise;
use crate::build::Build;
use crate::image::Image;
use crate::linkmap::PlacedSection;
use crate::objects::{Def, Inputs, SecIx, Section, SymIx, Unit};
use crate::source;
use livepatch_patch::LinkAddr;
use std::collections::{HashMap, HashSet};

/// A section of one of the program's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// Index in [`Program::units`].
    pub unit: u32,
    /// The section.
    pub section: SecIx,
}

/// What a reference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A place in a section of a loaded unit.
    Place {
        /// The section.
        at: At,
        /// Offset in it, the relocation's addend included.
        offset: i64,
        /// The name used, if the reference is by name.
        name: Option<&'a str>,
    },
    /// A name that no loaded unit defines.
    External {
        /// The name.
        name: &'a str,
        /// The relocation's addend.
        addend: i64,
        /// Whether a definition may be missing.
        weak: bool,
    },
}

/// Where the linker put the sections of each object.
#[derive(Debug, Default)]
struct Placements<'a> {
    by_key: HashMap<(&'a str, Option<&'a str>, &'a str), Vec<&'a PlacedSection>>,
    by_addr: Vec<&'a PlacedSection>,
}

/// One linked program.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its linked image.
    pub image: &'a Image,
    /// Objects loaded so far.
    pub units: Vec<Unit<'a>>,
    placed: Vec<Vec<Option<LinkAddr>>>,
    placements: Placements<'a>,
    globals: HashMap<&'a str, (u32, SymIx)>,
    inputs: &'a Inputs,
    /// Names of symbols by which the other program has the same under another name, and those other names.
    aliases: HashMap<&'a str, &'a str>,
    /// Units from here on were loaded on demand: both builds have them.
    on_demand: usize,
    /// Names of the program's own source files; empty if they are not known.
    files: HashSet<&'a str>,
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl<'a> Placements<'a> {
    fn new(sections: &'a [PlacedSection]) -> Result<Self, DiffError> {
        let mut this = Self::default();
        for placed in sections {
            let key = (file_name(&placed.file), placed.member.as_deref(), placed.section.as_str());
            let list = this.by_key.entry(key).or_default();
            if list.first().is_some_and(|first| first.file != placed.file) {
                return Err(DiffError::SameName(list[0].file.to_string(), placed.file.to_string()));
            }
            list.push(placed);
            this.by_addr.push(placed);
        }
        this.by_addr.sort_by_key(|placed| placed.addr);
        Ok(this)
    }

    fn of_unit<'u>(&self, unit: &'u Unit<'_>) -> Vec<Option<LinkAddr>> {
        let (file, member) = unit.key();
        let mut used: HashMap<&'u str, usize> = HashMap::new();
        let mut place = |section: &'u Section<'_>| {
            if section.merged {
                return None;
            }
            let list = self.by_key.get(&(file, member, section.name))?;
            let next = used.entry(section.name).or_default();
            // Discarded sections are missing from the map, so among several of one name the size decides.
            let found = list.iter().skip(*next).position(|placed| placed.size == section.size)?;
            *next += found + 1;
            Some(list[*next - 1].addr)
        };
        unit.sections.iter().map(&mut place).collect()
    }
}

impl<'a> Program<'a> {
    /// A program with these of its units loaded.
    ///
    /// # Errors
    /// Two inputs of the link have the same file name.
    pub fn new(
        build: &'a Build,
        image: &'a Image,
        inputs: &'a Inputs,
        units: Vec<Unit<'a>>,
    ) -> Result<Self, DiffError> {
        let placements = Placements::new(build.map.sections())?;
        Ok(Self::with(placements, build, (image, inputs), units))
    }

    /// A program of objects that are no part of the image: nothing of it has an address.
    pub(super) fn unplaced(
        build: &'a Build,
        image: &'a Image,
        inputs: &'a Inputs,
        units: Vec<Unit<'a>>,
    ) -> Self {
        Self::with(Placements::default(), build, (image, inputs), units)
    }

    fn with(
        placements: Placements<'a>,
        build: &'a Build,
        (image, inputs): (&'a Image, &'a Inputs),
        units: Vec<Unit<'a>>,
    ) -> Self {
        let mut program = Self {
            image,
            units: Vec::new(),
            placed: Vec::new(),
            placements,
            globals: HashMap::new(),
            inputs,
            aliases: HashMap::new(),
            on_demand: units.len(),
            files: build.sources.iter().map(|(path, _)| file_name(path)).collect(),
        };
        for unit in units {
            program.add(unit);
        }
        program
    }

    fn add(&mut self, unit: Unit<'a>) -> u32 {
        let index = self.units.len() as u32;
        let placed = self.placements.of_unit(&unit);
        for (i, symbol) in unit.symbols.iter().enumerate() {
            if let Def::Section(section, _) = symbol.def
                && symbol.global
                && !symbol.is_section
            {
                let entry = self.globals.entry(symbol.name).or_insert((index, SymIx(i as u32)));
                // Of several weak or COMDAT definitions the linker keeps one: the one that it placed.
                let kept = self.placed.get(entry.0 as usize).is_none_or(|placed| {
                    match self.units[entry.0 as usize].symbol(entry.1).def {
                        Def::Section(old, _) => placed[old.0 as usize].is_some(),
                        _ => false,
                    }
                });
                if !kept && placed[section.0 as usize].is_some() {
                    *entry = (index, SymIx(i as u32));
                }
            }
        }
        self.units.push(unit);
        self.placed.push(placed);
        index
    }

    /// Has symbols read under the names that they have in the other program.
    pub(super) fn set_aliases(&mut self, aliases: HashMap<&'a str, &'a str>) {
        self.aliases = aliases;
    }

    /// Old and new names of what has another one in this program.
    pub(crate) fn renamed(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.aliases.iter().map(|(new, old)| (*old, *new))
    }

    /// The name that two programs are compared by: without what the compiler made up for this build.
    pub fn key(&self, symbol: &'a str) -> &'a str {
        let name = normalise(symbol);
        self.aliases.get(name).copied().unwrap_or(name)
    }

    /// Whether a path can be that of a source file: one of the program's own, of a library, or made by a build script.
    pub fn may_be_source(&self, path: &str) -> bool {
        path.ends_with(".rs")
            && (self.files.is_empty()
                || path.starts_with('/')
                || source::is_foreign(path)
                || self.files.contains(file_name(path)))
    }

    /// The unit of a place.
    pub fn unit(&self, at: At) -> &Unit<'a> {
        &self.units[at.unit as usize]
    }

    /// Whether the object was loaded on demand, which means that the other build has the very same one.
    pub fn is_shared(&self, at: At) -> bool {
        at.unit as usize >= self.on_demand
    }

    /// The section of a place.
    pub fn section(&self, at: At) -> &Section<'a> {
        self.unit(at).section(at.section)
    }

    /// Where the linker put a section; `None` if it was discarded or merged with others.
    pub fn addr(&self, at: At) -> Option<LinkAddr> {
        self.placed[at.unit as usize][at.section.0 as usize]
    }

    /// All sections of the loaded units.
    pub fn all(&self) -> impl Iterator<Item = (At, &Section<'a>)> {
        self.units.iter().enumerate().flat_map(|(unit, u)| {
            u.enumerate().map(move |(section, s)| (At { unit: unit as u32, section }, s))
        })
    }

    /// What a relocation of a unit refers to.
    pub fn target(&self, unit: u32, symbol: SymIx, addend: i64) -> Target<'a> {
        let sym = *self.units[unit as usize].symbol(symbol);
        let name = (!sym.is_section && !sym.name.is_empty()).then_some(sym.name);
        match sym.def {
            Def::Section(section, offset) => {
                Target::Place { at: At { unit, section }, offset: offset as i64 + addend, name }
            }
            _ => match self.globals.get(sym.name) {
                Some(&(unit, ix)) => self.target(unit, ix, addend),
                None => Target::External { name: sym.name, addend, weak: sym.weak },
            },
        }
    }

    /// Loads the unit that defines a name, if the program has a definition; its target then.
    ///
    /// # Errors
    /// The object cannot be read.
    pub fn load_definition(&mut self, name: &str) -> Result<Option<(u32, SymIx)>, DiffError> {
        if let Some(found) = self.globals.get(name) {
            return Ok(Some(*found));
        }
        for symbol in self.image.symbols(name) {
            let addr = match (symbol.tls, self.image.tls) {
                (true, Some(tls)) => LinkAddr(tls.addr.0 + symbol.value),
                _ => LinkAddr(symbol.value),
            };
            let Some(placed) = self.placed_at(addr, symbol.tls) else { continue };
            let (file, member) = (placed.file.clone(), placed.member.clone());
            let Some(unit) = self.inputs.unit(&file, member.as_deref())? else { continue };
            if self.units.iter().any(|known| known.key() == unit.key()) {
                continue;
            }
            self.add(unit);
            if let Some(found) = self.globals.get(name) {
                return Ok(Some(*found));
            }
        }
        Ok(None)
    }

    fn placed_at(&self, addr: LinkAddr, tls: bool) -> Option<&'a PlacedSection> {
        let list = &self.placements.by_addr;
        let end = list.partition_point(|placed| placed.addr <= addr);
        // Zero-filled thread-locals take no room: they share their addresses with what follows them.
        let is_tls = |name: &str| name.starts_with(".tbss") || name.starts_with(".tdata");
        let covers = |p: &&&PlacedSection| is_tls(&p.section) == tls && addr.0 < p.addr.0 + p.size.max(1);
        list[..end].iter().rev().take(4096).find(covers).copied()
    }

    /// Where the section of the same object, name and size lies in this program: for objects that two builds share.
    pub fn addr_of_equal(&self, unit: &Unit<'_>, section: SecIx) -> Option<LinkAddr> {
        self.placements.of_unit(unit)[section.0 as usize]
    }

    /// Bytes from `addr` to where the next placed section begins.
    pub fn room(&self, addr: LinkAddr) -> Option<u64> {
        let list = &self.placements.by_addr;
        let next = list.partition_point(|placed| placed.addr <= addr);
        list.get(next).map(|placed| placed.addr.0 - addr.0)
    }
}
