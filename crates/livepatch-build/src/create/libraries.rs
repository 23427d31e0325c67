//! Libraries that the rebuilt program needs and the running one never asked for.

use crate::diff::Diff;
use crate::emit::Emitted;
use crate::findings::{Finding, rules};
use livepatch_patch::{Place, Symbol};

/// The libraries that new imports of the patch may be of.
pub(super) fn needed(diff: &Diff<'_>, emitted: &Emitted) -> Vec<String> {
    let (old, new) = (diff.old.image, diff.new.image);
    let is_new = |symbol: &Symbol| {
        matches!(symbol.place, Place::Import { got: None, .. }) && old.import(&symbol.name).is_none()
    };
    if !emitted.symbols.iter().any(is_new) {
        return Vec::new();
    }
    new.needed.iter().filter(|name| !old.needed.contains(name)).cloned().collect()
}

/// What there is to know about them.
pub(super) fn findings(libraries: &[String]) -> Vec<Finding> {
    let finding = |name: &String| {
        let by_path = name.contains(['/', '$']);
        Finding::new(if by_path { &rules::library_path::RULE } else { &rules::library::RULE }, name.clone())
    };
    libraries.iter().map(finding).collect()
}
