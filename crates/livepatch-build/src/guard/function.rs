//! A function as debug information describes it.

use super::demangle::strip_suffix;
use super::dwarf::{Debug, DieId};
use super::report::{Convention, FunctionRef, ResultIn, Taken};
use super::scan::crate_key;
use super::types::Types;
use crate::findings::Place;
use gimli::{AttributeValue, constants as c};
use std::collections::{HashMap, HashSet};

/// An out-of-line function.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) path: String,
    pub(super) receiver: Option<String>,
    pub(super) result: ResultIn,
    pub(super) takes: Taken,
    pub(super) place: Option<Place>,
    pub(super) rust: bool,
    /// The crate that it was compiled in, see [`crate_key`].
    pub(super) crate_key: String,
    pub(super) signature: Signature,
    pub(super) convention: Convention,
    /// Types of everything that it and what is inlined into it handle.
    pub(super) types: Vec<DieId>,
    pub(super) inlined: Vec<FunctionRef>,
}

/// How a function is called.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signature {
    /// Type names of the parameters of the definition.
    pub(super) params: Vec<String>,
    /// Type names of the parameters of the declaration, where there is one (methods).
    pub(super) declared: Option<Vec<String>>,
    pub(super) result: String,
}

/// Finds the function that begins at `addr` and has one of these symbols.
pub(super) fn find(types: &Types<'_, '_>, addr: u64, symbol: &str) -> gimli::Result<Option<Function>> {
    let debug = types.debug;
    for id in debug.functions_at(addr)? {
        if linkage_name(debug, id)?.is_some_and(|name| strip_suffix(&name) == strip_suffix(symbol)) {
            return read(types, id, addr).map(Some);
        }
    }
    Ok(None)
}

/// The symbol that an entry says it has; for exported names that is the plain name.
pub(super) fn linkage_name(debug: &Debug<'_>, id: DieId) -> gimli::Result<Option<String>> {
    for at in [c::DW_AT_linkage_name, c::DW_AT_name] {
        if let Some((owner, value)) = debug.inherited(id, at)? {
            return Ok(debug.string(owner, Some(value))?.map(|name| name.into_owned()));
        }
    }
    Ok(None)
}

fn read(types: &Types<'_, '_>, id: DieId, addr: u64) -> gimli::Result<Function> {
    let debug = types.debug;
    let mut contents = Contents::default();
    contents.gather(types, id)?;
    for (origin, _) in debug.origins(id)?.into_iter().skip(1) {
        contents.gather(types, origin)?;
    }
    let unit = &debug.units[debug.unit_index(id)?];
    Ok(Function {
        path: debug.path(id)?.unwrap_or_default(),
        receiver: receiver(types, id)?,
        result: result_in(debug, id)?,
        takes: taken(types, id)?,
        place: debug.place(id)?,
        rust: unit.rust,
        crate_key: crate_key(unit),
        signature: signature(types, id)?,
        convention: convention(debug, id, addr)?,
        types: contents.types,
        inlined: contents.inlined,
    })
}

#[derive(Default)]
struct Contents {
    types: Vec<DieId>,
    known: HashSet<DieId>,
    /// Origins of what is inlined, with the index of its entry.
    origins: HashMap<DieId, Option<usize>>,
    inlined: Vec<FunctionRef>,
}

impl Contents {
    /// Types of a function and of everything below it, and, through their origins, of what is inlined there.
    fn gather(&mut self, types: &Types<'_, '_>, id: DieId) -> gimli::Result<()> {
        let debug = types.debug;
        self.type_of(debug, id)?;
        for (die, tag) in debug.descendants(id)? {
            match tag {
                c::DW_TAG_formal_parameter
                | c::DW_TAG_variable
                | c::DW_TAG_template_type_parameter
                | c::DW_TAG_member => {
                    self.type_of(debug, die)?;
                }
                c::DW_TAG_inlined_subroutine => self.inline(types, die)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn type_of(&mut self, debug: &Debug<'_>, id: DieId) -> gimli::Result<()> {
        if let Some(found) = debug.type_of(id)?.filter(|found| self.known.insert(*found)) {
            self.types.push(found);
        }
        Ok(())
    }

    /// Index of a function among those that are inlined.
    fn note(&mut self, function: FunctionRef) -> usize {
        let same = |known: &FunctionRef| FunctionRef { times: 1, ..known.clone() } == function;
        match self.inlined.iter().position(same) {
            Some(at) => {
                self.inlined[at].times += 1;
                at
            }
            None => {
                self.inlined.push(function);
                self.inlined.len() - 1
            }
        }
    }

    fn inline(&mut self, types: &Types<'_, '_>, id: DieId) -> gimli::Result<()> {
        let debug = types.debug;
        let entry = debug.entry(id)?;
        let Some(origin) = debug.target(id, &entry, c::DW_AT_abstract_origin)? else { return Ok(()) };
        if let Some(known) = self.origins.get(&origin) {
            if let Some(at) = known {
                self.inlined[*at].times += 1;
            }
            return Ok(());
        }
        let index = match debug.path(origin)? {
            Some(path) => {
                let (symbol, receiver) = (linkage_name(debug, origin)?, receiver(types, origin)?);
                Some(self.note(FunctionRef { path, symbol, receiver, place: debug.place(origin)?, times: 1 }))
            }
            None => None,
        };
        self.origins.insert(origin, index);
        for (id, _) in debug.origins(origin)? {
            self.gather(types, id)?;
        }
        Ok(())
    }
}

/// Where the result is (System V ABI AMD64 supplement, section 3.2.3; a pair of scalars that would fit one register is returned
/// in two by Rust's own convention).
fn result_in(debug: &Debug<'_>, id: DieId) -> gimli::Result<ResultIn> {
    let Some(result) = debug.type_of(id)? else { return Ok(ResultIn::Memory) };
    Ok(match size(debug, result)? {
        Some(0 | 17..) => ResultIn::Memory,
        Some(..=8) if is_integer(debug, result)? => ResultIn::IntegerRegister,
        _ => ResultIn::Registers,
    })
}

/// How many registers hold the result, at most.
fn results(debug: &Debug<'_>, id: DieId) -> gimli::Result<usize> {
    let Some(result) = debug.type_of(id)? else { return Ok(0) };
    let is_scalar = matches!(
        debug.entry(result)?.tag(),
        c::DW_TAG_base_type | c::DW_TAG_enumeration_type | c::DW_TAG_pointer_type | c::DW_TAG_subroutine_type
    );
    Ok(match size(debug, result)? {
        Some(0 | 17..) => 0,
        _ if is_scalar => 1,
        _ => 2,
    })
}

fn size(debug: &Debug<'_>, id: DieId) -> gimli::Result<Option<u64>> {
    Ok(debug.inherited(id, c::DW_AT_byte_size)?.and_then(|(_, size)| size.udata_value()))
}

/// Bytes of the largest value that Rust's convention passes in registers: two pointers.
const IN_REGISTERS: u64 = 16;

/// Whether a type is an integer that may have any value.
fn is_integer(debug: &Debug<'_>, id: DieId) -> gimli::Result<bool> {
    let entry = debug.entry(id)?;
    let encoding = match entry.attr_value(c::DW_AT_encoding) {
        Some(AttributeValue::Encoding(encoding)) => Some(encoding),
        _ => None,
    };
    Ok(entry.tag() == c::DW_TAG_base_type && matches!(encoding, Some(c::DW_ATE_signed | c::DW_ATE_unsigned)))
}

/// What the parameters of a function are.
fn taken(types: &Types<'_, '_>, id: DieId) -> gimli::Result<Taken> {
    let debug = types.debug;
    let mut taken = Taken::default();
    for (origin, _) in debug.origins(id)? {
        for (child, tag) in debug.children(origin)? {
            if tag != c::DW_TAG_formal_parameter {
                continue;
            }
            let Some(of) = debug.type_of(child)? else { return Ok(Taken { pointers: true, memory: true }) };
            let tag = debug.entry(of)?.tag();
            let is_plain = matches!(tag, c::DW_TAG_base_type | c::DW_TAG_enumeration_type);
            let size = size(debug, of)?;
            taken.pointers |= !is_plain && size != Some(0);
            // rustc gives references and other thin pointers no size.
            let is_pointer = tag == c::DW_TAG_pointer_type;
            taken.memory |= !is_pointer && size.is_none_or(|size| size > IN_REGISTERS);
        }
    }
    Ok(taken)
}

/// The type that a method is declared in; for a method of a trait's own what `Self` stands for.
fn receiver(types: &Types<'_, '_>, id: DieId) -> gimli::Result<Option<String>> {
    let debug = types.debug;
    let origins = debug.origins(id)?;
    let (declared, _) = origins.last().expect("an entry is its own origin");
    if let Some(scope) = debug.type_around(*declared)? {
        return Ok(Some(scope));
    }
    for (origin, _) in origins {
        for (parameter, tag) in debug.children(origin)? {
            let entry = debug.entry(parameter)?;
            if tag == c::DW_TAG_template_type_parameter
                && debug.name(parameter, &entry)?.as_deref() == Some("Self")
            {
                return Ok(Some(types.name(debug.type_of(parameter)?)?.to_string()));
            }
        }
    }
    Ok(None)
}

fn signature(types: &Types<'_, '_>, id: DieId) -> gimli::Result<Signature> {
    let debug = types.debug;
    let origins = debug.origins(id)?;
    let mut lists = Vec::new();
    for (origin, entry) in &origins {
        let names: Vec<String> = types
            .parameters(*origin)?
            .into_iter()
            .map(|id| types.name(id).map(|name| name.to_string()))
            .collect::<gimli::Result<_>>()?;
        let declaration = entry.attr_value(c::DW_AT_declaration).is_some();
        lists.push((declaration, names));
    }
    let declared = lists.iter().find(|(declaration, _)| *declaration).map(|(_, names)| names.clone());
    // An abstract origin lists all parameters; the concrete instance may leave out those without a location.
    let params = lists
        .into_iter()
        .filter(|(declaration, _)| !declaration)
        .map(|(_, names)| names)
        .max_by_key(Vec::len)
        .unwrap_or_default();
    let result = types.name(debug.type_of(id)?)?.to_string();
    Ok(Signature { params, declared, result })
}

fn convention(debug: &Debug<'_>, id: DieId, addr: u64) -> gimli::Result<Convention> {
    let altered = match debug.inherited(id, c::DW_AT_calling_convention)? {
        Some((_, AttributeValue::CallingConvention(convention))) => Some(convention == c::DW_CC_nocall),
        // What is declared elsewhere has its type described there.
        _ => debug
            .origins(id)?
            .iter()
            .all(|(_, die)| die.attr(c::DW_AT_specification).is_none())
            .then_some(false),
    };
    let mut passing = Vec::new();
    for (param, tag) in debug.children(id)? {
        if tag == c::DW_TAG_formal_parameter {
            passing.push(passed(debug, param, addr)?);
        }
    }
    Ok(Convention { altered, passing, results: results(debug, id)? })
}

/// Where a parameter is on entry, as the bytes of its location, if it is recorded for the first instruction.
fn passed(debug: &Debug<'_>, param: DieId, addr: u64) -> gimli::Result<Option<String>> {
    let entry = debug.entry(param)?;
    let unit = &debug.units[debug.unit_index(param)?].unit;
    let Some(value) = entry.attr_value(c::DW_AT_location) else { return Ok(None) };
    let Some(mut locations) = debug.dwarf.attr_locations(unit, value)? else { return Ok(None) };
    while let Some(location) = locations.next()? {
        if location.range.begin == addr {
            let is_passed = is_somewhere(location.data.operations(unit.encoding()))?;
            return Ok(is_passed.then(|| format!("{:02x?}", location.data.0.slice())));
        }
    }
    Ok(None)
}

/// Whether a location is one, of all of a parameter or a part of it: a value that the compiler knows is passed nowhere.
fn is_somewhere<R: gimli::Reader>(mut operations: gimli::OperationIter<R>) -> gimli::Result<bool> {
    while let Some(operation) = operations.next()? {
        use gimli::Operation::{
            ImplicitValue, Piece, PlusConstant, SignedConstant, StackValue, UnsignedConstant,
        };
        if !matches!(
            operation,
            Piece { .. }
                | PlusConstant { .. }
                | StackValue
                | UnsignedConstant { .. }
                | SignedConstant { .. }
                | ImplicitValue { .. }
        ) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Types of the parameters, generic arguments and the result of a function.
pub(super) fn signature_types(types: &Types<'_, '_>, id: DieId) -> gimli::Result<Vec<DieId>> {
    let debug = types.debug;
    let mut found = Vec::new();
    for (origin, entry) in debug.origins(id)? {
        found.extend(debug.target(origin, &entry, c::DW_AT_type)?);
        for (child, tag) in debug.children(origin)? {
            if matches!(tag, c::DW_TAG_formal_parameter | c::DW_TAG_template_type_parameter) {
                found.extend(debug.type_of(child)?);
            }
        }
    }
    Ok(found)
}
