//! Functions whose code differs, but not because of the change.
//!
//! rustc divides a crate into code units by estimated size, so one more statement somewhere can move the borders, and
//! with them what is inlined where: dozens of functions get other code that does the same. Replacing those is correct
//! but useless, and harmful where one of them is never idle.
//!
//! A function is left out only if the change does not reach it, as raw code tells (`meaning.rs`) or, where there is none of
//! all that differs, the source (`by_source.rs`); and if it cannot have been compiled for what the compiler knew about the old
//! code of a replaced function that it calls, directly or not (`knowledge.rs`), or about a variable that the change touches
//! (`variables.rs`).
//!
//! The running code of a function left out is what the compiler made of the same source, so it does what the new code
//! would do. Where the patch calls it, and its calling convention may have been altered, the patch carries a copy of
//! the new code for its own use.

use super::apart;
use super::by_source::BySource;
use super::callers;
use super::described::described;
use super::knowledge::{Callers, Lost};
use super::links;
use super::meaning::{ByMeaning, Known, Meaning};
use super::program::{At, Program};
use super::variables::{Touched, declared};
use super::{Changed, CopySet, Diff};
use crate::build::{Build, Input};
use crate::emit::name_of;
use crate::guard::{FunctionInfo, GuardError, demangle};
use crate::objects::changed_inputs;
use crate::source::{Change, Side, SourceDiff};
use std::collections::{HashMap, HashSet};

/// Tells what a change can reach.
pub(super) trait Judge {
    /// Whether the change may have got into this function.
    fn may_reach(&self, at: At, side: Side) -> bool;

    /// Whether a function differs because of the change.
    fn is_real(&self, change: &Changed) -> bool {
        self.may_reach(change.old, Side::Old) || self.may_reach(change.new, Side::New)
    }

    /// Whether the initial value of this variable is another because of the change.
    fn is_changed_variable(&self, symbol: &str) -> bool;
}

/// What debug information says of the functions in question.
pub(super) struct Infos {
    pub old: HashMap<At, FunctionInfo>,
    pub new: HashMap<At, FunctionInfo>,
}

impl Infos {
    fn read(
        diff: &Diff<'_>,
        unpaired: &HashSet<At>,
        (old_build, new_build): (&Build, &Build),
    ) -> Result<Self, GuardError> {
        let copies = |on| {
            diff.unsettled.iter().flat_map(copies).filter_map(move |(side, at)| (side == on).then_some(at))
        };
        let old: Vec<At> = diff
            .changed
            .iter()
            .map(|c| c.old)
            .chain(copies(Side::Old))
            .chain(unpaired.iter().copied())
            .collect();
        let new: Vec<At> = diff.changed.iter().map(|c| c.new).chain(copies(Side::New)).collect();
        let (old, new) = rayon::join(
            || described(&diff.old, old_build, old.into_iter()),
            || described(&diff.new, new_build, new.into_iter()),
        );
        Ok(Self { old: old?, new: new? })
    }

    pub(super) fn of(&self, side: Side) -> &HashMap<At, FunctionInfo> {
        if side == Side::Old { &self.old } else { &self.new }
    }
}

/// Takes functions that the change does not reach out of `diff.changed` and `diff.unsettled`.
///
/// # Errors
/// Debug information that cannot be read.
pub fn set_aside(
    diff: &mut Diff<'_>,
    (old_build, new_build): (&Build, &Build),
    source: &SourceDiff,
) -> Result<(), GuardError> {
    if *source.change() == Change::Nothing {
        return Ok(());
    }
    let unpaired = diff.unpaired();
    let infos = Infos::read(diff, &unpaired, (old_build, new_build))?;
    if let Some(meaning) = diff.meaning.any_mut() {
        meaning.forget_lines(&infos, source);
    }
    if let Known::All(meaning) = &mut diff.meaning {
        let gone = unpaired.iter().map(|at| diff.old.key(name_of(&diff.old, *at))).collect();
        meaning.forget_instances(&infos, &gone);
    }
    let crates = changed_crates(old_build, new_build);
    let meaning = diff.meaning.all().filter(|meaning| meaning.tells_all(source));
    let by_meaning = meaning.is_some();
    let same_meaning = matches!(source.change(), Change::Items(_)) && meaning.is_some_and(Meaning::is_same);
    let judge: Box<dyn Judge> = match meaning {
        Some(meaning) => Box::new(ByMeaning { meaning, diff, source, crates: &crates, infos: &infos }),
        None => Box::new(BySource::new(diff, source, &crates, &infos)),
    };
    let is_noise = |(_, new): &(At, At)| !judge.is_changed_variable(name_of(&diff.new, *new));
    let variables: HashSet<At> =
        diff.initialisers.iter().filter(|pair| is_noise(pair)).map(|(_, new)| *new).collect();
    let (mut real, aside): (Vec<_>, Vec<_>) =
        diff.changed.iter().copied().partition(|change| judge.is_real(change));
    let touched = diff.meaning.any().map(|meaning| Touched::new(meaning, diff));
    let merged = diff.meaning.any().map(|meaning| links::to_merged(diff, (meaning, &infos), (&real, &aside)));
    let merged = merged.unwrap_or_default();
    let mut linked = links::to_stale(diff, &unpaired, &*judge);
    linked.extend(merged.callers);
    let mut compiled_for = taken_along(diff, &infos, (&real, &aside), (&linked, touched.as_ref()));
    let (along, mut aside): (Vec<_>, Vec<_>) =
        aside.into_iter().partition(|change| compiled_for.contains_key(&change.old));
    real.extend(along);
    let parted = loop {
        let apart = apart::apart(diff, (&infos, &unpaired), (&real, &aside));
        let (along, rest): (Vec<_>, Vec<_>) =
            aside.into_iter().partition(|change| apart.callers.contains_key(&change.old));
        aside = rest;
        if along.is_empty() {
            break apart.parted;
        }
        let callee = |at: &At| demangle(name_of(&diff.old, apart.callers[at]));
        compiled_for.extend(along.iter().map(|change| (change.old, callee(&change.old))));
        real.extend(along);
    };
    let resting = resting_on(diff, &real, &infos);
    let is_reached = |set: &CopySet| {
        let rests =
            |side, at| touched.as_ref().is_some_and(|touched| touched.is_in((side, at), diff, &infos));
        set.old.iter().any(|at| resting.contains_key(at))
            || copies(set).any(|(side, at)| judge.may_reach(at, side) || rests(side, at))
    };
    let unsettled: Vec<CopySet> = diff.unsettled.iter().filter(|set| is_reached(set)).cloned().collect();
    let touched = touched.as_ref().map(Touched::names).unwrap_or_default();
    // Generic code of a dependency that was compiled for a type which nothing is made for any more does what it did.
    let otherwise = |at: &At| judge.may_reach(*at, Side::Old);
    let called_otherwise = diff.called_otherwise.iter().copied().filter(otherwise).collect();
    drop(judge);
    diff.called_otherwise = called_otherwise;
    diff.touched = touched;
    (diff.linked, diff.merged) = (linked, merged.addresses);
    diff.initialisers.retain(|(_, new)| !variables.contains(new));
    // Something changed in the source and something differs in the code, so not all of it can be beside the point, unless raw code shows
    // that the new text does what the old one did.
    if real.is_empty() && !same_meaning {
        return Ok(());
    }
    let (back, rest): (Vec<_>, Vec<_>) =
        aside.into_iter().partition(|change| resting.contains_key(&change.old));
    let names = |list: &[Changed]| list.iter().map(|c| name_of(&diff.new, c.new)).collect::<Vec<_>>();
    tracing::debug!(by_meaning, reached = ?names(&real), calls_those = ?names(&back), aside = rest.len(), "set aside");
    let callee = |at: &At| demangle(name_of(&diff.old, resting[at]));
    compiled_for.extend(back.iter().map(|change| (change.old, callee(&change.old))));
    diff.compiled_for = compiled_for;
    real.extend(back);
    aside = rest;
    diff.unsettled = unsettled;
    leave_out(diff, &aside);
    diff.changed = real;
    diff.part(&parted);
    Ok(())
}

/// Functions that mean what they meant and have to be replaced all the same, by their old code: each with what that leads to by mistake, or with
/// the variable that it may have been compiled for.
fn taken_along(
    diff: &Diff<'_>,
    infos: &Infos,
    (real, aside): (&[Changed], &[Changed]),
    (linked, touched): (&HashMap<At, At>, Option<&Touched<'_>>),
) -> HashMap<At, String> {
    let why = |change: &Changed| {
        if let Some(callee) = linked.get(&change.old) {
            return Some(demangle(name_of(&diff.old, *callee)));
        }
        let touched = touched.filter(|_| !real.is_empty())?;
        touched.by(change, diff, infos).map(|variable| declared(&demangle(variable)))
    };
    aside.iter().filter_map(|change| Some((change.old, why(change)?))).collect()
}

/// The running code of these stays; where it may be called by name, new code calls it.
fn leave_out(diff: &mut Diff<'_>, aside: &[Changed]) {
    for change in aside {
        if is_global(&diff.old, change.old) && is_global(&diff.new, change.new) {
            diff.twins.insert(change.new, change.old);
        }
        diff.repartitioned.push(change.new);
    }
}

/// Names of the crates whose objects differ, as paths begin with them.
fn changed_crates(old: &Build, new: &Build) -> HashSet<String> {
    let (old, new) = changed_inputs(old, new);
    let file = |input: &&Input| input.path.rsplit('/').next().unwrap_or_default().to_owned();
    let names = old.iter().chain(&new).map(file);
    names
        .filter_map(|file| {
            let name = file.strip_prefix("lib").filter(|_| file.ends_with(".rlib")).unwrap_or(&file);
            Some(name.split_once('-')?.0.to_owned())
        })
        .collect()
}

fn copies(set: &CopySet) -> impl Iterator<Item = (Side, At)> {
    let old = set.old.iter().map(|at| (Side::Old, *at));
    old.chain(set.new.iter().map(|at| (Side::New, *at)))
}

/// Whether the optimiser had to leave its calling convention alone, as anybody may call it.
fn is_global(program: &Program<'_>, at: At) -> bool {
    !callers::is_local(program, at)
}

/// The replaced functions, and those that may rest on what the compiler knew about their old code, each with the one that it
/// calls on the way.
fn resting_on(diff: &Diff<'_>, replaced: &[Changed], infos: &Infos) -> HashMap<At, At> {
    let lost = |change: &Changed| {
        let (old, new) = ((&diff.old, change.old), (&diff.new, change.new));
        (change.old, Lost::between(old, new, infos.old.get(&change.old)))
    };
    let mut resting = Callers::new(&diff.old).resting_on(replaced.iter().map(lost));
    resting.extend(replaced.iter().map(|change| (change.old, change.old)));
    resting
}
