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
use crate::image::ImageSymbol;
use crate::source::is_foreign;
use livepatch_patch::NewItemKind;
use std::collections::{BTreeMap, BTreeSet};

/// Functions that would go on to run although they mean something else now.
///
/// # Errors
/// Debug information that cannot be read.
pub(super) fn functions(
    diff: &Diff<'_>,
    leftovers: &Leftovers,
    old: &Build,
    unchanged: &BTreeSet<String>,
) -> Result<Vec<Finding>, GuardError> {
    let mut lost = diff.lost(leftovers);
    let known = described(&diff.old, old, lost.iter().copied())?;
    // Of generic code of libraries for their own types nothing can have changed: it was another instance that came.
    lost.retain(|at| !known.get(at).is_some_and(|info| guard::is_fixed_with(&info.path, unchanged)));
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

/// Notes about functions of the program that are gone, and that it may keep the addresses of.
///
/// # Errors
/// Debug information that cannot be read.
pub(super) fn removed(
    diff: &Diff<'_>,
    leftovers: &Leftovers,
    old: &Build,
) -> Result<Vec<Finding>, GuardError> {
    let removed = diff.removed(leftovers);
    let known = described(&diff.old, old, removed.iter().copied())?;
    // What libraries make of the program's items says nothing that these do not say.
    let own = removed.iter().filter_map(|at| {
        let place = known.get(at)?.place.clone().filter(|place| !is_foreign(&place.file))?;
        Some((guard::demangle(emit::name_of(&diff.old, *at)), place))
    });
    let own: BTreeMap<String, _> = own.collect();
    Ok(own
        .into_iter()
        .map(|(path, place)| Finding::new(&rules::removed::RULE, path).at(Some(place)))
        .collect())
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

/// A variable by its path.
type ByPath<T> = BTreeMap<String, T>;

/// Variables that the patch brings, with their sizes, but for those of call sites, which are caches.
fn brought(diff: &Diff<'_>, emitted: &Emitted) -> ByPath<u64> {
    let variables = emitted.brought.iter().filter(|item| item.kind != NewItemKind::Function);
    let variables = variables.filter(|item| !is_call_site(&diff.new, item.at));
    let path = |at: At| guard::demangle(emit::name_of(&diff.new, at));
    variables.map(|item| (path(item.at), diff.new.section(item.at).size)).collect()
}

/// Data of the running program whose symbols the new program lacks.
fn gone<'d>(diff: &'d Diff<'_>) -> ByPath<Vec<&'d ImageSymbol>> {
    let mut gone: ByPath<Vec<&ImageSymbol>> = BTreeMap::new();
    for (name, list) in diff.old.image.all_symbols() {
        if diff.new.image.symbols(name).is_empty()
            && let Some(symbol) = list.iter().find(|symbol| !symbol.code)
        {
            gone.entry(guard::demangle(name)).or_default().push(symbol);
        }
    }
    gone
}

/// Variables that the patch would bring in although the image has one of that path, which the new program lacks: their
/// symbol changed, as it does with their type, and the running value would be lost. Besides, notes about those that take the
/// place of one of another path.
pub(super) fn variables(diff: &Diff<'_>, emitted: &Emitted) -> Vec<Finding> {
    let brought = brought(diff, emitted);
    if brought.is_empty() {
        return Vec::new();
    }
    let gone = gone(diff);
    let finding = |(path, size): (String, u64)| match gone.get(&path).map(Vec::len) {
        Some(1) => Some(Finding::new(&rules::static_type::RULE, path)),
        Some(_) => Some(alike(path)),
        None => begins_anew(&guard::as_declared(&path), size, &gone),
    };
    brought.into_iter().filter_map(finding).collect()
}

/// A note if a new variable takes the place of one that is gone.
fn begins_anew(path: &str, size: u64, gone: &ByPath<Vec<&ImageSymbol>>) -> Option<Finding> {
    let variables = gone.iter().filter(|(_, list)| !list[0].constant);
    let mut variables = variables.map(|(before, list)| (guard::as_declared(before), list[0].size));
    let (before, _) = variables.find(|(before, old_size)| {
        let (by_name, by_place) = guard::are_alike(before, path);
        by_name != by_place && (by_name || *old_size == size)
    })?;
    let what = format!("nothing reads what `{before}` holds, which the fixed source does not have");
    Some(Finding::new(&rules::begins_anew::RULE, path).change(what, None, None))
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
