//! Call sites of the crate `tracing`, whose old instances may not go on.
//!
//! A variable of the running program keeps its value. `tracing`'s macros make a variable for each place that they stand in, which
//! points to a description of the place: level, target, names of the fields. What else is in it is a cache, filled at first use.
//! Patched code that gives other fields, or another level, needs the description of the new source: with the old one, it
//! would log without the new field, or not at all. So a call site whose description changed comes with the patch, if all code
//! that uses it does; `tracing` registers it when it is used first, and the old one stays registered, unused.

use super::Diff;
use super::compare::{Ref, reference};
use super::program::{At, Program};
use crate::emit::name_of;
use crate::guard::demangle;
use crate::objects::{Kind, Reloc};
use livepatch_patch::Digest;
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

/// Whether a variable is named as call sites are, by this version of the crate or an earlier one.
pub(super) fn has_name(symbol: &str) -> bool {
    let path = demangle(symbol);
    ["::__CALLSITE", "::CALLSITE"].iter().any(|name| path.ends_with(name))
}

fn target(program: &Program<'_>, from: At, reloc: &Reloc) -> Option<At> {
    match reference(program, from.unit, reloc) {
        Ref::Named { at, .. } => at,
        Ref::Constant { at, .. } => Some(at),
    }
}

impl Diff<'_> {
    /// Gives up the running instances of call sites that replaced code describes otherwise, and of `doubtful` ones, which may have
    /// been another one's. The latter are taken from the list. What only code that stays uses goes on as it is.
    pub(crate) fn renew_call_sites(&mut self, doubtful: &mut Vec<At>) {
        let unsure = doubtful.iter().filter_map(|at| Some((*self.partners.get(at)?, *at)));
        let changed = self.initialisers.iter().copied();
        let sites = changed.chain(unsure).filter(|(_, at)| is_call_site(&self.new, *at));
        let sites: HashSet<(At, At)> = sites.collect();
        if sites.is_empty() {
            return;
        }
        let (old, new): (HashSet<At>, HashSet<At>) = self.changed.iter().map(|c| (c.old, c.new)).unzip();
        let (of_old, of_new) = (Referrers::of(&self.old), Referrers::of(&self.new));
        let (mut renewed, mut untouched) = (HashSet::new(), HashSet::new());
        for (was, is) in sites {
            let (of_old, of_new) = (of_old.code(was), of_new.code(is));
            if of_old.is_disjoint(&old) && of_new.is_disjoint(&new) {
                untouched.insert(is);
                continue;
            }
            let mut stay = names(&self.old, of_old.difference(&old));
            stay.extend(names(&self.new, of_new.difference(&new)));
            if stay.is_empty() {
                renewed.insert(is);
            } else {
                tracing::debug!(call_site = name_of(&self.new, is), ?stay, "stays, as what uses it does");
            }
        }
        self.partners.retain(|new, _| !renewed.contains(new));
        self.initialisers.retain(|(_, new)| !renewed.contains(new) && !untouched.contains(new));
        doubtful.retain(|new| !renewed.contains(new));
    }
}

fn names<'p>(program: &'p Program<'_>, places: impl Iterator<Item = &'p At>) -> Vec<&'p str> {
    places.map(|at| name_of(program, *at)).collect()
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
