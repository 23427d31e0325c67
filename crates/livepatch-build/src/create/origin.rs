//! What a selection has to know of each replaced function: its name in the source, the changed items in it (`create/held.rs`),
//! and which other functions it cannot be parted from.
//!
//! An old function that stays must not rest on what the compiler knew about an old function that goes, nor a new one on
//! what it knew about a new one that does not come (`diff/knowledge.rs`); nor on what it knew of a variable (`diff/variables.rs`).

use super::describe::{Builds, changed_function};
use super::held::Source;
use crate::diff::Diff;
use crate::diff::compare::{Ref, reference};
use crate::diff::knowledge::{Callers, Lost};
use crate::diff::program::{At, Program};
use crate::diff::variables::Touched;
use crate::emit::{Emitted, Replaced, name_of};
use crate::guard::{self, FunctionInfo, GuardReport};
use crate::source::{Change, Side};
use livepatch_patch::item::{Hints, ItemName};
use livepatch_patch::{Constant, NewItemKind, Origin};
use std::collections::{BTreeSet, HashMap};

/// Constants of the image that the patch brings with another value.
pub(super) fn constants(diff: &Diff<'_>, emitted: &Emitted) -> Vec<Constant> {
    let constant =
        |(at, symbol): &(At, _)| Constant { path: guard::demangle(name_of(&diff.new, *at)), symbol: *symbol };
    emitted.constants.iter().map(constant).collect()
}

/// Why no part of the patch stands by itself, whatever the part.
pub(super) fn indivisible(builds: &Builds<'_>) -> Option<String> {
    match builds.source.change() {
        _ if builds.source.items().is_some() => None,
        Change::Items(_) => None,
        Change::Everything { reason } => {
            Some(format!("which functions the change in the source reaches is not known ({reason})"))
        }
        Change::Nothing => Some("what changed is not in the sources of the program".into()),
    }
}

/// One origin for each function, in the same order.
pub(super) fn origins(
    builds: &Builds<'_>,
    (diff, emitted): (&Diff<'_>, &Emitted),
    functions: &[&Replaced],
    judged: &GuardReport,
) -> Vec<Origin> {
    let Some((items, tainted)) = builds.source.items() else {
        let alone = |replaced: &&Replaced| {
            let info = info_of(diff, replaced, judged);
            let receiver = info.and_then(|info| info.receiver.as_deref());
            let item = name(name_of(&diff.new, replaced.new), info.map(|info| info.path.as_str()), receiver);
            Origin { holds: vec![item.clone()], item, tied: Vec::new(), merged: Vec::new() }
        };
        return functions.iter().map(alone).collect();
    };
    let source = Source::new(builds, diff, (items, tainted), &judged.functions);
    let infos: Vec<_> = functions.iter().map(|replaced| info_of(diff, replaced, judged)).collect();
    let mut ties = Ties::new(functions.len());
    for side in [Side::Old, Side::New] {
        called(diff, side, (functions, &infos), &mut ties);
    }
    sharing(diff, functions, &infos, &mut ties);
    for (user, used) in &diff.linked {
        let at = |old: &At| functions.iter().position(|replaced| replaced.old == *old);
        if let (Some(user), Some(used)) = (at(user), at(used)) {
            ties.tie(user, used);
        }
    }
    for symbols in &judged.together {
        let is_one = |replaced: &&Replaced| {
            changed_function(diff, replaced).is_some_and(|changed| symbols.contains(&changed.new_symbol))
        };
        let among: Vec<usize> = (0..functions.len()).filter(|at| is_one(&functions[*at])).collect();
        ties.all(&among);
    }
    let brought = emitted.brought.iter().filter(|item| item.kind == NewItemKind::Function);
    let brought: BTreeSet<At> = brought.map(|item| item.at).collect();
    let mut out = Vec::new();
    for (at, (replaced, info)) in functions.iter().zip(&infos).enumerate() {
        let receiver = info.and_then(|info| info.receiver.as_deref());
        let place = info.and_then(|info| info.place.as_ref());
        let item = source.named(
            name_of(&diff.new, replaced.new),
            info.map(|info| info.path.as_str()),
            receiver,
            place,
        );
        let (mut holds, certain) = source.held(replaced, &item, *info);
        for at in brought_by(&diff.new, &brought, replaced.new) {
            let symbol = name_of(&diff.new, at);
            let info = judged.functions.iter().find(|info| info.symbol == symbol);
            holds.extend(info.into_iter().flat_map(|info| source.carried(info)));
        }
        let mut merged = source.merged(diff, replaced.old);
        if !holds.iter().any(|held| held.key() == item.key() || held.trait_path.is_some()) {
            // Its own text did not change, so its other instances hold what this one does: only methods of traits depend on the type.
            merged.retain(|other| other.full() != item.full());
        }
        holds.extend(merged.iter().cloned());
        holds.sort_by_key(ItemName::key);
        holds.dedup_by_key(|item| item.key());
        if !certain || (holds.is_empty() && ties.0[at].is_empty()) {
            ties.with_all(at);
        }
        out.push(Origin { item, holds, tied: Vec::new(), merged });
    }
    for (origin, tied) in out.iter_mut().zip(ties.0) {
        origin.tied = tied.into_iter().collect();
    }
    out
}

/// Those of the brought functions that a replaced one brings along, directly or not. What is new to the image is not always new to the source: its old
/// code was merged with other code, or nothing called it.
fn brought_by(program: &Program<'_>, brought: &BTreeSet<At>, new: At) -> Vec<At> {
    let (mut found, mut seen, mut work) = (Vec::new(), BTreeSet::from([new]), vec![new]);
    while let Some(at) = work.pop() {
        for reloc in &program.section(at).relocs {
            let to = match reference(program, at.unit, reloc) {
                Ref::Named { at: Some(to), .. } if brought.contains(&to) => to,
                Ref::Constant { at: to, .. } => to,
                Ref::Named { .. } => continue,
            };
            if seen.insert(to) {
                work.push(to);
                found.extend(brought.contains(&to).then_some(to));
            }
        }
    }
    found
}

fn info_of<'j>(diff: &Diff<'_>, replaced: &Replaced, judged: &'j GuardReport) -> Option<&'j FunctionInfo> {
    let symbol = changed_function(diff, replaced)?.new_symbol;
    judged.functions.iter().find(|info| info.symbol == symbol)
}

pub(super) fn name(symbol: &str, debug_path: Option<&str>, receiver: Option<&str>) -> ItemName {
    let scope = guard::impl_scope(symbol);
    ItemName::new(&guard::demangle(symbol), Hints { debug_path, receiver, impl_scope: scope.as_deref() })
}

/// Which functions belong together; symmetric.
struct Ties(Vec<BTreeSet<u32>>);

impl Ties {
    fn new(count: usize) -> Self {
        Self(vec![BTreeSet::new(); count])
    }

    fn tie(&mut self, a: usize, b: usize) {
        if a != b {
            self.0[a].insert(b as u32);
            self.0[b].insert(a as u32);
        }
    }

    fn all(&mut self, among: &[usize]) {
        among.iter().for_each(|a| among.iter().for_each(|b| self.tie(*a, *b)));
    }

    fn with_all(&mut self, at: usize) {
        (0..self.0.len()).for_each(|other| self.tie(at, other));
    }
}

/// Ties functions that refer to the same variable, of which the compiler may have known something that the change ends.
fn sharing(diff: &Diff<'_>, functions: &[&Replaced], infos: &[Option<&FunctionInfo>], ties: &mut Ties) {
    let Some(meaning) = diff.meaning.any().filter(|_| !diff.touched.is_empty()) else { return };
    let touched = Touched::found(meaning, diff);
    let mut users: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, (replaced, info)) in functions.iter().zip(infos).enumerate() {
        for variable in touched.of(name_of(&diff.new, replaced.new), *info) {
            users.entry(variable).or_default().push(at);
        }
    }
    users.values().for_each(|users| ties.all(users));
}

/// Ties callers to callees whose code they may have been compiled for, in the old program or in the new one.
fn called(
    diff: &Diff<'_>,
    side: Side,
    (functions, infos): (&[&Replaced], &[Option<&FunctionInfo>]),
    ties: &mut Ties,
) {
    if functions.len() < 2 {
        return;
    }
    let here = |replaced: &Replaced| if side == Side::Old { replaced.old } else { replaced.new };
    let index: HashMap<At, usize> =
        functions.iter().enumerate().map(|(i, replaced)| (here(replaced), i)).collect();
    let callers = Callers::new(diff.program(side));
    for (at, replaced) in functions.iter().enumerate() {
        // Whether what was known of the function in this program may not hold for it in the other one.
        let (old, new) = ((&diff.old, replaced.old), (&diff.new, replaced.new));
        let (known, other) = if side == Side::Old { (old, new) } else { (new, old) };
        let lost = Lost::between(known, other, infos[at]);
        for caller in callers.resting_on([(here(replaced), lost)]).into_keys() {
            index.get(&caller).into_iter().for_each(|caller| ties.tie(*caller, at));
        }
    }
}
