//! One pass over all units of an image for what is not found from the changed functions: statics by place, vtables, the
//! closures of some functions, and types by name.

use super::dwarf::{Debug, DieId, Slice, UnitInfo, Value, is_scope};
use super::impls::{self, Blocks, Inside};
use super::input::StaticPlace;
use gimli::{AttributeValue, EntriesRaw, Section, constants as c};
use livepatch_patch::LinkAddr;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

/// What to look for.
#[derive(Default)]
pub(super) struct Wanted {
    /// Variables at these places.
    pub(super) statics: HashSet<StaticPlace>,
    /// Closures and async blocks directly inside these paths.
    pub(super) parents: HashSet<String>,
    /// Variables with these symbols.
    pub(super) symbols: HashSet<String>,
    /// Impl blocks of these crates.
    pub(super) blocks_of: HashSet<String>,
    /// Types with these last names.
    pub(super) types: HashSet<String>,
    /// All vtables.
    pub(super) vtables: bool,
}

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    /// Several entries may name one place (variables without size).
    pub(super) statics: BTreeMap<StaticPlace, Vec<Described>>,
    /// Symbols and entries of the variables that are wanted by their symbol.
    pub(super) variables: Vec<(String, DieId)>,
    /// Parent and labels such as `closure#0`.
    pub(super) closures: BTreeMap<String, BTreeSet<String>>,
    /// Parent, label and type of the same closures.
    pub(super) closure_types: Vec<(String, String, DieId)>,
    pub(super) blocks: Blocks,
    pub(super) types: Vec<DieId>,
    pub(super) vtables: Vec<DieId>,
    /// Crates (as far as unit names tell) of which some unit describes types.
    pub(super) typed: BTreeSet<String>,
}

/// A variable that lies at a place, or a part of it.
#[derive(Clone)]
pub(super) struct Described {
    pub(super) id: DieId,
    /// Where the part lies in the variable, in bits, if the optimiser took it apart.
    pub(super) part: Option<Range<u64>>,
}

/// Scans an image.
pub(super) fn scan(debug: &Debug<'_>, wanted: &Wanted) -> gimli::Result<Found> {
    debug
        .units
        .par_iter()
        .map(|unit| UnitScan::run(debug, unit, wanted))
        .try_reduce(Found::default, |a, b| Ok(a.merge(b)))
}

impl Found {
    fn merge(mut self, other: Self) -> Self {
        for (place, ids) in other.statics {
            self.statics.entry(place).or_default().extend(ids);
        }
        self.variables.extend(other.variables);
        for (block, functions) in other.blocks {
            self.blocks.entry(block).or_default().extend(functions);
        }
        for (parent, labels) in other.closures {
            self.closures.entry(parent).or_default().extend(labels);
        }
        self.closure_types.extend(other.closure_types);
        self.types.extend(other.types);
        self.vtables.extend(other.vtables);
        self.typed.extend(other.typed);
        self
    }
}

/// What a unit belongs to: rustc names units `src/main.rs/@/app.1a2b3c-cgu.0`.
pub(super) fn crate_key(unit: &UnitInfo<'_>) -> String {
    let name = unit.unit.name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split("/@/").next().unwrap_or_default().to_owned()
}

struct UnitScan<'s, 'd, 'a> {
    debug: &'d Debug<'a>,
    unit: &'d UnitInfo<'a>,
    wanted: &'s Wanted,
    /// Depth and name of the enclosing scopes.
    scopes: Vec<(isize, Option<Value<'a>>)>,
    found: Found,
}

#[derive(Default)]
struct Attributes<'a> {
    name: Option<Value<'a>>,
    symbol: Option<Value<'a>>,
    location: Option<Value<'a>>,
}

impl<'s, 'd, 'a> UnitScan<'s, 'd, 'a> {
    fn run(debug: &'d Debug<'a>, unit: &'d UnitInfo<'a>, wanted: &'s Wanted) -> gimli::Result<Found> {
        let mut scan = Self { debug, unit, wanted, scopes: Vec::new(), found: Found::default() };
        let mut typed = false;
        let mut entries = unit.unit.entries_raw(None)?;
        while !entries.is_empty() {
            let (offset, depth) = (entries.next_offset().0, entries.next_depth());
            let Some(abbrev) = entries.read_abbreviation()? else { continue };
            let tag = abbrev.tag();
            typed |= tag == c::DW_TAG_base_type;
            if !(is_scope(tag) || tag == c::DW_TAG_variable) {
                entries.skip_attributes(abbrev.attributes())?;
                continue;
            }
            let attributes = read(&mut entries, abbrev.attributes())?;
            while scan.scopes.last().is_some_and(|(open, _)| *open >= depth) {
                scan.scopes.pop();
            }
            scan.visit(DieId(unit.start + offset), tag, depth, &attributes)?;
            if is_scope(tag) && abbrev.has_children() {
                scan.scopes.push((depth, attributes.name));
            }
        }
        if typed {
            scan.found.typed.insert(crate_key(unit));
        }
        Ok(scan.found)
    }

    fn visit(
        &mut self,
        id: DieId,
        tag: gimli::DwTag,
        depth: isize,
        found: &Attributes<'a>,
    ) -> gimli::Result<()> {
        if tag == c::DW_TAG_variable {
            if depth == 1
                && self.wanted.vtables
                && self.text(found.name).is_some_and(|name| name.ends_with(b"::{vtable}"))
            {
                self.found.vtables.push(id);
            }
            if !self.wanted.symbols.is_empty() {
                let symbol = self.text(found.symbol).map(String::from_utf8_lossy);
                if let Some(symbol) = symbol.filter(|symbol| self.wanted.symbols.contains(symbol.as_ref())) {
                    self.found.variables.push((symbol.into_owned(), id));
                }
            }
            for (place, part) in found.location.map(|location| self.places(location)).unwrap_or_default() {
                self.found.statics.entry(place).or_default().push(Described { id, part });
            }
            return Ok(());
        }
        if !self.wanted.blocks_of.is_empty() {
            self.block(found);
        }
        let closures = !self.wanted.parents.is_empty() && self.begins_with_brace(found.name);
        if !closures && self.wanted.types.is_empty() {
            return Ok(());
        }
        let Some(name) = self.text(found.name) else { return Ok(()) };
        if closures && let Some(label) = closure_label(name) {
            let parent = self.scope();
            if self.wanted.parents.contains(&parent) {
                if tag == c::DW_TAG_structure_type {
                    self.found.closure_types.push((parent.clone(), label.clone(), id));
                }
                self.found.closures.entry(parent).or_default().insert(label);
            }
        }
        let is_type = !matches!(tag, c::DW_TAG_namespace | c::DW_TAG_subprogram);
        if is_type && !self.wanted.types.is_empty() {
            let name = self.debug.renumbered.text(String::from_utf8_lossy(name));
            if self.wanted.types.contains(name.as_ref()) {
                self.found.types.push(id);
            }
        }
        Ok(())
    }

    fn text(&self, value: Option<Value<'a>>) -> Option<&'a [u8]> {
        self.debug.dwarf.attr_string(&self.unit.unit, value?).ok().map(|text| text.slice())
    }

    /// Whether a name may be that of a closure, told without reading all of it.
    fn begins_with_brace(&self, name: Option<Value<'a>>) -> bool {
        match name {
            Some(AttributeValue::DebugStrRef(offset)) => {
                self.debug.dwarf.debug_str.reader().slice().get(offset.0) == Some(&b'{')
            }
            other => self.text(other).is_some_and(|name| name.starts_with(b"{")),
        }
    }

    /// Notes the impl block that an entry is or stands in, and what function it is.
    fn block(&mut self, found: &Attributes<'a>) {
        let text = |value| self.text(value).map(String::from_utf8_lossy);
        let Some(own) = text(found.name) else { return };
        let first = self.scopes.first().and_then(|(_, name)| text(*name));
        if !first.is_some_and(|first| self.wanted.blocks_of.contains(first.as_ref())) {
            return;
        }
        let names: Vec<_> = self.scopes.iter().filter_map(|(_, name)| text(*name)).chain([own]).collect();
        let at = names.iter().position(|name| name.starts_with("{impl#"));
        let Some((at, number)) = at.and_then(|at| Some((at, impls::number(&names[at])?))) else { return };
        let inside = names[at + 1..].iter().map(|name| name.clone().into_owned()).collect();
        let function = text(found.symbol).map(|symbol| Inside { names: inside, symbol: symbol.into_owned() });
        let module = names[..at].join("::");
        self.found.blocks.entry((module, number)).or_default().extend(function);
    }

    fn scope(&self) -> String {
        let mut names: Vec<_> = self
            .scopes
            .iter()
            .map(|(_, name)| self.text(*name).map_or("{unnamed}".into(), String::from_utf8_lossy))
            .collect();
        self.debug.renumbered.segments(&mut names);
        names.join("::")
    }

    /// The wanted places that a location names. A variable that the optimiser took apart has several, each followed by its size.
    fn places(&self, location: Value<'a>) -> Vec<(StaticPlace, Option<Range<u64>>)> {
        let AttributeValue::Exprloc(expression) = location else { return Vec::new() };
        let mut operations = expression.operations(self.unit.unit.encoding());
        let indexed = |index| self.debug.dwarf.address(&self.unit.unit, index).ok();
        let (mut constant, mut place, mut parts_end) = (None, None, 0);
        let mut places = Vec::new();
        while let Ok(Some(operation)) = operations.next() {
            match operation {
                gimli::Operation::Address { address } => place = Some(StaticPlace::Data(LinkAddr(address))),
                gimli::Operation::AddressIndex { index } => {
                    place = indexed(index).map(|addr| StaticPlace::Data(LinkAddr(addr)));
                }
                gimli::Operation::UnsignedConstant { value } => constant = Some(value),
                gimli::Operation::ConstantIndex { index } => constant = indexed(index),
                gimli::Operation::TLS => place = constant.map(StaticPlace::Tls),
                gimli::Operation::Piece { size_in_bits, .. } => {
                    let part = parts_end..parts_end + size_in_bits;
                    parts_end = part.end;
                    places.extend(place.take().map(|place| (place, Some(part))));
                }
                _ => {}
            }
        }
        places.extend(place.map(|place| (place, None)));
        places.retain(|(place, _)| self.wanted.statics.contains(place));
        places
    }
}

fn read<'a>(
    entries: &mut EntriesRaw<'_, Slice<'a>>,
    specs: &[gimli::AttributeSpecification],
) -> gimli::Result<Attributes<'a>> {
    let mut found = Attributes::default();
    for spec in specs {
        let attribute = entries.read_attribute(*spec)?;
        match attribute.name() {
            c::DW_AT_linkage_name => found.symbol = Some(attribute.value()),
            c::DW_AT_name => found.name = Some(attribute.value()),
            c::DW_AT_location => found.location = Some(attribute.value()),
            _ => {}
        }
    }
    Ok(found)
}

/// `closure#2` of `{closure#2}`, `{closure_env#2}` and `{closure_env#2}<u32>`; likewise for async and generator bodies.
pub(super) fn closure_label(name: &[u8]) -> Option<String> {
    let inner = name.strip_prefix(b"{")?;
    let kinds: [&[u8]; 4] = [b"closure", b"async_", b"coroutine", b"gen_"];
    if !kinds.iter().any(|kind| inner.starts_with(kind)) {
        return None;
    }
    let end = inner.iter().position(|byte| *byte == b'}')?;
    Some(String::from_utf8_lossy(&inner[..end]).replace("_env#", "#"))
}

#[cfg(test)]
mod tests {
    use super::closure_label;

    #[test]
    fn closures_have_one_label_whatever_names_them() {
        for name in ["{closure#2}", "{closure_env#2}", "{closure_env#2}<u32>", "{closure#2}<u32>"] {
            assert_eq!(closure_label(name.as_bytes()).as_deref(), Some("closure#2"), "{name}");
        }
        assert_eq!(closure_label(b"{async_block_env#0}").as_deref(), Some("async_block#0"));
        for name in ["{impl#0}", "main", "{vtable}", "{closure"] {
            assert_eq!(closure_label(name.as_bytes()), None, "{name}");
        }
    }
}
