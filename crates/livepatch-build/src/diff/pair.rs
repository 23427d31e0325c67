//! Which old section continues in which new one.
//!
//! By normalised name. A name that one section of each program defines is a pair. A local name may have copies: rustc
//! instantiates a generic function in every code unit that uses it. Copies of the same object belong together; what
//! is left over is a set that contents must settle.

use super::Changed;
use super::compare::{Comparer, Verdict};
use super::names::{is_anonymous, parts};
use super::program::{At, Program};
use crate::objects::Kind;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Copies of one name that names alone cannot pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySet {
    /// The normalised name.
    pub name: String,
    /// Copies in the old program.
    pub old: Vec<At>,
    /// Copies in the new program.
    pub new: Vec<At>,
}

/// The result of pairing by name.
#[derive(Debug, Default)]
pub(super) struct Pairs<'a> {
    pub pairs: Vec<(At, At)>,
    pub partners: HashMap<At, At>,
    pub sets: Vec<CopySet>,
    pub ambiguous_names: HashSet<&'a str>,
    /// Old section → every new section of one of its names.
    pub continued: HashMap<At, Vec<At>>,
    /// New variables of which the old program has only other parts.
    pub partial: HashSet<At>,
}

/// What the linker kept of a program, by name.
pub(super) fn placed<'a>(program: &Program<'a>) -> ByName<'a> {
    by_name(program, |at| program.addr(at).is_some())
}

/// Pairs names of two programs.
pub(super) fn pair<'a>(
    old_names: &ByName<'a>,
    new_names: &ByName<'a>,
    old: &Program<'a>,
    new: &Program<'a>,
) -> Pairs<'a> {
    let mut result = Pairs::default();
    let mut seen = HashSet::new();
    for (name, news) in new_names {
        let Some(olds) = old_names.get(name) else { continue };
        if olds.len() > 1 || news.len() > 1 {
            result.ambiguous_names.insert(name);
        }
        for old_at in olds {
            result.continued.entry(*old_at).or_default().extend(news);
        }
        let (mut olds, mut news) = (olds.clone(), news.clone());
        let mut join = |old_at: At, new_at: At| {
            if seen.insert((old_at, new_at)) {
                result.pairs.push((old_at, new_at));
                result.partners.entry(new_at).or_insert(old_at);
            }
        };
        let same_part = |old_at: At, new_at: At| is_same_part((old, old_at), (new, new_at));
        news.retain(|new_at| {
            let fits = olds.iter().any(|old_at| same_part(*old_at, *new_at));
            if !fits {
                result.partial.insert(*new_at);
            }
            fits
        });
        if let ([old_at], [new_at]) = (olds.as_slice(), news.as_slice()) {
            join(*old_at, *new_at);
            continue;
        }
        news.retain(|new_at| {
            let same_object = |old_at: &At| {
                old.unit(*old_at).key() == new.unit(*new_at).key() && same_part(*old_at, *new_at)
            };
            let Some(index) = olds.iter().position(same_object) else { return true };
            join(olds.remove(index), *new_at);
            false
        });
        match (olds.as_slice(), news.as_slice()) {
            ([], _) => {}
            ([old_at], [new_at]) if same_part(*old_at, *new_at) => join(*old_at, *new_at),
            (_, []) if olds.iter().all(|at| old.section(*at).kind.is_variable()) => {}
            // Copies that the new build no longer has: their callers now use one of the others.
            (_, []) => result.sets.push(CopySet {
                name: (*name).to_owned(),
                old: olds,
                new: new_names[name].clone(),
            }),
            _ => result.sets.push(CopySet { name: (*name).to_owned(), old: olds, new: news }),
        }
    }
    result
}

/// Whether variables of one name are the same part of what the source declares: the optimiser takes variables apart, and their parts
/// have numbers. There is one definition of a variable, so that a number says nothing else.
fn is_same_part((old, old_at): (&Program<'_>, At), (new, new_at): (&Program<'_>, At)) -> bool {
    let is_variable = old.section(old_at).kind.is_variable() && new.section(new_at).kind.is_variable();
    !is_variable || !numbers(old, old_at).is_disjoint(&numbers(new, new_at))
}

fn numbers<'a>(program: &Program<'a>, at: At) -> HashSet<Vec<&'a str>> {
    let unit = program.unit(at);
    program.section(at).symbols.iter().map(|ix| parts(unit.symbol(*ix).name).collect()).collect()
}

/// Sections by normalised names.
pub(super) type ByName<'a> = BTreeMap<&'a str, Vec<At>>;

/// The wanted sections of code, variables and named constants by each of their normalised names.
pub(super) fn by_name<'a>(program: &Program<'a>, wanted: impl Fn(At) -> bool) -> ByName<'a> {
    let mut names: ByName<'_> = BTreeMap::new();
    for (at, section) in program.all() {
        if !wanted(at) || section.kind == Kind::Special {
            continue;
        }
        let unit = program.unit(at);
        for ix in &section.symbols {
            let symbol = unit.symbol(*ix);
            let anonymous = section.kind == Kind::ReadOnly && is_anonymous(symbol.name, symbol.global);
            if anonymous || symbol.name.starts_with(".L") {
                continue;
            }
            let list = names.entry(program.key(symbol.name)).or_default();
            if !list.contains(&at) {
                list.push(at);
            }
        }
    }
    names
}

/// Compares sections of one program with each other.
pub(super) fn of_one<'p, 'a>(program: &'p Program<'a>, names: &ByName<'a>) -> Comparer<'p, 'a> {
    let several = || names.iter().filter(|(_, ats)| ats.len() > 1);
    let ambiguous = several().map(|(name, _)| *name).collect();
    let itself = several().flat_map(|(_, ats)| ats).map(|at| (*at, *at)).collect();
    Comparer::new(program, program, ambiguous, itself, HashMap::new())
}

/// Pairs copies by content: each old copy with an equal new one, else with the new code if all new copies agree. `comparers` tell what
/// of the two programs is the same, and what of the new one.
pub(super) fn settle(
    (comparer, own): (&mut Comparer<'_, '_>, &mut Comparer<'_, '_>),
    set: CopySet,
    partners: &mut HashMap<At, At>,
    twins: &mut HashMap<At, At>,
    changed: &mut Vec<Changed>,
    unsettled: &mut Vec<CopySet>,
    (old, new): (&Program<'_>, &Program<'_>),
) {
    let mut agree = || set.new[1..].iter().all(|at| own.compare(set.new[0], *at) == Verdict::Same);
    let mut left = Vec::new();
    for old_at in set.old {
        let fits = |new_at: &&At| is_same_part((old, old_at), (new, **new_at));
        let equal = set.new.iter().filter(fits).find(|new_at| comparer.compare(old_at, **new_at).is_equal());
        match equal {
            Some(new_at) => {
                partners.entry(*new_at).or_insert(old_at);
                twins.entry(*new_at).or_insert(old_at);
            }
            None if new.section(set.new[0]).kind == Kind::Text && agree() => {
                if let Verdict::Different(first) = comparer.compare(old_at, set.new[0]) {
                    partners.entry(set.new[0]).or_insert(old_at);
                    changed.push(Changed { old: old_at, new: set.new[0], first });
                }
            }
            // Of nothing there is nothing to tell apart.
            None if old.section(old_at).size == 0 => {}
            None => left.push(old_at),
        }
    }
    if !left.is_empty() {
        unsettled.push(CopySet { name: set.name, old: left, new: set.new });
    }
}
