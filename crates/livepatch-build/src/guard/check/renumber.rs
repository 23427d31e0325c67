//! Closures and async blocks that may have got another number.

use crate::findings::{Finding, rules};
use crate::guard::names::closure_parents;
use crate::guard::side::Side;
use std::collections::BTreeSet;

/// For each redirected function that is (inside) a closure: its parents must have the same closures in both builds.
///
/// Neither symbols nor debug information tell closures of one parent apart other than by position, so any difference
/// counts, even one after the redirected closure: the added one may have come before it and pushed it on.
pub(in crate::guard) fn renumbered(old: &Side, new: &Side, redirected: usize) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    let pairs = old.functions[..redirected].iter().zip(&new.functions[..redirected]);
    for (before, after) in pairs.filter_map(|(before, after)| Some((before.as_ref()?, after.as_ref()?))) {
        let parents = closure_parents(&before.path).into_iter().zip(closure_parents(&after.path));
        for ((old_parent, _), (new_parent, _)) in parents {
            let empty = BTreeSet::new();
            let old_labels = old.closures.get(&old_parent).unwrap_or(&empty);
            let new_labels = new.closures.get(&new_parent).unwrap_or(&empty);
            if old_labels == new_labels {
                continue;
            }
            match findings.iter_mut().find(|finding| finding.item == new_parent) {
                Some(finding) => finding.used_by.push(after.path.clone()),
                None => findings.push(
                    Finding::new(&rules::renumbered::RULE, new_parent)
                        .at(after.place.clone())
                        .change("closures", text(old_labels), text(new_labels))
                        .used_by(after.path.clone()),
                ),
            }
        }
    }
    findings
}

fn text(labels: &BTreeSet<String>) -> Option<String> {
    let labels: Vec<String> = labels.iter().map(|label| format!("{{{label}}}")).collect();
    Some(if labels.is_empty() { "none".into() } else { labels.join(", ") })
}
