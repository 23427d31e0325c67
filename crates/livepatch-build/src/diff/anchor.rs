//! Constants without a name that the program knows by their address.
//!
//! A constant without a name comes as a copy, because nothing tells which of the running ones it is. What tells is who refers to it: a variable
//! or a named constant at the same place (`static PLANS: &[Plan]`), or the old code of a replaced function, if that refers to one constant of
//! these contents. The program may have kept a reference to it, and compare addresses.
//!
//! What refers to code always comes as a copy: a jump table leads into the very function that it belongs to.

use super::compare::{Comparer, Ref, Verdict, reference};
use super::pair;
use super::program::{At, Program};
use super::{Changed, Diff};
use crate::objects::{Kind, Reloc};
use std::collections::{BTreeSet, HashMap};

impl Diff<'_> {
    /// Notes, for each constant that what both programs have refers to, which one of the running program it is.
    pub(crate) fn anchor(&mut self) {
        for (new, old) in self.anchored() {
            self.twins.entry(new).or_insert(old);
        }
    }

    fn anchored(&self) -> HashMap<At, At> {
        let (old, new) = (&self.old, &self.new);
        let pairs = pair::pair(&pair::placed(old), &pair::placed(new), old, new);
        let mut comparer = Comparer::new(old, new, pairs.ambiguous_names, pairs.partners, pairs.continued);
        let mut is_same = |(new, old): (At, At)| {
            self.old.addr(old).is_some() && comparer.compare(old, new) == Verdict::Same && self.is_plain(new)
        };
        let named = self.twins.iter().chain(&self.partners).map(|(new, old)| (*new, *old));
        let is_data = |(at, was): &(At, At)| {
            new.section(*at).kind != Kind::Text && old.section(*was).kind != Kind::Text
        };
        let mut work: Vec<(At, At)> = named.filter(is_data).collect();
        let mut found: HashMap<At, At> = HashMap::new();
        for change in &self.changed {
            let known = self.of_code(change, &mut is_same);
            work.extend(known.into_iter().filter(|(new, old)| found.insert(*new, *old).is_none()));
        }
        while let Some((at, was)) = work.pop() {
            for reloc in &new.section(at).relocs {
                let twin = old.section(was).relocs.iter().find(|twin| twin.offset == reloc.offset);
                let ends = twin.and_then(|twin| Some((constant(new, at, reloc)?, constant(old, was, twin)?)));
                let Some(pair) = ends.filter(|pair| !found.contains_key(&pair.0) && is_same(*pair)) else {
                    continue;
                };
                found.insert(pair.0, pair.1);
                work.push(pair);
            }
        }
        found
    }

    /// Whether a new constant refers to no code, and to nothing that has a name but what goes on as it is in the running program; and so does
    /// what it refers to without a name.
    fn is_plain(&self, constant: At) -> bool {
        let (mut seen, mut work) = (BTreeSet::from([constant]), vec![constant]);
        while let Some(at) = work.pop() {
            for reloc in &self.new.section(at).relocs {
                let (to, is_named) = match reference(&self.new, at.unit, reloc) {
                    Ref::Constant { at, .. } => (Some(at), false),
                    Ref::Named { at, .. } => (at, true),
                };
                // What is of another object, or of another module, may be code.
                let Some(to) = to.filter(|to| self.new.section(*to).kind != Kind::Text) else { return false };
                let goes_on = match self.new.section(to).kind.is_variable() {
                    true => self.partners.contains_key(&to),
                    false => self.twins.contains_key(&to),
                };
                if is_named && !goes_on {
                    return false;
                }
                work.extend((!is_named && seen.insert(to)).then_some(to));
            }
        }
        true
    }

    /// Constants that old and new code of a function refer to, where each refers to one of these contents only.
    fn of_code(&self, change: &Changed, is_same: &mut dyn FnMut((At, At)) -> bool) -> Vec<(At, At)> {
        let referred = |program: &Program<'_>, at: At| {
            let relocs = program.section(at).relocs.iter();
            relocs.filter_map(|reloc| constant(program, at, reloc)).collect::<BTreeSet<At>>()
        };
        let (olds, news) = (referred(&self.old, change.old), referred(&self.new, change.new));
        let mut pair = |new: &At| {
            let fitting: Vec<&At> = olds.iter().filter(|old| is_same((*new, **old))).collect();
            let [old] = fitting.as_slice() else { return None };
            let rivals = news.iter().filter(|other| is_same((**other, **old))).count();
            (rivals == 1).then_some((*new, **old))
        };
        news.iter().filter_map(&mut pair).collect()
    }
}

/// The constant without a name that a relocation refers to, if it is no entry of a section of many.
fn constant(program: &Program<'_>, at: At, reloc: &Reloc) -> Option<At> {
    match reference(program, at.unit, reloc) {
        Ref::Constant { at, .. } => Some(at).filter(|at| {
            let section = program.section(*at);
            section.kind == Kind::ReadOnly && section.merge.is_none()
        }),
        Ref::Named { .. } => None,
    }
}
