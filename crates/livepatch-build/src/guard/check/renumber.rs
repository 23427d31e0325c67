//! Closures and async blocks that may have got another number.

use crate::findings::{Finding, rules};
use crate::guard::names::{closure_parents, closure_scopes};
use crate::guard::side::Side;
use std::collections::BTreeSet;

/// For each redirected function that is (inside) a closure: its parents must have the same closures in both builds.
///
/// Neither symbols nor debug information tell closures of one parent apart other than by position, so any difference
/// counts, even one after the redirected closure: the added one may have come before it and pushed it on.
pub(in crate::guard) fn renumbered(old: &Side, new: &Side, redirected: usize) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    let scanned: BTreeSet<String> =
        old.functions.iter().flatten().flat_map(|f| closure_scopes(&f.path)).collect();
    let pairs = old.functions[..redirected].iter().zip(&new.functions[..redirected]);
    for (before, after) in pairs.filter_map(|(before, after)| Some((before.as_ref()?, after.as_ref()?))) {
        for (old_parent, new_parent) in parents(&before.path, &after.path, &scanned) {
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

/// The parents of a closure in both builds. Where equal code was merged, the old function may have the name of something
/// that is no closure; then the new one's parents are looked up in both.
fn parents(old: &str, new: &str, scanned: &BTreeSet<String>) -> Vec<(String, String)> {
    let of = |path| closure_parents(path).into_iter().map(|(parent, _)| parent);
    if of(old).next().is_some() {
        return of(old).zip(of(new)).collect();
    }
    of(new).filter(|parent| scanned.contains(parent)).map(|parent| (parent.clone(), parent)).collect()
}

fn text(labels: &BTreeSet<String>) -> Option<String> {
    let labels: Vec<String> = labels.iter().map(|label| format!("{{{label}}}")).collect();
    Some(if labels.is_empty() { "none".into() } else { labels.join(", ") })
}
