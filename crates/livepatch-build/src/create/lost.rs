//! What the running program would lose: functions that nothing replaces, and variables that the patch would bring anew.

use crate::diff::Diff;
use crate::diff::call_sites::is_call_site;
use crate::diff::program::At;
use crate::emit::{self, Emitted};
use crate::findings::{Finding, rules};
use crate::guard;
use livepatch_patch::NewItemKind;
use std::collections::{BTreeSet, HashMap};

/// Functions that would go on to run although they mean something else now.
pub(super) fn functions(diff: &Diff<'_>) -> Vec<Finding> {
    let name = |at: &At| guard::demangle(emit::name_of(&diff.old, *at));
    diff.lost().iter().map(|at| Finding::new(&rules::lost::RULE, name(at))).collect()
}

/// Variables that the patch would bring in although the image has one of that path, which the new program lacks: their
/// symbol changed, as it does with their type, and the running value would be lost. That of a call site is a cache.
pub(super) fn variables(diff: &Diff<'_>, emitted: &Emitted) -> Vec<Finding> {
    let brought: Vec<_> = emitted
        .brought
        .iter()
        .filter(|item| item.kind != NewItemKind::Function)
        .filter(|item| !is_call_site(&diff.new, item.at))
        .map(|item| emit::name_of(&diff.new, item.at))
        .map(guard::demangle)
        .collect();
    if brought.is_empty() {
        return Vec::new();
    }
    let is_gone = |name: &str| diff.new.image.symbols(name).is_empty();
    let variables = diff.old.image.all_symbols().filter(|(_, list)| list.iter().any(|symbol| !symbol.code));
    let mut gone: HashMap<String, usize> = HashMap::new();
    for (name, _) in variables.filter(|(name, _)| is_gone(name)) {
        *gone.entry(guard::demangle(name)).or_default() += 1;
    }
    let finding = |path: String| match gone.get(&path)? {
        1 => Some(Finding::new(&rules::static_type::RULE, path)),
        _ => Some(alike(path)),
    };
    brought.into_iter().filter_map(finding).collect()
}

/// Several variables of one path, all with other symbols: not their types changed, but something before them.
fn alike(path: String) -> Finding {
    let mut finding = Finding::new(&rules::static_type::RULE, path);
    finding.title = format!("the variables `{}` cannot be told apart", finding.item);
    finding.reason = "several variables of that path have other symbols in the fixed build, as after an impl block was added, moved \
                      or removed before them, and nothing tells which of them keeps which value"
        .into();
    finding.help =
        "put new impl blocks behind the existing ones of the module, and leave existing ones in place".into();
    finding
}

/// Items of one name in one function, of which it is not known which continues which.
pub(super) fn doubtful(diff: &Diff<'_>, variables: &[At], functions: &[At]) -> Vec<Finding> {
    let variables = variables.iter().map(|at| emit::name_of(&diff.new, *at));
    let functions = functions.iter().map(|at| emit::name_of(&diff.old, *at));
    let paths: BTreeSet<String> = variables.chain(functions).map(guard::demangle).collect();
    paths.into_iter().map(|path| Finding::new(&rules::numbered::RULE, path)).collect()
}
