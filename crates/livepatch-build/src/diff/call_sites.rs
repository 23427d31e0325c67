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
use crate::objects::Kind;
use livepatch_patch::Digest;
use std::collections::HashSet;

/// Whether a symbol is that of such a variable.
pub(crate) fn is_call_site(symbol: &str) -> bool {
    demangle(symbol).ends_with("::__CALLSITE")
}

impl Diff<'_> {
    /// Gives up the running instances of call sites that replaced code describes otherwise, and of `doubtful` ones, which may have
    /// been another one's. The latter are taken from the list.
    pub(crate) fn renew_call_sites(&mut self, doubtful: &mut Vec<At>) {
        let (old, new): (HashSet<At>, HashSet<At>) = self.changed.iter().map(|c| (c.old, c.new)).unzip();
        let unsure = doubtful.iter().filter_map(|at| Some((*self.partners.get(at)?, *at)));
        let candidates: HashSet<(At, At)> = self.initialisers.iter().copied().chain(unsure).collect();
        let renewed: Vec<At> = candidates
            .iter()
            .filter(|(_, at)| is_call_site(name_of(&self.new, *at)))
            .filter(|(was, is)| {
                let mut stay = others(&self.old, *was, &old);
                stay.extend(others(&self.new, *is, &new));
                if !stay.is_empty() {
                    tracing::debug!(
                        call_site = name_of(&self.new, *is),
                        ?stay,
                        "stays, as what uses it does"
                    );
                }
                stay.is_empty()
            })
            .map(|(_, at)| *at)
            .collect();
        for at in renewed {
            self.partners.remove(&at);
            self.initialisers.retain(|(_, new)| *new != at);
            doubtful.retain(|new| *new != at);
        }
    }
}

/// Names of what uses a variable but is not among `replaced`.
fn others<'p>(program: &'p Program<'_>, variable: At, replaced: &HashSet<At>) -> Vec<&'p str> {
    users(program, variable).difference(replaced).map(|at| name_of(program, *at)).collect()
}

/// Placed code that refers to a variable, directly or through constants.
fn users(program: &Program<'_>, variable: At) -> HashSet<At> {
    let refers = |at: At, to: &HashSet<At>| {
        program.section(at).relocs.iter().any(|reloc| match reference(program, at.unit, reloc) {
            Ref::Named { at: Some(target), .. } | Ref::Constant { at: target, .. } => to.contains(&target),
            Ref::Named { at: None, .. } => false,
        })
    };
    let mut wanted = HashSet::from([variable]);
    loop {
        let constants = program.all().filter(|(_, section)| section.kind == Kind::ReadOnly).map(|(at, _)| at);
        let more: Vec<At> = constants.filter(|at| !wanted.contains(at) && refers(*at, &wanted)).collect();
        if more.is_empty() {
            break;
        }
        wanted.extend(more);
    }
    // It refers to its description, which refers back to it.
    let others = program.all().filter(|(at, section)| section.kind != Kind::ReadOnly && *at != variable);
    others.map(|(at, _)| at).filter(|at| program.addr(*at).is_some() && refers(*at, &wanted)).collect()
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
