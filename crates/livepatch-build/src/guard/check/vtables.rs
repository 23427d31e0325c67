//! Vtables that both builds have.

use crate::findings::{Finding, rules};
use crate::guard::vtable::{Renamed, Slot, Vtable, Vtables};

/// Objects made by the running program keep their vtables, so each of those must be one of the new build, too.
pub(in crate::guard) fn vtables(old: &Vtables, new: &Vtables, renamed: &Renamed<'_>) -> Vec<Finding> {
    old.iter().filter_map(|(name, before)| compare(name, before, new.get(name)?, renamed)).collect()
}

fn compare(name: &str, old: &[Vtable], new: &[Vtable], renamed: &Renamed<'_>) -> Option<Finding> {
    let shown = name.strip_suffix("::{vtable}").unwrap_or(name);
    let lost = old.iter().find(|before| !new.iter().any(|after| agree(before, after, renamed)))?;
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

fn agree(old: &Vtable, new: &Vtable, renamed: &Renamed<'_>) -> bool {
    let all = |old: &[Slot], new: &[Slot]| old.iter().zip(new).all(|(old, new)| old.agrees(new, renamed));
    old.len == new.len
        && match (&old.slots, &new.slots) {
            (Some(old), Some(new)) => all(old, new),
            // Removed by the optimiser: no old object has it.
            (None, _) => true,
            (Some(_), None) => false,
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
