//! What the running program would lose: functions that nothing replaces, and variables that the patch would bring anew.

use crate::build::Build;
use crate::diff::Diff;
use crate::diff::call_sites::is_call_site;
use crate::diff::described::described;
use crate::diff::lost::Leftovers;
use crate::diff::program::At;
use crate::diff::variables;
use crate::emit::{self, Emitted};
use crate::findings::{Finding, rules};
use crate::guard::{self, GuardError, GuardReport};
use crate::source::is_foreign;
use livepatch_patch::NewItemKind;
use std::collections::{BTreeSet, HashMap};

/// Functions that would go on to run although they mean something else now.
///
/// # Errors
/// Debug information that cannot be read.
pub(super) fn functions(
    diff: &Diff<'_>,
    leftovers: &Leftovers,
    old: &Build,
) -> Result<Vec<Finding>, GuardError> {
    let lost = diff.lost(leftovers);
    let known = described(&diff.old, old, lost.iter().copied())?;
    let is_others = |at: &At| {
        let place = known.get(at).and_then(|info| info.place.as_ref());
        place.is_some_and(|place| is_foreign(&place.file))
    };
    let name = |at: &At| guard::demangle(emit::name_of(&diff.old, *at));
    let (others, own): (Vec<At>, Vec<At>) = lost.into_iter().partition(is_others);
    let own = own.iter().map(|at| Finding::new(&rules::lost::RULE, name(at)));
    let paths: BTreeSet<String> = others.iter().map(name).collect();
    Ok(own.chain(of_others(paths)).collect())
}

/// Generic code of a dependency: what it was compiled for is gone, and all of it for one reason.
fn of_others(paths: BTreeSet<String>) -> Option<Finding> {
    let mut paths = paths.into_iter();
    let mut finding = Finding::new(&rules::lost::RULE, paths.next()?);
    finding.reason = "it is generic code that was compiled for closures or adapters which the fixed source does not have, and its \
                      address was stored (in a queue, a task, a table of callbacks): the old code would still run through that"
        .into();
    finding.help =
        "keep the types, closures and adapters that it is made for, and put the change into their bodies (for a new \
         `.filter(p)` before `.map(f)`, let `f` yield what does not count where `p` fails); if other findings are about \
         types, begin with those"
            .into();
    Some(
        paths.fold(finding, |finding, path| {
            finding.change(format!("the same holds for `{path}`"), None, None)
        }),
    )
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

/// Variables whose running value is not where the new code would look for it.
pub(super) fn optimised(diff: &Diff<'_>, emitted: &Emitted, judged: &GuardReport) -> Vec<Finding> {
    let brought = emitted.brought.iter().filter(|item| item.kind != NewItemKind::Function);
    let brought: Vec<At> = brought.map(|item| item.at).filter(|at| !is_call_site(&diff.new, *at)).collect();
    let names = variables::optimised(diff, (&brought, &emitted.shared), &judged.functions);
    names.into_iter().map(|name| Finding::new(&rules::optimised::RULE, name)).collect()
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
