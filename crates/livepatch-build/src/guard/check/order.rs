//! Objects of the running program for whose type the fixed build has no table at all.
//!
//! The fixed source makes no such objects any more, so their old functions are all that there is for them. But patched code
//! may be handed one that was made before, and must find each method in the slot in which it was. The order of the slots is the
//! trait's own, so tables of other types tell it, by the names of methods. Where they do not, patched code must not handle objects of
//! the trait.

use crate::findings::{Finding, rules};
use crate::guard::demangle::demangle;
use crate::guard::fixed::is_fixed;
use crate::guard::graph::Graph;
use crate::guard::names::{last, trait_of};
use crate::guard::vtable::{Slot, Vtables};
use livepatch_patch::item::Hints;
use livepatch_patch::{Digest, ItemName, NewType};
use std::collections::{BTreeMap, BTreeSet};

/// For each slot of a trait's tables, the names of what is there, none if it is not clear. Where equal code was merged, a table may show the name of
/// another function.
type Order = Vec<BTreeSet<String>>;

/// Compares the order of methods of traits of which the fixed build has fewer tables.
pub(in crate::guard) fn order(old: &Vtables, new: &Vtables, patched: &Graph) -> Vec<Finding> {
    let (before, after) = (orders(old), orders(new));
    let is_made = |name: &str| old[name].iter().any(|table| table.slots.is_some());
    let gone = old.keys().filter(|name| !new.contains_key(*name) && is_made(name));
    let traits: BTreeSet<&str> = gone.filter_map(|name| trait_of(name)).collect();
    let mut findings = Vec::new();
    for name in traits.into_iter().filter(|name| !is_fixed(name) && handles(patched, name)) {
        let (before, after) = (before.get(name), after.get(name));
        if before.zip(after).is_some_and(|(before, after)| is_same(before, after)) {
            continue;
        }
        let slot = |names: &BTreeSet<String>| match names.is_empty() {
            true => "(not clear)".to_owned(),
            false => names.iter().cloned().collect::<Vec<_>>().join(" or "),
        };
        let text = |order: &Order| order.iter().map(slot).collect::<Vec<_>>().join(", ");
        let known = after.map_or("no table to compare with".to_owned(), text);
        findings.push(Finding::new(&rules::vtable::RULE, name).change(
            "slots",
            before.map(text),
            Some(known),
        ));
    }
    findings
}

/// What only the fixed build has, as types: tables, because objects expect in their slots what was there when they were made; and
/// traits, because calls expect a method in its slot. A later patch has to agree.
pub(in crate::guard) fn added(old: &Vtables, new: &Vtables, patched: &Graph) -> Vec<NewType> {
    let of_text = |name: String, text: String| NewType {
        name,
        digest: Digest::of(text.as_bytes()),
        awaits: Vec::new(),
    };
    let mut added = Vec::new();
    for (name, copies) in new.iter().filter(|(name, _)| !old.contains_key(*name) && !is_fixed(name)) {
        let text = |slots: &Vec<Slot>| slots.iter().map(|slot| format!("{slot}\n")).collect::<String>();
        let copies: BTreeSet<String> =
            copies.iter().filter_map(|copy| copy.slots.as_ref().map(text)).collect();
        if !copies.is_empty() {
            added.push(of_text(name.clone(), format!("{copies:?}")));
        }
    }
    let known: BTreeSet<&str> = old.keys().filter_map(|name| trait_of(name)).collect();
    let mut orders = orders(new);
    patched.keys().flat_map(|name| objects_in(name)).for_each(|name| {
        orders.entry(name).or_default();
    });
    let own = orders.iter().filter(|(name, _)| !known.contains(*name) && !is_fixed(name));
    added.extend(own.map(|(name, order)| {
        let unclear = (0..order.len()).filter(|slot| order[*slot].is_empty());
        let unclear: Vec<_> = unclear.map(|slot| held(new, name, slot)).collect();
        let text = if unclear.is_empty() { format!("{order:?}") } else { format!("{order:?} {unclear:?}") };
        of_text(format!("dyn {name}::{{methods}}"), text)
    }));
    added
}

/// What is in a slot of each table of a trait. Where no name tells which method it is, another patch has to have the very same there.
fn held(tables: &Vtables, name: &str, slot: usize) -> BTreeSet<String> {
    let of_trait = tables.iter().filter(|(table, _)| trait_of(table) == Some(name));
    let slots = of_trait.flat_map(|(_, copies)| copies).filter_map(|copy| copy.slots.as_ref());
    slots.filter_map(|slots| slots.get(FIXED + slot)).map(ToString::to_string).collect()
}

/// Whether each slot has a name that says so, and none has one of another slot.
fn is_same(old: &Order, new: &Order) -> bool {
    let meet = |i: usize, j: usize| !old[i].is_disjoint(&new[j]);
    let slots = 0..old.len();
    old.len() == new.len() && slots.clone().all(|i| slots.clone().all(|j| meet(i, j) == (i == j)))
}

/// Whether code of the patch handles objects of a trait.
fn handles(patched: &Graph, name: &str) -> bool {
    let path = name.split('<').next().unwrap_or(name);
    patched.keys().any(|named| named.contains("dyn ") && named.contains(path))
}

/// The traits of the objects that a type is about.
fn objects_in(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices("dyn ").map(|(at, word)| {
        let from = &name[at + word.len()..];
        let mut depth = 0;
        let end = from.char_indices().find(|(_, c)| {
            match c {
                '<' | '(' => depth += 1,
                '>' | ')' => depth -= 1,
                ',' | ' ' if depth == 0 => return true,
                _ => {}
            }
            depth < 0
        });
        &from[..end.map_or(from.len(), |(at, _)| at)]
    })
}

fn orders(tables: &Vtables) -> BTreeMap<&str, Order> {
    let mut orders: BTreeMap<&str, Order> = BTreeMap::new();
    for (name, copies) in tables {
        let Some(name) = trait_of(name) else { continue };
        for slots in copies.iter().filter_map(|copy| copy.slots.as_ref()) {
            let methods: Vec<Names> = slots.iter().skip(FIXED).map(names).collect();
            let order = orders.entry(name).or_default();
            order.resize(order.len().max(methods.len()), BTreeSet::new());
            // One name twice in a table is of two traits, or may be code of two methods that was merged.
            let once = |own: &Option<String>, kind: fn(&Names) -> &Option<String>| {
                let is_clear = methods.iter().filter(|other| kind(other) == own).count() == 1;
                own.clone().filter(|_| is_clear)
            };
            for (known, of) in order.iter_mut().zip(&methods) {
                known.extend(once(&of.own, |of| &of.own).or_else(|| once(&of.whole, |of| &of.whole)));
            }
        }
    }
    orders
}

/// Size, alignment and drop are in the first slots of each table.
const FIXED: usize = 3;

/// What a method is called, as far as the symbols of the function in its slot agree.
struct Names {
    own: Option<String>,
    /// With the trait and its arguments: a trait may have several supertraits that have a method of one name.
    whole: Option<String>,
}

fn names(slot: &Slot) -> Names {
    let agreed = |name: &dyn Fn(&str) -> String| {
        let mut names: BTreeSet<String> = match slot {
            Slot::Code(symbols, _) => symbols.iter().map(|symbol| name(&demangle(symbol))).collect(),
            Slot::Import(symbol) => [name(&demangle(symbol))].into(),
            Slot::Data => ["a table of a supertrait".to_owned()].into(),
            Slot::Number(_) | Slot::Unreadable => return None,
        };
        names.pop_first().filter(|_| names.is_empty())
    };
    Names { own: agreed(&|path| last(path).to_owned()), whole: agreed(&of_trait) }
}

/// A method's path with its trait in place of the type.
fn of_trait(path: &str) -> String {
    let item = ItemName::new(path, Hints::default());
    item.trait_path.map_or_else(|| path.to_owned(), |of| format!("{of}::{}", item.name))
}

#[cfg(test)]
mod tests {
    #[test]
    fn methods_of_traits_with_arguments() {
        assert_eq!(super::of_trait("<app::R as app::To<u32>>::to"), "app::To<u32>::to");
        assert_eq!(super::of_trait("app::To::to"), "app::To::to");
        assert_eq!(super::of_trait("b::<impl app::To<u64> for u8>::to"), "app::To<u64>::to");
    }

    #[test]
    fn traits_of_objects() {
        let objects = |name| super::objects_in(name).collect::<Vec<_>>();
        assert_eq!(objects("&mut dyn app::Rule"), ["app::Rule"]);
        assert_eq!(
            objects("alloc::boxed::Box<(dyn a::B<u8, u16> + core::marker::Send), C>"),
            ["a::B<u8, u16>"]
        );
        assert_eq!(objects("a::B<&dyn c::D, &dyn e::F>"), ["c::D", "e::F"]);
        assert!(objects("app::Rule").is_empty());
    }
}
