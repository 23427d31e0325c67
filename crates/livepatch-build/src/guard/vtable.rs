//! Vtables: what debug information calls `<T as Trait>::{vtable}`, read from the image slot by slot.

use super::demangle::{demangle, identity};
use super::dwarf::DieId;
use super::elf::Word;
use super::fixed::is_fixed;
use super::side::Image;
use super::types::Types;
use gimli::{AttributeValue, constants as c};
use livepatch_patch::LinkAddr;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// Vtables by name; there is one copy for each unit that makes such objects.
pub(super) type Vtables = BTreeMap<String, Vec<Vtable>>;

/// One copy of a vtable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vtable {
    /// Number of slots, the three fixed ones (drop, size, alignment) included.
    pub(super) len: u64,
    /// The slots, unless the optimiser removed this copy.
    pub(super) slots: Option<Vec<Slot>>,
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// A number: size, alignment, or 0 where there is no function.
    Number(u64),
    /// A function with these symbols, less the optimiser's suffixes (several where equal code was merged). Paths would not
    /// do: a default method and the one that overrides it have the same.
    Code(BTreeSet<String>, LinkAddr),
    /// The address of something that is no function: the vtable of a supertrait.
    Data,
    /// A symbol of another module.
    Import(String),
    /// It cannot be read, so it agrees with nothing.
    Unreadable,
}

impl Slot {
    /// Whether an old object's slot still leads where a new one's does; `renamed` gives the new symbols of functions
    /// that have another one there.
    pub(super) fn agrees(&self, other: &Self, renamed: &Renamed<'_>) -> bool {
        match (self, other) {
            (Self::Code(old, _), Self::Code(new, _)) => {
                let has = |name: &str| new.iter().any(|now| identity(now) == identity(name));
                old.iter().any(|name| has(name) || renamed.get(&**name).is_some_and(|now| has(now)))
            }
            (Self::Unreadable, _) => false,
            _ => self == other,
        }
    }

    /// Whether an old object's slot does what it did, with the patch, too: its function is not redirected, or redirected
    /// to what the same library code was compiled to.
    pub(super) fn stays(&self, renamed: &Renamed<'_>) -> bool {
        match self {
            Self::Code(names, _) => {
                names.iter().all(|name| !renamed.contains_key(&**name) || is_fixed(&demangle(name)))
            }
            Self::Unreadable => false,
            Self::Number(_) | Self::Data | Self::Import(_) => true,
        }
    }
}

/// New symbols by old ones, both without the optimiser's suffixes.
pub(super) type Renamed<'s> = HashMap<&'s str, &'s str>;

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(0) => f.write_str("nothing"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Code(names, _) => {
                let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", demangle(name))).collect();
                f.write_str(&quoted.join(" = "))
            }
            Self::Data => f.write_str("a table of a supertrait"),
            Self::Unreadable => f.write_str("something unreadable"),
            Self::Import(name) => write!(f, "`{name}` of another module"),
        }
    }
}

/// Reads vtables.
pub(super) fn read(image: &Image<'_>, types: &Types<'_, '_>, ids: &[DieId]) -> gimli::Result<Vtables> {
    let mut vtables = Vtables::new();
    for id in ids {
        let entry = types.debug.entry(*id)?;
        let Some(name) = types.debug.name(*id, &entry)? else { continue };
        let size = match types.debug.type_of(*id)? {
            Some(shape) => {
                let shape = types.debug.entry(shape)?;
                shape.attr_value(c::DW_AT_byte_size).and_then(|size| size.udata_value()).unwrap_or(0)
            }
            None => 0,
        };
        let slots = address(image, *id, &entry)?.map(|addr| {
            let word = |i: u64| addr.checked_add(i * 8).and_then(|addr| image.elf.word(addr));
            (0..size / 8).map(|i| word(i).map_or(Slot::Unreadable, |word| slot(image, word))).collect()
        });
        let copies = vtables.entry(name.into_owned()).or_default();
        let vtable = Vtable { len: size / 8, slots };
        if !copies.contains(&vtable) {
            copies.push(vtable);
        }
    }
    Ok(vtables)
}

fn slot(image: &Image<'_>, word: Word) -> Slot {
    match word {
        Word::Number(value) => Slot::Number(value),
        Word::Import(name) => Slot::Import(name),
        Word::Address(addr) => {
            let names: BTreeSet<String> = image.elf.names_at(addr).into_iter().map(str::to_owned).collect();
            if names.is_empty() { Slot::Data } else { Slot::Code(names, LinkAddr(addr)) }
        }
    }
}

fn address(image: &Image<'_>, id: DieId, entry: &super::dwarf::Entry<'_>) -> gimli::Result<Option<u64>> {
    let Some(AttributeValue::Exprloc(expression)) = entry.attr_value(c::DW_AT_location) else {
        return Ok(None);
    };
    let unit = &image.debug.units[image.debug.unit_index(id)?].unit;
    let mut operations = expression.operations(unit.encoding());
    while let Some(operation) = operations.next()? {
        match operation {
            gimli::Operation::Address { address } => return Ok(Some(address).filter(|addr| *addr != 0)),
            gimli::Operation::AddressIndex { index } => {
                return image.debug.dwarf.address(unit, index).map(Some);
            }
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::{Renamed, Slot};
    use livepatch_patch::LinkAddr;

    #[test]
    fn an_old_slot_stays_right_unless_what_the_program_changed_took_its_code_over() {
        let slot = |name: &str| Slot::Code([name.to_owned()].into(), LinkAddr(0));
        let (own, fixed) = ("_ZN3app4drop17h363f8709f932b15eE", "_ZN4core3fmt4drop17h363f8709f932b15eE");
        assert!(slot(own).stays(&Renamed::new()));
        // Merged with a function of the program: the redirected code may not do what the table stands for.
        assert!(!slot(own).stays(&Renamed::from([(own, own)])));
        assert!(slot(fixed).stays(&Renamed::from([(fixed, fixed)])));
        assert!(!Slot::Unreadable.stays(&Renamed::new()));
    }
}
