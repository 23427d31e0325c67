//! Vtables that both builds have.
//!
//! The optimiser removes a table that nothing refers to any more, and merges functions of equal code under one of their
//! names. So a table may be lost, or have other names, although nothing about it changed. That is no matter where the
//! trait and the type are the standard library's, or of dependencies that are in both builds: no change of the program alters such a
//! table, and the old one is right as long as its functions are. For any other table it is not known what the fixed source would have in
//! the slots (another order of the methods, a newly overridden one, a new `Drop`), so it is refused.
//!
//! A slot with a merged function holds whichever of them survived. Its names may be others in the new build, but if its code is equal
//! and goes on to run, old objects get from the old slot what new ones get from the new one.

use crate::findings::{Finding, rules};
use crate::guard::SameCode;
use crate::guard::fixed::is_fixed_with;
use crate::guard::vtable::{Renamed, Slot, Vtable, Vtables};
use std::collections::{BTreeSet, HashSet};

/// What makes functions of other symbols the same.
pub(in crate::guard) struct Ways<'w> {
    pub renamed: &'w Renamed<'w>,
    pub same_code: &'w SameCode<'w>,
    /// Dependencies of which both builds have the same version.
    pub unchanged: &'w BTreeSet<String>,
}

impl Ways<'_> {
    /// Whether an old object's slot leads to what a new one's does: the same function, or one that the optimiser merged it with.
    fn agree(&self, old: &Slot, new: &Slot) -> bool {
        let equal = |old: &Slot, new: &Slot| match (old, new) {
            (Slot::Code(_, old), Slot::Code(_, new)) => (self.same_code)(*old, *new),
            _ => false,
        };
        old.agrees(new, self.renamed) || equal(old, new)
    }
}

/// Objects made by the running program keep their vtables, so each of those must be one of the new build, too.
pub(in crate::guard) fn vtables(
    old: &Vtables,
    new: &Vtables,
    ways: &Ways<'_>,
    brought: &HashSet<&str>,
) -> Vec<Finding> {
    let found = old.iter().filter_map(|(name, before)| match new.get(name) {
        Some(after) => compare(name, before, after, ways),
        None => moved(name, before, (old, new), ways, brought),
    });
    found.collect()
}

/// The table of a type that has another name because impl blocks before it were added or removed: rustc numbers them. It
/// is the same type, so its old objects must get to what is new in the slots.
fn moved(
    name: &str,
    before: &[Vtable],
    (old, new): (&Vtables, &Vtables),
    ways: &Ways<'_>,
    brought: &HashSet<&str>,
) -> Option<Finding> {
    let plain = without_impl_numbers(name).filter(|_| before.iter().any(|table| table.slots.is_some()))?;
    let is_new = |slot: &Slot| match slot {
        Slot::Code(names, _) => names.iter().any(|name| brought.contains(name.as_str())),
        _ => false,
    };
    let is_lost = |old: &Vtable, new: &Vtable| {
        let slots = old.slots.iter().flatten().zip(new.slots.iter().flatten());
        old.len != new.len || slots.into_iter().any(|(old, new)| is_new(new) && !ways.agree(old, new))
    };
    let mut others = new.iter().filter(|(other, _)| {
        !old.contains_key(*other) && without_impl_numbers(other).as_ref() == Some(&plain)
    });
    let lost = others.clone().next().is_some()
        && others.all(|(_, after)| before.iter().any(|old| after.iter().all(|new| is_lost(old, new))));
    let mut finding = Finding::new(&rules::vtable::RULE, name.strip_suffix("::{vtable}").unwrap_or(name));
    finding.help =
        "put new impl blocks behind the existing ones of the module, and leave existing ones in place".into();
    let what = "impl blocks before it have other numbers, and its functions are not those of the old objects";
    lost.then(|| finding.change(what, None, None))
}

/// A name with each `{impl#7}` as `{impl}`, or `None` if there is none.
fn without_impl_numbers(name: &str) -> Option<String> {
    let mut parts = name.split("{impl#");
    let mut plain = parts.next()?.to_owned();
    for part in parts.clone() {
        plain.push_str("{impl");
        plain.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    parts.next().map(|_| plain)
}

fn compare(name: &str, old: &[Vtable], new: &[Vtable], ways: &Ways<'_>) -> Option<Finding> {
    let shown = name.strip_suffix("::{vtable}").unwrap_or(name);
    let fixed = is_fixed_with(shown, ways.unchanged);
    let holds = |old: &Slot, new: &Slot| ways.agree(old, new) || (fixed && old.stays(ways.renamed));
    let gone = |old: &[Slot]| fixed && old.iter().all(|slot| slot.stays(ways.renamed));
    let lost = old.iter().find(|before| !new.iter().any(|after| agree(before, after, &holds, &gone)))?;
    let nearest = new.iter().find(|after| after.slots.is_some()).or(new.first())?;
    let mut finding = Finding::new(&rules::vtable::RULE, shown);
    if lost.len != nearest.len {
        let text = |vtable: &Vtable| Some(vtable.len.to_string());
        finding = finding.change("number of slots", text(lost), text(nearest));
    }
    let slots = lost.slots.iter().flatten().zip(nearest.slots.iter().flatten());
    for (i, (before, after)) in slots.enumerate().filter(|(_, (before, after))| !ways.agree(before, after)) {
        let (before, mut after) = (before.to_string(), after.to_string());
        if before == after {
            after.push_str(" (another function of that path)");
        }
        finding = finding.change(role(i), Some(before), Some(after));
    }
    if shown.contains("{closure_env#") || shown.contains("{async_") {
        finding.reason = "boxed closures and futures that were made already keep their old vtable: another body, other captures or another place \
                          among those of the function is not what they stand for"
            .into();
        finding.help = "keep the captures of the closures and async bodies of that function and their order, and add new ones behind them; what \
                        is new can come from a static or an argument"
            .into();
    }
    if finding.changes.is_empty() {
        finding = finding.change("the fixed build has no such table to compare with", None, None);
    }
    Some(finding)
}

/// Whether old objects can go on with the old table, given what makes slots agree and which slots need no new ones.
fn agree(
    old: &Vtable,
    new: &Vtable,
    holds: &dyn Fn(&Slot, &Slot) -> bool,
    gone: &dyn Fn(&[Slot]) -> bool,
) -> bool {
    old.len == new.len
        && match (&old.slots, &new.slots) {
            (Some(old), Some(new)) => old.iter().zip(new).all(|(old, new)| holds(old, new)),
            // Removed by the optimiser: no old object has it.
            (None, _) => true,
            (Some(old), None) => gone(old),
        }
}

fn role(slot: usize) -> String {
    match slot {
        0 => "drop function".into(),
        1 => "size of the type".into(),
        2 => "alignment of the type".into(),
        slot => format!("slot {slot}"),
    }
}
