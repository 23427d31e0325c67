//! What is no obstacle, but has to be known where the patch is applied.

use super::describe::Builds;
use super::{CreateError, CreateReport, brought};
use crate::diff::call_sites::describes_call_site;
use crate::diff::names::is_mangled;
use crate::diff::once::{Initialiser, When};
use crate::diff::program::At;
use crate::diff::{Diff, Known, Meaning};
use crate::emit::{self, Emitted};
use crate::findings::{Finding, Place, rules};
use crate::guard::{self, FunctionInfo, GuardReport};
use crate::source;
use crate::units::is_in_program;
use livepatch_patch::{Meta, Note, Redirect};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Values that stay as they are, in the report and, for whoever applies it, in the patch.
pub(super) fn add(
    builds: &Builds<'_>,
    (diff, emitted): (&Diff<'_>, &Emitted),
    judged: &GuardReport,
    meta: &mut Meta,
    report: &mut CreateReport,
) -> Result<(), CreateError> {
    let of_what_is_gone = [rules::begins_anew::RULE.code, rules::removed::RULE.code];
    let gone = report.findings.iter().filter(|finding| of_what_is_gone.contains(&finding.code));
    meta.notes.extend(gone.map(|finding| note(finding, BTreeSet::new())));
    let variables = kept_values(diff).into_iter().map(|finding| (finding, BTreeSet::new()));
    // References to the description of a call site are in the site, which comes along.
    let constants = emitted.constants.iter().filter(|(at, _)| !describes_call_site(&diff.new, *at));
    let constants = constants.map(|(at, _)| {
        let path = guard::demangle(emit::name_of(&diff.new, *at));
        (Finding::new(&rules::constant_kept::RULE, path), BTreeSet::new())
    });
    let computed = computed_once(builds, &diff.meaning, emitted, judged, meta)?;
    let exports =
        new_exports(diff).map(|name| (Finding::new(&rules::new_export::RULE, name), BTreeSet::new()));
    for (finding, functions) in variables.chain(constants).chain(computed).chain(exports) {
        meta.notes.push(note(&finding, functions));
        report.findings.push(finding);
    }
    report.only_initialises = meta.only_initialises();
    Ok(())
}

/// Variables that keep their values although the initial ones changed.
pub(super) fn kept_values(diff: &Diff<'_>) -> Vec<Finding> {
    let finding = |(_, new): &(At, At)| {
        let name = guard::as_declared(&guard::demangle(emit::name_of(&diff.new, *new)));
        let finding = Finding::new(&rules::value_kept::RULE, name);
        match diff.new.section(*new).kind.is_tls() {
            true => finding.change("threads that start later begin with the old value, too", None, None),
            false => finding,
        }
    };
    diff.initialisers.iter().map(finding).collect()
}

/// What only the new build exports. Names of Rust's have a number of the compiler's in them: nobody asks for those when the program runs.
pub(super) fn new_exports<'a>(diff: &Diff<'a>) -> impl Iterator<Item = &'a str> {
    let names = diff.new.image.exports().difference(diff.old.image.exports());
    names.map(String::as_str).filter(|name| !is_mangled(name))
}

/// A note that goes into the patch, about these of its functions, or about all of it.
fn note(finding: &Finding, functions: BTreeSet<u32>) -> Note {
    Note {
        code: finding.code.to_string(),
        title: finding.title.clone(),
        item: finding.item.clone(),
        place: finding.place.as_ref().map(Place::to_string),
        reason: finding.reason.clone(),
        help: finding.help.clone(),
        functions: functions.into_iter().collect(),
    }
}

/// Finds what only takes effect where a value is not there yet, and marks the functions that do nothing else. Each
/// finding comes with the functions that it is about.
fn computed_once(
    builds: &Builds<'_>,
    known: &Known,
    emitted: &Emitted,
    judged: &GuardReport,
    meta: &mut Meta,
) -> Result<Vec<(Finding, BTreeSet<u32>)>, CreateError> {
    let Some(meaning) = known.any() else { return Ok(Vec::new()) };
    let lazies = guard::initialised_once(&builds.new.image, &meaning.holders())?;
    let manifest = &builds.new.manifest;
    let units = manifest.units.iter().filter(|unit| is_in_program(unit) && unit.local);
    let local: HashSet<String> = units.map(|unit| unit.crate_name.clone()).collect();
    let once = meaning.computed_once(&lazies, &local);
    let found = meaning.initialisers(&once);
    tracing::debug!(?found, "compute values that are kept");
    let telling = brought::Known::new(builds, judged, Some(meaning));
    meta.once = telling.once(&meaning.new_initialisers(&once));
    let symbol = |redirect: &Redirect| emitted.symbols[redirect.symbol.0 as usize].name.as_str();
    let held: Vec<Held<'_>> = meta.redirects.iter().map(|r| Held::of(symbol(r), meaning, judged)).collect();
    // Else the patch may do more than is known.
    if known.all().is_some_and(|meaning| meaning.tells_all(builds.source)) {
        let all = meaning.only_initialises(&found);
        for (redirect, held) in meta.redirects.iter_mut().zip(&held) {
            redirect.initialises = held.is_clear
                && match held.changed.is_empty() {
                    true => all,
                    false => held.changed.keys().all(|name| found.get(*name).is_some_and(|f| f.only)),
                };
        }
    }
    Ok(findings(&found, &held, meaning))
}

/// What of the change is in a replaced function.
struct Held<'h> {
    /// Changed functions that it is made of, by name, with path and place.
    changed: BTreeMap<&'h str, (&'h str, Option<&'h Place>)>,
    /// Whether that is all that it is made of.
    is_clear: bool,
}

impl<'h> Held<'h> {
    fn of(symbol: &'h str, meaning: &'h Meaning, judged: &'h GuardReport) -> Self {
        let mut held = Self { changed: BTreeMap::new(), is_clear: false };
        let Some(info) = judged.functions.iter().find(|info| info.symbol == symbol) else { return held };
        held.is_clear = info.inlined.iter().all(|inlined| inlined.symbol.is_some());
        for (symbol, path, place) in parts(info) {
            if meaning.is_changed(symbol) {
                held.changed.insert(meaning.key(symbol), (path, place));
            }
        }
        held
    }
}

pub(super) fn parts(info: &FunctionInfo) -> impl Iterator<Item = (&str, &str, Option<&Place>)> {
    let own = (info.symbol.as_str(), info.path.as_str(), info.place.as_ref());
    let inlined =
        info.inlined.iter().filter_map(|f| Some((f.symbol.as_deref()?, &*f.path, f.place.as_ref())));
    inlined.chain([own])
}

/// Path of a function, and that of the variable that keeps what it computes; nothing if it runs once.
type Computed = (String, Option<Option<String>>);

/// One finding for each function in the source and each variable that keeps what it computes.
fn findings(
    found: &BTreeMap<String, Initialiser>,
    held: &[Held<'_>],
    meaning: &Meaning,
) -> Vec<(Finding, BTreeSet<u32>)> {
    let mut all: BTreeMap<Computed, (Option<Place>, BTreeSet<u32>)> = BTreeMap::new();
    for (name, initialiser) in found {
        let holders =
            || held.iter().enumerate().filter_map(|(at, held)| Some((at, held.changed.get(&**name)?)));
        // The place of what a macro made is in the macro.
        let own = |place: &&Place| !source::is_foreign(&place.file);
        let described =
            holders().next().map(|(_, (path, place))| ((*path).to_owned(), place.filter(own).cloned()));
        let (path, place) = described.unwrap_or_else(|| (guard::demangle(meaning.new_name(name)), None));
        let keeper = match &initialiser.when {
            When::Asked(keeper) => Some(keeper.as_deref().map(guard::demangle)),
            When::RunsOnce => None,
        };
        let entry = all.entry((of_macro(&path).to_owned(), keeper)).or_insert((place, BTreeSet::new()));
        entry.1.extend(holders().map(|(at, _)| at as u32));
    }
    let finding = |((path, keeper), (place, functions)): (Computed, (Option<Place>, _))| {
        let Some(keeper) = keeper else {
            return (Finding::new(&rules::runs_once::RULE, path).at(place), functions);
        };
        let mut finding = Finding::new(&rules::computed_once::RULE, path).at(place);
        if let Some(keeper) = keeper {
            finding.title.push_str(&format!(" in `{keeper}`"));
        }
        (finding, functions)
    };
    all.into_iter().map(finding).collect()
}

/// A path without the name that a macro (`thread_local!`, `lazy_static!`) gave to a function.
pub(super) fn of_macro(path: &str) -> &str {
    path.rsplit_once("::__").filter(|(_, name)| !name.contains("::")).map_or(path, |(item, _)| item)
}

#[cfg(test)]
mod tests {
    use super::of_macro;

    #[test]
    fn names_of_macros_are_left_out() {
        assert_eq!(of_macro("app::NAME::__rust_std_internal_init_fn"), "app::NAME");
        assert_eq!(of_macro("app::NAME::__init::{closure#0}"), "app::NAME::__init::{closure#0}");
        assert_eq!(of_macro("app::load"), "app::load");
    }
}
