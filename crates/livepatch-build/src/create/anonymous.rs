//! What a patch would replace or share in anonymous constants that may have other numbers.

use crate::diff::Diff;
use crate::diff::anonymous::leads_into;
use crate::emit::{Emitted, name_of};
use crate::findings::{Finding, rules};
use crate::guard::{GuardReport, demangle};
use std::collections::BTreeMap;

/// Refuses what is paired by such a number, one finding for each module, in the place of what the guard found by these names.
pub(super) fn refuse(diff: &Diff<'_>, emitted: &Emitted, judged: &mut GuardReport) -> Vec<Finding> {
    let scopes = diff.renumbered_constants();
    if scopes.is_empty() {
        return Vec::new();
    }
    tracing::debug!(?scopes, "anonymous constants may have other numbers");
    let replaced: Vec<&str> =
        emitted.replaced.iter().map(|replaced| name_of(&diff.new, replaced.new)).collect();
    let infos = judged.functions.iter().filter(|info| replaced.contains(&info.symbol.as_str()));
    let described = infos.flat_map(|info| [Some(info.path.clone()), info.receiver.clone()]).flatten();
    let shared = emitted.shared.iter().map(|(_, new)| demangle(name_of(&diff.new, *new)));
    let mut used: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for name in described.chain(shared).chain(replaced.iter().map(|symbol| demangle(symbol))) {
        if let Some(scope) = leads_into(&name, &scopes) {
            used.entry(scope).or_default().push(name);
        }
    }
    judged
        .findings
        .retain(|finding| leads_into(&finding.item, &scopes).is_none_or(|scope| !used.contains_key(scope)));
    used.into_iter().map(|(scope, names)| finding(scope, names)).collect()
}

fn finding(scope: &str, names: Vec<String>) -> Finding {
    let module = scope.strip_suffix("::_").unwrap_or(scope);
    let mut finding = Finding::new(&rules::numbered::RULE, scope);
    finding.title = format!("it is not clear which `const _` of `{module}` continues which running one");
    finding.reason = "what is declared in them (most derives expand to one) is told apart only by their order, and one was added, moved \
                      or removed before others"
        .into();
    finding.help = "put a type with a new derive, or a new `const _`, behind the existing ones of the module, or into a module of its own, \
                    and leave existing ones in place"
        .into();
    names.into_iter().for_each(|name| {
        if !finding.used_by.contains(&name) {
            finding.used_by.push(name);
        }
    });
    finding
}
