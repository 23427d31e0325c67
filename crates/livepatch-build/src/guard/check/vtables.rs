//! Vtables that both builds have.
//!
//! The optimiser removes a table that nothing refers to any more, and merges functions of equal code under one of their
//! names. So a table may be lost, or have other names, although nothing about it changed. That is no matter where the
//! trait and the type are the standard library's: no change of the program alters such a table, and the old one is right
//! as long as its functions are. For any other table it is not known what the fixed source would have in the slots (another
//! order of the methods, a newly overridden one, a new `Drop`), so it is refused.

use crate::findings::{Finding, rules};
use crate::guard::fixed::is_fixed;
use crate::guard::vtable::{Renamed, Slot, Vtable, Vtables};

/// Objects made by the running program keep their vtables, so each of those must be one of the new build, too.
pub(in crate::guard) fn vtables(old: &Vtables, new: &Vtables, renamed: &Renamed<'_>) -> Vec<Finding> {
    old.iter().filter_map(|(name, before)| compare(name, before, new.get(name)?, renamed)).collect()
}

fn compare(name: &str, old: &[Vtable], new: &[Vtable], renamed: &Renamed<'_>) -> Option<Finding> {
    let shown = name.strip_suffix("::{vtable}").unwrap_or(name);
    let fixed = is_fixed(shown);
    let holds = |old: &Slot, new: &Slot| old.agrees(new, renamed) || (fixed && old.stays(renamed));
    let gone = |old: &[Slot]| fixed && old.iter().all(|slot| slot.stays(renamed));
    let lost = old.iter().find(|before| !new.iter().any(|after| agree(before, after, &holds, &gone)))?;
    let nearest = new.iter().find(|after| after.slots.is_some()).or(new.first())?;
    let mut finding = Finding::new(&rules::vtable::RULE, shown);
    if lost.len != nearest.len {
        let text = |vtable: &Vtable| Some(vtable.len.to_string());
        finding = finding.change("number of slots", text(lost), text(nearest));
    }
    let slots = lost.slots.iter().flatten().zip(nearest.slots.iter().flatten());
    for (i, (before, after)) in
        slots.enumerate().filter(|(_, (before, after))| !before.agrees(after, renamed))
    {
        let (before, mut after) = (before.to_string(), after.to_string());
        if before == after {
            after.push_str(" (another function of that path)");
        }
        finding = finding.change(role(i), Some(before), Some(after));
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
