//! Navigation in the debug information of one image.
//!
//! Units are opened with their root entry only; the tree of a unit is built when something in it is asked for.

use super::elf::ImageFile;
use super::impls::Renumbered;
use super::report::GuardError;
use crate::findings::Place;
use crate::source::is_foreign;
use gimli::{
    AttributeValue, DebuggingInformationEntry, Dwarf, DwarfSections, EndianSlice, LittleEndian, Unit,
    UnitOffset, constants as c,
};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;
pub(super) type Entry<'a> = DebuggingInformationEntry<Slice<'a>>;
pub(super) type Value<'a> = AttributeValue<Slice<'a>>;
pub(super) type Sections<'a> = DwarfSections<Cow<'a, [u8]>>;

/// An entry, by its offset in `.debug_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct DieId(pub(super) usize);

/// A unit and what is known about it.
pub(super) struct UnitInfo<'a> {
    pub(super) unit: Unit<Slice<'a>>,
    /// Offset of its header in `.debug_info`.
    pub(super) start: usize,
    /// Whether rustc made it.
    pub(super) rust: bool,
    tree: OnceLock<Result<Tree, gimli::Error>>,
    functions: OnceLock<Result<HashMap<u64, Vec<DieId>>, gimli::Error>>,
}

/// All entries of a unit in order, with the shape of the tree.
pub(super) struct Tree {
    dies: Vec<TreeDie>,
}

#[derive(Clone, Copy)]
struct TreeDie {
    offset: usize,
    tag: gimli::DwTag,
    parent: u32,
    /// Index after the last descendant.
    end: u32,
}

/// The debug information of an image.
pub(super) struct Debug<'a> {
    pub(super) dwarf: Dwarf<Slice<'a>>,
    pub(super) units: Vec<UnitInfo<'a>>,
    /// Address ranges (start, end, unit), by start.
    ranges: Vec<(u64, u64, usize)>,
    /// Impl blocks whose names are read with other numbers.
    pub(super) renumbered: Renumbered,
}

/// Reads and decompresses the debug sections of an image.
pub(super) fn sections<'a>(
    file: &'a ImageFile,
    elf: &object::read::elf::ElfFile64<'a, object::LittleEndian>,
) -> Result<Sections<'a>, GuardError> {
    DwarfSections::load(|id| file.section(elf, id.name()))
}

/// Debug information over sections that have been read.
pub(super) fn borrow<'a>(sections: &'a Sections<'_>) -> Dwarf<Slice<'a>> {
    sections.borrow(|section| EndianSlice::new(section, LittleEndian))
}

impl<'a> Debug<'a> {
    pub(super) fn new(sections: &'a Sections<'_>) -> gimli::Result<Self> {
        let dwarf = borrow(sections);
        let mut headers = Vec::new();
        let mut iter = dwarf.units();
        while let Some(header) = iter.next()? {
            headers.push(header);
        }
        let units: Vec<(UnitInfo<'a>, Vec<(u64, u64)>)> =
            headers.into_par_iter().map(|header| open_unit(&dwarf, header)).collect::<gimli::Result<_>>()?;
        let mut ranges = Vec::new();
        let mut opened = Vec::with_capacity(units.len());
        for (index, (unit, spans)) in units.into_iter().enumerate() {
            ranges.extend(spans.into_iter().map(|(start, end)| (start, end, index)));
            opened.push(unit);
        }
        ranges.sort_unstable();
        Ok(Self { dwarf, units: opened, ranges, renumbered: Renumbered::default() })
    }

    /// Index of the unit that holds an entry.
    pub(super) fn unit_index(&self, id: DieId) -> gimli::Result<usize> {
        let after = self.units.partition_point(|unit| unit.start <= id.0);
        after.checked_sub(1).ok_or(gimli::Error::OffsetOutOfBounds(id.0 as u64))
    }

    fn locate(&self, id: DieId) -> gimli::Result<(&UnitInfo<'a>, UnitOffset)> {
        let unit = &self.units[self.unit_index(id)?];
        Ok((unit, UnitOffset(id.0 - unit.start)))
    }

    /// Reads an entry.
    pub(super) fn entry(&self, id: DieId) -> gimli::Result<Entry<'a>> {
        let (unit, offset) = self.locate(id)?;
        unit.unit.entry(offset)
    }

    /// The entry that an attribute refers to.
    pub(super) fn reference(&self, from: DieId, value: Option<Value<'a>>) -> gimli::Result<Option<DieId>> {
        Ok(match value {
            Some(AttributeValue::UnitRef(offset)) => Some(DieId(self.locate(from)?.0.start + offset.0)),
            Some(AttributeValue::DebugInfoRef(offset)) => Some(DieId(offset.0)),
            _ => None,
        })
    }

    /// The entry that attribute `at` of `entry` refers to.
    pub(super) fn target(
        &self,
        id: DieId,
        entry: &Entry<'a>,
        at: gimli::DwAt,
    ) -> gimli::Result<Option<DieId>> {
        self.reference(id, entry.attr_value(at))
    }

    /// A string attribute.
    pub(super) fn string(&self, id: DieId, value: Option<Value<'a>>) -> gimli::Result<Option<Cow<'a, str>>> {
        let Some(value) = value else { return Ok(None) };
        let (unit, _) = self.locate(id)?;
        Ok(self.dwarf.attr_string(&unit.unit, value).ok().map(|text| text.to_string_lossy()))
    }

    /// The `DW_AT_name` of an entry itself.
    pub(super) fn name(&self, id: DieId, entry: &Entry<'a>) -> gimli::Result<Option<Cow<'a, str>>> {
        let name = self.string(id, entry.attr_value(c::DW_AT_name))?;
        Ok(name.map(|name| self.renumbered.text(name)))
    }

    /// An attribute of an entry or of the one that it completes (abstract origin, then specification), with the entry
    /// that has it.
    pub(super) fn inherited(&self, id: DieId, at: gimli::DwAt) -> gimli::Result<Option<(DieId, Value<'a>)>> {
        for (id, entry) in self.origins(id)? {
            if let Some(value) = entry.attr_value(at) {
                return Ok(Some((id, value)));
            }
        }
        Ok(None)
    }

    /// An entry followed by those that it completes: abstract origins and specifications.
    pub(super) fn origins(&self, id: DieId) -> gimli::Result<Vec<(DieId, Entry<'a>)>> {
        const LONGEST: usize = 8;
        let mut chain = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next.filter(|_| chain.len() < LONGEST) {
            let entry = self.entry(id)?;
            next = self.target(id, &entry, c::DW_AT_abstract_origin)?;
            if next.is_none() {
                next = self.target(id, &entry, c::DW_AT_specification)?;
            }
            chain.push((id, entry));
        }
        Ok(chain)
    }

    /// The type of an entry, its own or inherited; `None` stands for `()` or `void`.
    pub(super) fn type_of(&self, id: DieId) -> gimli::Result<Option<DieId>> {
        match self.inherited(id, c::DW_AT_type)? {
            Some((owner, value)) => self.reference(owner, Some(value)),
            None => Ok(None),
        }
    }

    /// Where an entry is declared.
    pub(super) fn place(&self, id: DieId) -> gimli::Result<Option<Place>> {
        let Some((_, line)) = self.inherited(id, c::DW_AT_decl_line)? else { return Ok(None) };
        let Some((owner, file)) = self.inherited(id, c::DW_AT_decl_file)? else { return Ok(None) };
        let file = match file {
            AttributeValue::FileIndex(index) => Some(index),
            other => other.udata_value(),
        };
        let (Some(line), Some(file)) = (line.udata_value(), file) else { return Ok(None) };
        let (unit, _) = self.locate(owner)?;
        Ok(self.file_name(&unit.unit, file).map(|file| Place { file, line: line as u32 }))
    }

    fn file_name(&self, unit: &Unit<Slice<'a>>, index: u64) -> Option<String> {
        let header = unit.line_program.as_ref()?.header();
        let file = header.file(index)?;
        let text =
            |value| self.dwarf.attr_string(unit, value).ok().map(|text| text.to_string_lossy().into_owned());
        let name = text(file.path_name())?;
        if name.starts_with('/') {
            return Some(name);
        }
        // Directory 0 is where the compiler ran: a path relative to it is what a person expects to read, except of code that is
        // nobody's to change.
        let directory = file.directory(header).and_then(text).filter(|_| file.directory_index() != 0);
        let path = directory.map_or(name.clone(), |directory| format!("{directory}/{name}"));
        let ran_in = unit.comp_dir.map(|directory| directory.to_string_lossy().into_owned());
        match ran_in.filter(|ran_in| !path.starts_with('/') && is_foreign(&format!("{ran_in}/"))) {
            Some(ran_in) => Some(format!("{ran_in}/{path}")),
            None => Some(path),
        }
    }

    /// The tree of a unit.
    pub(super) fn tree(&self, unit: usize) -> gimli::Result<&Tree> {
        let info = &self.units[unit];
        info.tree.get_or_init(|| build_tree(&info.unit)).as_ref().map_err(|error| *error)
    }

    /// Direct children of an entry, with their tags.
    pub(super) fn children(&self, id: DieId) -> gimli::Result<Vec<(DieId, gimli::DwTag)>> {
        let unit = self.unit_index(id)?;
        let (tree, start) = (self.tree(unit)?, self.units[unit].start);
        let Some(index) = tree.index(id.0 - start) else { return Ok(Vec::new()) };
        let mut children = Vec::new();
        let mut next = index + 1;
        while next < tree.dies[index].end as usize {
            children.push((DieId(start + tree.dies[next].offset), tree.dies[next].tag));
            next = tree.dies[next].end as usize;
        }
        Ok(children)
    }

    /// All descendants of an entry in order, with their tags.
    pub(super) fn descendants(&self, id: DieId) -> gimli::Result<Vec<(DieId, gimli::DwTag)>> {
        let unit = self.unit_index(id)?;
        let (tree, start) = (self.tree(unit)?, self.units[unit].start);
        let Some(index) = tree.index(id.0 - start) else { return Ok(Vec::new()) };
        let dies = &tree.dies[index + 1..tree.dies[index].end as usize];
        Ok(dies.iter().map(|die| (DieId(start + die.offset), die.tag)).collect())
    }

    fn parent(&self, id: DieId) -> gimli::Result<Option<(DieId, gimli::DwTag)>> {
        let unit = self.unit_index(id)?;
        let (tree, start) = (self.tree(unit)?, self.units[unit].start);
        let Some(index) = tree.index(id.0 - start).filter(|index| *index != 0) else { return Ok(None) };
        let parent = &tree.dies[tree.dies[index].parent as usize];
        Ok(Some((DieId(start + parent.offset), parent.tag)))
    }

    /// The names of the namespaces and types around an entry, joined by `::`.
    pub(super) fn scope(&self, id: DieId) -> gimli::Result<String> {
        let mut names = Vec::new();
        let mut at = id;
        while let Some((parent, tag)) = self.parent(at)? {
            if is_scope(tag) {
                let declared = self.origins(parent)?;
                let (owner, entry) = declared.last().expect("an entry is its own origin");
                names.push(self.name(*owner, entry)?.unwrap_or(Cow::Borrowed("{unnamed}")));
            }
            at = parent;
        }
        names.reverse();
        self.renumbered.segments(&mut names);
        Ok(names.join("::"))
    }

    /// The path of the type that an entry is a child of.
    pub(super) fn type_around(&self, id: DieId) -> gimli::Result<Option<String>> {
        match self.parent(id)? {
            Some((_, tag)) if is_scope(tag) && !is_plain_scope(tag) => self.scope(id).map(Some),
            _ => Ok(None),
        }
    }

    /// The path of an item: its scope and its name, those of its declaration where it has one apart.
    pub(super) fn path(&self, id: DieId) -> gimli::Result<Option<String>> {
        let declared = self.origins(id)?;
        let (owner, entry) = declared.last().expect("an entry is its own origin");
        let Some(name) = self.name(*owner, entry)? else { return Ok(None) };
        let scope = self.scope(*owner)?;
        Ok(Some(if scope.is_empty() { name.into_owned() } else { format!("{scope}::{name}") }))
    }

    /// The out-of-line functions that begin at `addr`.
    pub(super) fn functions_at(&self, addr: u64) -> gimli::Result<Vec<DieId>> {
        let mut found = Vec::new();
        let end = self.ranges.partition_point(|(start, ..)| *start <= addr);
        let mut units: Vec<usize> =
            self.ranges[..end].iter().filter(|(_, end, _)| addr < *end).map(|(.., unit)| *unit).collect();
        units.sort_unstable();
        units.dedup();
        for unit in units {
            let info = &self.units[unit];
            let functions =
                info.functions.get_or_init(|| self.index_functions(unit)).as_ref().map_err(|error| *error)?;
            found.extend(functions.get(&addr).into_iter().flatten());
        }
        Ok(found)
    }

    fn index_functions(&self, unit: usize) -> gimli::Result<HashMap<u64, Vec<DieId>>> {
        let info = &self.units[unit];
        let mut functions: HashMap<u64, Vec<DieId>> = HashMap::new();
        for die in self.tree(unit)?.dies.iter().filter(|die| die.tag == c::DW_TAG_subprogram) {
            let entry = info.unit.entry(UnitOffset(die.offset))?;
            if let Some(range) = self.dwarf.die_ranges(&info.unit, &entry)?.next()? {
                functions.entry(range.begin).or_default().push(DieId(info.start + die.offset));
            }
        }
        Ok(functions)
    }
}

impl Tree {
    fn index(&self, offset: usize) -> Option<usize> {
        self.dies.binary_search_by_key(&offset, |die| die.offset).ok()
    }
}

/// Whether entries of this kind give a name to what is inside them.
pub(super) fn is_scope(tag: gimli::DwTag) -> bool {
    matches!(
        tag,
        c::DW_TAG_namespace
            | c::DW_TAG_module
            | c::DW_TAG_structure_type
            | c::DW_TAG_class_type
            | c::DW_TAG_union_type
            | c::DW_TAG_enumeration_type
            | c::DW_TAG_subprogram
    )
}

/// Whether entries of this kind are no types.
fn is_plain_scope(tag: gimli::DwTag) -> bool {
    matches!(tag, c::DW_TAG_namespace | c::DW_TAG_module | c::DW_TAG_subprogram)
}

type Opened<'a> = (UnitInfo<'a>, Vec<(u64, u64)>);

fn open_unit<'a>(
    dwarf: &Dwarf<Slice<'a>>,
    header: gimli::UnitHeader<Slice<'a>>,
) -> gimli::Result<Opened<'a>> {
    let start = header.debug_info_offset().map_or(0, |offset| offset.0);
    let unit = dwarf.unit(header)?;
    let root = unit.entry(unit.header.root_offset())?;
    let rust = root.attr_value(c::DW_AT_language) == Some(AttributeValue::Language(c::DW_LANG_Rust));
    let mut spans = Vec::new();
    let mut ranges = dwarf.unit_ranges(&unit)?;
    while let Some(range) = ranges.next()? {
        // Ranges of discarded functions start at 0 or at a tombstone.
        if range.begin != 0 && range.begin < range.end {
            spans.push((range.begin, range.end));
        }
    }
    Ok((UnitInfo { unit, start, rust, tree: OnceLock::new(), functions: OnceLock::new() }, spans))
}

fn build_tree(unit: &Unit<Slice<'_>>) -> gimli::Result<Tree> {
    let mut dies: Vec<TreeDie> = Vec::new();
    let mut open: Vec<u32> = Vec::new();
    let mut entries = unit.entries_raw(None)?;
    while !entries.is_empty() {
        let offset = entries.next_offset().0;
        let Some(abbrev) = entries.read_abbreviation()? else {
            if let Some(closed) = open.pop() {
                dies[closed as usize].end = dies.len() as u32;
            }
            continue;
        };
        entries.skip_attributes(abbrev.attributes())?;
        let index = dies.len() as u32;
        let parent = open.last().copied().unwrap_or(0);
        dies.push(TreeDie { offset, tag: abbrev.tag(), parent, end: index + 1 });
        if abbrev.has_children() {
            open.push(index);
        }
    }
    let all = dies.len() as u32;
    for index in open {
        dies[index as usize].end = all;
    }
    Ok(Tree { dies })
}
