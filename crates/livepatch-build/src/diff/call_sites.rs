//! Call sites of the crate `tracing`, whose old instances may not go on.
//!
//! A variable of the running program keeps its value. `tracing`'s macros make a variable for each place that they stand in, which
//! points to a description of the place: level, target, names of the fields. What else is in it is a cache, filled at first use.
//! Patched code that gives other fields, or another level, needs the description of the new source: with the old one, it
//! would log without the new field, or not at all. So a call site whose description changed comes with the patch, and all code
//! that uses it; `tracing` registers it when it is used first, and the old one stays registered, unused.

use super::compare::{Ref, constant_bytes, reference};
use super::program::{At, Program};
use super::{Changed, Diff};
use crate::emit::name_of;
use crate::guard::demangle;
use crate::objects::{Kind, Reloc};
use crate::source::SourceDiff;
use livepatch_patch::{Digest, names_call_site};
use std::collections::{HashMap, HashSet};

/// Whether a variable is one: it has the name, and refers to a description that refers back to it.
pub(crate) fn is_call_site(program: &Program<'_>, at: At) -> bool {
    has_name(name_of(program, at)) && program.section(at).kind.is_variable() && {
        let (mut seen, mut work) = (HashSet::from([at]), vec![at]);
        let mut refers_back = false;
        while let Some(place) = work.pop() {
            for to in program.section(place).relocs.iter().filter_map(|r| target(program, place, r)) {
                refers_back |= to == at && place != at;
                if program.section(to).kind == Kind::ReadOnly && seen.insert(to) {
                    work.push(to);
                }
            }
        }
        refers_back
    }
}

/// Whether a constant is what a call site describes itself by.
pub(crate) fn describes_call_site(program: &Program<'_>, at: At) -> bool {
    let section = program.section(at);
    section.kind == Kind::ReadOnly
        && section
            .relocs
            .iter()
            .filter_map(|reloc| target(program, at, reloc))
            .any(|to| is_call_site(program, to))
}

/// Whether a variable is named as one.
pub(super) fn has_name(symbol: &str) -> bool {
    names_call_site(&demangle(symbol))
}

fn target(program: &Program<'_>, from: At, reloc: &Reloc) -> Option<At> {
    match reference(program, from.unit, reloc) {
        Ref::Named { at, .. } => at,
        Ref::Constant { at, .. } => Some(at),
    }
}

impl Diff<'_> {
    /// Gives up the running instances of call sites that replaced code describes otherwise, and of `doubtful` ones, which may have
    /// been another one's. The latter are taken from the list. What only code of unchanged items uses goes on as it is, and so does an
    /// instance with the same description, whose it ever was.
    ///
    /// What else uses such an instance, a closure of the macro say, comes along: beside replaced code that uses it, too, for that code alone; else it
    /// is replaced.
    pub(crate) fn renew_call_sites(&mut self, doubtful: &mut Vec<At>, source: &SourceDiff) {
        doubtful.retain(|new| !self.partners.get(new).is_some_and(|old| self.is_described_alike(*old, *new)));
        let unsure = doubtful.iter().filter_map(|at| Some((*self.partners.get(at)?, *at)));
        let changed = self.initialisers.iter().copied();
        let sites = changed.chain(unsure).filter(|(_, at)| is_call_site(&self.new, *at));
        let sites: HashSet<(At, At)> = sites.collect();
        if sites.is_empty() {
            return;
        }
        let (of_old, of_new) = (Referrers::of(&self.old), Referrers::of(&self.new));
        let users: Vec<_> =
            sites.into_iter().map(|(was, is)| (is, (of_old.code(was), of_new.code(is)))).collect();
        let continued: HashMap<At, At> = self.partners.iter().map(|(new, old)| (*old, *new)).collect();
        let mut replaced = Replaced::of(&self.changed);
        let (mut renewed, mut untouched, mut parted) = (HashSet::new(), HashSet::new(), Vec::new());
        for (site, users) in users {
            let path = demangle(name_of(&self.new, site));
            let is_apart = replaced.has_none_of(&users);
            if is_apart && !source.may_have_changed_in(&path) {
                untouched.insert(site);
                continue;
            }
            let Some(others) = self.other_users(&users, &replaced, &continued) else {
                tracing::debug!(call_site = path, "stays, as what uses it does");
                continue;
            };
            renewed.insert(site);
            if is_apart {
                others.iter().for_each(|change| replaced.add(change));
                self.replace_too(others, &path);
            } else {
                parted.extend(others);
            }
        }
        parted.retain(|change| !replaced.old.contains(&change.old));
        self.part(&parted);
        self.partners.retain(|new, _| !renewed.contains(new));
        self.initialisers.retain(|(_, new)| !renewed.contains(new) && !untouched.contains(new));
        doubtful.retain(|new| !renewed.contains(new));
    }

    /// Whether both are call sites, and say the same of themselves.
    fn is_described_alike(&self, old: At, new: At) -> bool {
        is_call_site(&self.new, new)
            && is_call_site(&self.old, old)
            && description(&self.old, old) == description(&self.new, new)
    }

    /// Users of a call site that are not replaced: old and new code. `None` if one of them has no new code.
    fn other_users(
        &self,
        (of_old, of_new): &UsersOfSite,
        replaced: &Replaced,
        continued: &HashMap<At, At>,
    ) -> Option<Vec<Changed>> {
        let of_old = of_old.difference(&replaced.old).map(|at| (*at, continued.get(at).copied()));
        // What the running program does not have comes with the patch.
        let of_new = of_new.difference(&replaced.new);
        let of_new = of_new.filter_map(|at| Some((*self.partners.get(at)?, Some(*at))));
        let others: HashSet<(At, Option<At>)> = of_old.chain(of_new).collect();
        let is_placed = |new: &At| self.new.addr(*new).is_some();
        let change =
            |(old, new): (At, Option<At>)| Some(Changed { old, new: new.filter(is_placed)?, first: 0 });
        others.into_iter().map(change).collect()
    }

    /// Replaces functions that may be as they were, because of the call site of this path.
    fn replace_too(&mut self, others: Vec<Changed>, site: &str) {
        for change in others {
            self.compiled_for.insert(change.old, site.to_owned());
            self.line_only.retain(|at| *at != change.new);
            self.repartitioned.retain(|at| *at != change.new);
            self.changed.push(change);
        }
    }
}

/// Code that uses a call site, in the old build and in the new one.
type UsersOfSite = (HashSet<At>, HashSet<At>);

/// Code that is replaced, and what replaces it.
struct Replaced {
    old: HashSet<At>,
    new: HashSet<At>,
}

impl Replaced {
    fn of(changed: &[Changed]) -> Self {
        let (old, new) = changed.iter().map(|change| (change.old, change.new)).unzip();
        Self { old, new }
    }

    fn add(&mut self, change: &Changed) {
        self.old.insert(change.old);
        self.new.insert(change.new);
    }

    fn has_none_of(&self, (of_old, of_new): &UsersOfSite) -> bool {
        of_old.is_disjoint(&self.old) && of_new.is_disjoint(&self.new)
    }
}

/// What refers to what in a program.
struct Referrers<'p, 'a> {
    program: &'p Program<'a>,
    to: HashMap<At, Vec<At>>,
}

impl<'p, 'a> Referrers<'p, 'a> {
    fn of(program: &'p Program<'a>) -> Self {
        let mut to: HashMap<At, Vec<At>> = HashMap::new();
        for (at, section) in program.all() {
            for reloc in &section.relocs {
                if let Some(target) = target(program, at, reloc) {
                    to.entry(target).or_default().push(at);
                }
            }
        }
        Self { program, to }
    }

    /// Placed code that refers to a variable, directly or through constants, also its description, which refers back to it.
    fn code(&self, variable: At) -> HashSet<At> {
        let (mut seen, mut work) = (HashSet::from([variable]), vec![variable]);
        let mut code = HashSet::new();
        while let Some(at) = work.pop() {
            for user in self.to.get(&at).into_iter().flatten() {
                match self.program.section(*user).kind {
                    Kind::ReadOnly if seen.insert(*user) => work.push(*user),
                    Kind::ReadOnly => {}
                    _ if *user != variable && self.program.addr(*user).is_some() => drop(code.insert(*user)),
                    _ => {}
                }
            }
        }
        code
    }
}

/// What a call site describes: a later patch that describes it otherwise must not find this one.
pub(crate) fn description(program: &Program<'_>, call_site: At) -> Digest {
    let mut hasher = Vec::new();
    let mut seen = HashSet::new();
    let mut work = vec![call_site];
    while let Some(at) = work.pop() {
        if !seen.insert(at) {
            continue;
        }
        hasher.extend_from_slice(program.section(at).bytes);
        for reloc in &program.section(at).relocs {
            match reference(program, at.unit, reloc) {
                // Others share such a section.
                Ref::Constant { at: target, offset } if program.section(target).merge.is_some() => {
                    hasher.extend_from_slice(constant_bytes(program, target, offset).unwrap_or_default());
                }
                Ref::Named { at: Some(target), .. } | Ref::Constant { at: target, .. }
                    if program.section(target).kind == Kind::ReadOnly =>
                {
                    work.push(target);
                }
                Ref::Named { name, .. } => hasher.extend_from_slice(name.as_bytes()),
                Ref::Constant { .. } => {}
            }
        }
    }
    Digest::of(&hasher)
}
