//! Which closures can leave the frame of the function that makes them.
//!
//! A closure whose captures changed is harmless if no value of it can be alive when the switch is made. A patched
//! function is in no frame then, so it suffices that values of the closure never leave frames: the closure, and
//! every type that contains it or is generic over it, is in the signature of no out-of-line function, is held by no
//! variable with static storage, and has no vtable. Everything that it is handed to has then been inlined.

use super::dwarf::{Debug, DieId, UnitInfo};
use super::names::{closure_parents, segments};
use super::scan::{Wanted, closure_label, scan};
use super::types::Types;
use gimli::{DwTag, constants as c};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// What was found about some closures in one image.
#[derive(Default)]
pub(super) struct Escapes {
    /// Names of closures that may leave a frame.
    pub(super) exposed: BTreeSet<String>,
    /// For each type that contains closures: which ones.
    pub(super) contains: BTreeMap<String, BTreeSet<String>>,
}

/// Type references of a unit.
#[derive(Default)]
struct UnitEdges {
    /// Type, and a type that it is made of.
    made_of: Vec<(DieId, DieId)>,
    /// Types that an out-of-line function, a static or a vtable shows to the outside.
    shown: HashSet<DieId>,
    /// Bodies of closures that exist out of line: scope of the closure, and label.
    bodies: Vec<(String, String)>,
}

/// Examines the closures of these (fully qualified) names.
pub(super) fn escapes(debug: &Debug<'_>, closures: &BTreeSet<String>) -> gimli::Result<Escapes> {
    let last = closures.iter().map(|name| segments(name).pop().unwrap_or_default().to_owned()).collect();
    let candidates = scan(debug, &Wanted { types: last, ..Wanted::default() })?.types;
    let mut holders: Vec<(DieId, String)> = Vec::new();
    for id in candidates {
        if let Some(path) = debug.path(id)?.filter(|path| closures.contains(path)) {
            holders.push((id, path));
        }
    }
    let edges = examine(debug, &holders)?;
    let mut made_into: HashMap<DieId, Vec<DieId>> = HashMap::new();
    let (mut shown, mut bodies) = (HashSet::new(), BTreeSet::new());
    for unit in edges {
        for (whole, part) in unit.made_of {
            made_into.entry(part).or_default().push(whole);
        }
        shown.extend(unit.shown);
        bodies.extend(unit.bodies);
    }
    let mut result = Escapes::default();
    for name in closures {
        let own = closure_parents(name).pop();
        if own.is_some_and(|own| bodies.contains(&own)) {
            result.exposed.insert(name.clone());
        }
    }
    spread(debug, holders, &made_into, &shown, &mut result)?;
    Ok(result)
}

/// Goes from the closures up to everything made of them.
fn spread(
    debug: &Debug<'_>,
    holders: Vec<(DieId, String)>,
    made_into: &HashMap<DieId, Vec<DieId>>,
    shown: &HashSet<DieId>,
    result: &mut Escapes,
) -> gimli::Result<()> {
    let types = Types::new(debug);
    let mut seen = HashSet::new();
    let mut queue = holders;
    while let Some((id, closure)) = queue.pop() {
        if !seen.insert((id, closure.clone())) {
            continue;
        }
        if shown.contains(&id) {
            result.exposed.insert(closure.clone());
        }
        let name = types.name(Some(id))?.to_string();
        result.contains.entry(name).or_default().insert(closure.clone());
        queue.extend(made_into.get(&id).into_iter().flatten().map(|whole| (*whole, closure.clone())));
    }
    Ok(())
}

fn examine(debug: &Debug<'_>, holders: &[(DieId, String)]) -> gimli::Result<Vec<UnitEdges>> {
    // A type is named by the unit that describes it, except where units refer to each other (link-time optimisation).
    let linked = debug.units.iter().any(refers_to_other_units);
    let own: HashSet<usize> =
        holders.iter().map(|(id, _)| debug.unit_index(*id)).collect::<gimli::Result<_>>()?;
    (0..debug.units.len())
        .into_par_iter()
        .filter(|unit| linked || own.contains(unit))
        .map(|unit| edges(debug, unit))
        .collect()
}

fn refers_to_other_units(info: &UnitInfo<'_>) -> bool {
    let abbreviations = &info.unit.abbreviations;
    (1..)
        .map_while(|code| abbreviations.get(code))
        .any(|abbrev| abbrev.attributes().iter().any(|spec| spec.form() == c::DW_FORM_ref_addr))
}

fn edges(debug: &Debug<'_>, unit: usize) -> gimli::Result<UnitEdges> {
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
                edges.shown.extend(debug.type_of(id)?);
            }
            _ => {}
        }
        let entry = debug.entry(id)?;
        if let Some(part) = debug.target(id, &entry, c::DW_AT_containing_type)? {
            // The type of a vtable.
            edges.shown.insert(part);
        }
        let part = debug.target(id, &entry, c::DW_AT_type)?;
        if let (Some(part), Some(whole)) = (part, owning_type(&owners, id, tag)) {
            edges.made_of.push((whole, part));
        }
        Ok(())
    })?;
    for id in functions {
        let entry = debug.entry(id)?;
        if entry.attr_value(c::DW_AT_low_pc).is_some() || entry.attr_value(c::DW_AT_ranges).is_some() {
            show(debug, id, &mut edges)?;
        }
    }
    Ok(edges)
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

/// Notes what the signature of an out-of-line function shows.
fn show(debug: &Debug<'_>, id: DieId, edges: &mut UnitEdges) -> gimli::Result<()> {
    for (origin, entry) in debug.origins(id)? {
        edges.shown.extend(debug.target(origin, &entry, c::DW_AT_type)?);
        for (child, tag) in debug.children(origin)? {
            if matches!(tag, c::DW_TAG_formal_parameter | c::DW_TAG_template_type_parameter) {
                edges.shown.extend(debug.type_of(child)?);
            }
        }
        let name = debug.name(origin, &entry)?;
        if let Some(label) = name.and_then(|name| closure_label(name.as_bytes())) {
            edges.bodies.push((debug.scope(origin)?, label));
        }
    }
    Ok(())
}
