//! Functions of the running program that go on to be called although the new build has nothing to replace them by.
//!
//! An old function whose meaning changed is redirected to its new code. Where the new build has no code of its own for it, or
//! where it cannot be told which of several functions continues it, there is nothing to redirect it to; that is harmless only
//! as long as nothing but replaced code calls it.

use super::compare::{Ref, is_call, reference};
use super::program::{At, Program};
use super::rename::base;
use super::{Changed, Diff};
use crate::emit::name_of;
use crate::objects::Kind;
use std::collections::{HashMap, HashSet};

impl Diff<'_> {
    /// Old functions of another meaning in the new build, which code that stays can still reach, and that nothing replaces.
    pub(crate) fn lost(&self) -> Vec<At> {
        let continued: HashSet<At> = self
            .partners
            .values()
            .chain(self.twins.values())
            .copied()
            .chain(self.changed.iter().map(|c| c.old))
            .collect();
        let names: HashSet<&str> = keys(&self.new).collect();
        let added = self.added();
        let code = self.old.all().filter(|(at, s)| s.kind == Kind::Text && self.old.addr(*at).is_some());
        let unpaired: HashSet<At> = code
            .map(|(at, _)| at)
            .filter(|at| !continued.contains(at) && !self.unsettled.iter().any(|set| set.old.contains(at)))
            .collect();
        let reachable = self.reachable(&unpaired);
        let mut lost: Vec<At> =
            reachable.into_iter().filter(|at| self.is_other(*at, &names, &added)).collect();
        lost.sort_unstable();
        lost
    }

    /// Those of these functions that can still be called: something that stays refers to them, or their address was taken and
    /// may have been kept, or one of them calls another that is so.
    fn reachable(&self, unpaired: &HashSet<At>) -> HashSet<At> {
        let replaced: HashSet<At> = self.changed.iter().map(|Changed { old, .. }| *old).collect();
        let users = users(&self.old, unpaired);
        let mut reachable = HashSet::new();
        loop {
            let is_called = |(user, calls): &(At, bool)| match calls {
                true if unpaired.contains(user) => reachable.contains(user),
                true => !replaced.contains(user),
                false => true,
            };
            let more: Vec<At> = users
                .iter()
                .filter(|(at, users)| !reachable.contains(*at) && users.iter().any(is_called))
                .map(|(at, _)| *at)
                .collect();
            if more.is_empty() {
                return reachable;
            }
            reachable.extend(more);
        }
    }

    /// What symbols that only the new program has stand for.
    fn added(&self) -> HashSet<String> {
        let old: HashSet<&str> = keys(&self.old).collect();
        keys(&self.new).filter(|key| !old.contains(key)).filter_map(base).collect()
    }

    /// Whether the new program has the function's item with another meaning.
    fn is_other(&self, at: At, names: &HashSet<&str>, added: &HashSet<String>) -> bool {
        let symbol = name_of(&self.old, at);
        match self.meaning.all() {
            Some(meaning) => meaning.is_changed(symbol) && meaning.lives_on(symbol),
            None => {
                !names.contains(self.old.key(symbol))
                    && base(symbol).is_some_and(|base| added.contains(&base))
            }
        }
    }
}

/// The names of a program's functions.
fn keys<'p>(program: &'p Program<'_>) -> impl Iterator<Item = &'p str> {
    let code = program.all().filter(|(_, section)| section.kind == Kind::Text);
    code.map(|(at, _)| program.key(name_of(program, at)))
}

/// Who refers to each of these functions, and whether by a direct call.
fn users(program: &Program<'_>, functions: &HashSet<At>) -> HashMap<At, Vec<(At, bool)>> {
    let mut users: HashMap<At, Vec<(At, bool)>> = HashMap::new();
    if functions.is_empty() {
        return users;
    }
    for (user, section) in program.all().filter(|(at, _)| program.addr(*at).is_some()) {
        for reloc in &section.relocs {
            if let Ref::Named { at: Some(at), .. } = reference(program, user.unit, reloc)
                && functions.contains(&at)
                && user != at
            {
                let calls = section.kind == Kind::Text && is_call(section.bytes, reloc);
                users.entry(at).or_default().push((user, calls));
            }
        }
    }
    users
}
