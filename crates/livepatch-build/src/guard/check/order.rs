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
use std::collections::{BTreeMap, BTreeSet};

/// For each slot of a trait's tables, the names of what is there. Where equal code was merged, a table may show the name of
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

fn orders(tables: &Vtables) -> BTreeMap<&str, Order> {
    let mut orders: BTreeMap<&str, Order> = BTreeMap::new();
    for (name, copies) in tables {
        let Some(name) = trait_of(name) else { continue };
        for slots in copies.iter().filter_map(|copy| copy.slots.as_ref()) {
            let methods: Vec<Option<String>> = slots.iter().skip(3).map(method).collect();
            let order = orders.entry(name).or_default();
            order.resize(order.len().max(methods.len()), BTreeSet::new());
            for (known, method) in order.iter_mut().zip(&methods) {
                // One name twice in a table may be code of two methods that was merged.
                let is_clear = methods.iter().filter(|other| *other == method).count() == 1;
                known.extend(method.clone().filter(|_| is_clear));
            }
        }
    }
    orders
}

/// The method in a slot, if the symbols of the function there agree on its name.
fn method(slot: &Slot) -> Option<String> {
    let mut names: BTreeSet<String> = match slot {
        Slot::Code(symbols, _) => symbols.iter().map(|symbol| last(&demangle(symbol)).to_owned()).collect(),
        Slot::Import(symbol) => [last(&demangle(symbol)).to_owned()].into(),
        Slot::Data => ["a table of a supertrait".to_owned()].into(),
        Slot::Number(_) | Slot::Unreadable => return None,
    };
    names.pop_first().filter(|_| names.is_empty())
}
