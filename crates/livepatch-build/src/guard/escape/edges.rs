//! What debug information says of types: what is made of them, and where they are shown.

use crate::guard::dwarf::{Debug, DieId, UnitInfo};
use crate::guard::function::signature_types;
use crate::guard::scan::closure_label;
use crate::guard::types::Types;
use gimli::{DwTag, constants as c};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};

/// Type references of some units.
#[derive(Default)]
pub(super) struct Edges {
    /// For each type, those that are made of it or generic over it.
    pub(super) made_into: HashMap<DieId, Vec<DieId>>,
    /// Types of variables with static storage and those that have a vtable.
    pub(super) kept: HashSet<DieId>,
    pub(super) functions: Vec<Shower>,
    /// Types of closures, with their names. What they are generic over is told by the name alone.
    pub(super) closures: Vec<(DieId, String)>,
}

/// A function and the types that its signature and its generic arguments show.
pub(super) struct Shower {
    pub(super) id: DieId,
    /// Where it is, if it exists out of line.
    pub(super) addr: Option<u64>,
    pub(super) types: Vec<DieId>,
    /// Scope and label of the closure that it is the body of.
    pub(super) body: Option<(String, String)>,
}

/// Reads the units that may name these types.
pub(super) fn read(debug: &Debug<'_>, of: &[DieId]) -> gimli::Result<Edges> {
    // A type is named by the unit that describes it, except where units refer to each other (link-time optimisation).
    let linked = debug.units.iter().any(refers_to_other_units);
    let own: HashSet<usize> = of.iter().map(|id| debug.unit_index(*id)).collect::<gimli::Result<_>>()?;
    let units: Vec<UnitEdges> = (0..debug.units.len())
        .into_par_iter()
        .filter(|unit| linked || own.contains(unit))
        .map(|unit| unit_edges(debug, unit))
        .collect::<gimli::Result<_>>()?;
    let mut all = Edges::default();
    for unit in units {
        for (whole, part) in unit.made_of {
            all.made_into.entry(part).or_default().push(whole);
        }
        all.kept.extend(unit.kept);
        all.functions.extend(unit.functions);
        all.closures.extend(unit.closures);
    }
    Ok(all)
}

fn refers_to_other_units(info: &UnitInfo<'_>) -> bool {
    let abbreviations = &info.unit.abbreviations;
    (1..)
        .map_while(|code| abbreviations.get(code))
        .any(|abbrev| abbrev.attributes().iter().any(|spec| spec.form() == c::DW_FORM_ref_addr))
}

#[derive(Default)]
struct UnitEdges {
    /// Type, and a type that it is made of.
    made_of: Vec<(DieId, DieId)>,
    kept: Vec<DieId>,
    functions: Vec<Shower>,
    closures: Vec<(DieId, String)>,
}

fn unit_edges(debug: &Debug<'_>, unit: usize) -> gimli::Result<UnitEdges> {
    let mut edges = UnitEdges::default();
    let start = debug.units[unit].start;
    let root = DieId(start + debug.units[unit].unit.header.root_offset().0);
    let mut owners: HashMap<DieId, (DieId, DwTag)> = HashMap::new();
    let mut functions = Vec::new();
    visit(debug, root, &mut |id, tag, parent| {
        owners.insert(id, parent);
        match tag {
            c::DW_TAG_subprogram => functions.push(id),
            c::DW_TAG_variable if matches!(parent.1, c::DW_TAG_compile_unit | c::DW_TAG_namespace) => {
                edges.kept.extend(debug.type_of(id)?);
            }
            _ => {}
        }
        let entry = debug.entry(id)?;
        if tag == c::DW_TAG_structure_type
            && let Some(name) = debug.name(id, &entry)?.filter(|name| name.starts_with("{closure"))
        {
            edges.closures.push((id, name.into_owned()));
        }
        // The type of a vtable.
        edges.kept.extend(debug.target(id, &entry, c::DW_AT_containing_type)?);
        let part = debug.target(id, &entry, c::DW_AT_type)?;
        if let (Some(part), Some(whole)) = (part, owning_type(&owners, id, tag)) {
            edges.made_of.push((whole, part));
        }
        Ok(())
    })?;
    let types = Types::new(debug);
    for id in functions {
        edges.functions.push(shower(&types, unit, id)?);
    }
    Ok(edges)
}

fn shower(types: &Types<'_, '_>, unit: usize, id: DieId) -> gimli::Result<Shower> {
    let debug = types.debug;
    let ranges = debug.dwarf.die_ranges(&debug.units[unit].unit, &debug.entry(id)?)?.next()?;
    let mut body = None;
    for (origin, entry) in debug.origins(id)? {
        let name = debug.name(origin, &entry)?;
        if let Some(label) = name.and_then(|name| closure_label(name.as_bytes())) {
            body = Some((debug.scope(origin)?, label));
        }
    }
    // Ranges of discarded functions start at 0.
    let addr = ranges.map(|range| range.begin).filter(|addr| *addr != 0);
    Ok(Shower { id, addr, types: signature_types(types, id)?, body })
}

type Visit<'v> = dyn FnMut(DieId, DwTag, (DieId, DwTag)) -> gimli::Result<()> + 'v;

fn visit(debug: &Debug<'_>, root: DieId, each: &mut Visit<'_>) -> gimli::Result<()> {
    let mut queue = vec![(root, c::DW_TAG_compile_unit)];
    while let Some(parent) = queue.pop() {
        for (id, tag) in debug.children(parent.0)? {
            each(id, tag, parent)?;
            queue.push((id, tag));
        }
    }
    Ok(())
}

/// The type that an entry is a part of; the entry itself if it is a type.
fn owning_type(owners: &HashMap<DieId, (DieId, DwTag)>, id: DieId, tag: DwTag) -> Option<DieId> {
    let (mut id, mut tag) = (id, tag);
    loop {
        if is_type(tag) {
            return Some(id);
        }
        if matches!(
            tag,
            c::DW_TAG_subprogram | c::DW_TAG_namespace | c::DW_TAG_variable | c::DW_TAG_compile_unit
        ) {
            return None;
        }
        (id, tag) = *owners.get(&id)?;
    }
}

fn is_type(tag: DwTag) -> bool {
    matches!(
        tag,
        c::DW_TAG_structure_type
            | c::DW_TAG_union_type
            | c::DW_TAG_class_type
            | c::DW_TAG_enumeration_type
            | c::DW_TAG_pointer_type
            | c::DW_TAG_reference_type
            | c::DW_TAG_array_type
            | c::DW_TAG_subroutine_type
            | c::DW_TAG_const_type
            | c::DW_TAG_volatile_type
            | c::DW_TAG_typedef
    )
}
