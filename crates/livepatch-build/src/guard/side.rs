//! What one of the two images says about the change.

use super::calls;
use super::demangle::strip_suffix;
use super::dwarf::{self, Debug, DieId, Sections};
use super::elf::{Elf, ImageFile};
use super::function::{self, Function, linkage_name};
use super::graph::{Graph, Root, reach};
use super::input::StaticPlace;
use super::names;
use super::report::GuardError;
use super::scan::{Described, Found, Wanted, scan};
use super::types::Types;
use super::vtable::{self, Vtables};
use crate::findings::Place;
use livepatch_patch::LinkAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The bytes that an [`Image`] borrows from.
pub(super) struct Loaded<'f> {
    file: &'f ImageFile,
    sections: Sections<'f>,
}

impl<'f> Loaded<'f> {
    pub(super) fn new(file: &'f ImageFile) -> Result<Self, GuardError> {
        let elf = file.elf()?;
        Ok(Self { file, sections: dwarf::sections(file, &elf)? })
    }

    pub(super) fn dwarf(&self) -> gimli::Dwarf<dwarf::Slice<'_>> {
        dwarf::borrow(&self.sections)
    }
}

/// One linked image, opened.
pub(super) struct Image<'a> {
    path: &'a Path,
    pub(super) elf: Elf<'a>,
    pub(super) debug: Debug<'a>,
}

impl<'a> Image<'a> {
    pub(super) fn open(loaded: &'a Loaded<'a>) -> Result<Self, GuardError> {
        let path = loaded.file.path.as_path();
        let debug = Debug::new(&loaded.sections)
            .map_err(|source| GuardError::Dwarf { path: path.to_owned(), source })?;
        Ok(Self { path, elf: Elf::new(loaded.file.elf()?), debug })
    }

    /// Names the image in an error.
    pub(super) fn damaged(&self, source: gimli::Error) -> GuardError {
        GuardError::Dwarf { path: self.path.to_owned(), source }
    }
}

/// What to look up in an image.
pub(super) struct Query<'q> {
    /// Symbol, address and size of redirected and (new image) new functions.
    pub(super) functions: Vec<(&'q str, LinkAddr, u64)>,
    /// Symbol and place of variables.
    pub(super) statics: Vec<(&'q str, StaticPlace)>,
}

/// A variable and its type.
pub(super) struct Variable {
    pub(super) path: String,
    pub(super) type_name: String,
    pub(super) type_id: Option<DieId>,
    pub(super) place: Option<Place>,
}

/// The answers, in the order of the query.
pub(super) struct Side {
    pub(super) functions: Vec<Option<Function>>,
    pub(super) statics: Vec<Option<Variable>>,
    pub(super) graph: Graph,
    pub(super) closures: BTreeMap<String, BTreeSet<String>>,
    /// Parent, label and type of the same closures.
    pub(super) closure_types: Vec<(String, String, DieId)>,
    pub(super) vtables: Vtables,
    pub(super) typed: BTreeSet<String>,
}

/// Looks everything up.
pub(super) fn analyse(image: &Image<'_>, query: &Query<'_>) -> gimli::Result<Side> {
    let types = Types::new(&image.debug);
    let functions: Vec<Option<Function>> = query
        .functions
        .iter()
        .map(|(symbol, addr, _)| function::find(&types, addr.0, symbol))
        .collect::<gimli::Result<_>>()?;
    let wanted = Wanted {
        statics: query.statics.iter().map(|(_, place)| *place).collect(),
        parents: functions.iter().flatten().flat_map(closure_scopes).collect(),
        vtables: true,
        ..Wanted::default()
    };
    let found = scan(&image.debug, &wanted)?;
    let mut reader = calls::Reader::new(image, &types);
    let statics: Vec<Option<Variable>> = query
        .statics
        .iter()
        .map(|(symbol, place)| variable(&types, &found, symbol, *place))
        .collect::<gimli::Result<_>>()?;
    let mut roots = Vec::new();
    for (function, (_, addr, size)) in functions.iter().zip(&query.functions) {
        let Some(function) = function else { continue };
        let user: Arc<str> = function.path.as_str().into();
        let called = reader.signatures(*addr, *size)?;
        let closures = closures_of(&found, &function.path);
        let all = function.types.iter().copied().chain(called).chain(closures);
        roots.extend(all.map(|id| Root { id, user: user.clone() }));
    }
    for variable in statics.iter().flatten() {
        roots.extend(variable.type_id.map(|id| Root { id, user: variable.path.as_str().into() }));
    }
    let graph = reach(&types, roots)?;
    let vtables = vtable::read(image, &types, &found.vtables)?;
    let Found { closures, closure_types, typed, .. } = found;
    Ok(Side { functions, statics, graph, closures, closure_types, vtables, typed })
}

/// Where the closures are written that matter to a function: its own, those that it is in, and those that are inlined into it.
fn closure_scopes(function: &Function) -> Vec<String> {
    let inlined = function.inlined.iter().flat_map(|inlined| names::closure_parents(&inlined.path).pop());
    names::closure_scopes(&function.path).into_iter().chain(inlined.map(|(parent, _)| parent)).collect()
}

/// The types of the closures that a function makes and of the one that it is the body of: where they are only handed
/// on, no variable has them.
fn closures_of(found: &Found, path: &str) -> impl Iterator<Item = DieId> {
    let own = names::closure_parents(path).pop();
    let made = names::without_arguments(path);
    found.closure_types.iter().filter_map(move |(parent, label, id)| {
        let is_own = own.as_ref().is_some_and(|(p, l)| p == parent && l == label);
        (is_own || *parent == made).then_some(*id)
    })
}

fn variable(
    types: &Types<'_, '_>,
    found: &Found,
    symbol: &str,
    place: StaticPlace,
) -> gimli::Result<Option<Variable>> {
    let candidates = found.statics.get(&place).map_or(&[][..], Vec::as_slice);
    let mut chosen = None;
    for described in candidates {
        // The optimiser numbers the parts of a variable that it takes apart: `NAME.0`.
        let names = linkage_name(types.debug, described.id)?;
        if names.is_some_and(|name| {
            let rest = strip_suffix(symbol).strip_prefix(strip_suffix(&name));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        }) {
            chosen = Some(described.clone());
        }
    }
    let Some(Described { id, part }) = chosen else { return Ok(None) };
    let type_id = types.debug.type_of(id)?;
    Ok(Some(Variable {
        path: types.debug.path(id)?.unwrap_or_else(|| symbol.to_owned()),
        type_name: match part {
            Some(Range { start, end }) => format!("bits {start} to {end} of {}", types.name(type_id)?),
            None => types.name(type_id)?.to_string(),
        },
        type_id,
        place: types.debug.place(id)?,
    }))
}
