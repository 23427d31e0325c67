//! Functions of the running program that go on to be called although the new build has nothing to replace them by.
//!
//! An old function whose meaning changed is redirected to its new code. Where the new build has no code of its own for it, or
//! where it cannot be told which of several functions continues it, there is nothing to redirect it to; that is harmless only
//! as long as nothing but replaced code calls it.

use super::compare::{Ref, is_call, is_jump, is_relative, reference};
use super::program::{At, Program};
use super::rename::base;
use super::{Changed, Diff};
use crate::emit::name_of;
use crate::objects::Kind;
use std::collections::{BTreeSet, HashMap, HashSet};

/// How a function refers to another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// By a call: it is on the stack for as long as the other runs.
    Call,
    /// By a jump: it left its frame.
    Jump,
    /// It takes the address, or it is data.
    Address,
}

/// An old function without a new one, and the replaced functions that jump to it, themselves or through others.
pub(crate) struct Orphan {
    pub(crate) at: At,
    pub(crate) from: BTreeSet<At>,
}

/// Old functions that nothing in the new build continues: who refers to each, and which can still be reached.
pub(crate) struct Leftovers {
    users: Users,
    reachable: HashSet<At>,
}

impl Diff<'_> {
    /// What the other two questions are about.
    pub(crate) fn leftovers(&self) -> Leftovers {
        let unpaired = self.unpaired();
        let users = users(&self.old, &unpaired);
        let reachable = self.reachable(&unpaired, &users);
        Leftovers { users, reachable }
    }

    /// Old functions of another meaning in the new build, which code that stays can still reach, and that nothing replaces.
    pub(crate) fn lost(&self, leftovers: &Leftovers) -> Vec<At> {
        let names: HashSet<&str> = keys(&self.new).collect();
        let added = self.added();
        let reachable = leftovers.reachable.iter().copied();
        let mut lost: Vec<At> = reachable.filter(|at| self.is_other(*at, &names, &added)).collect();
        lost.sort_unstable();
        lost
    }

    /// Old functions whose address was taken and that are no functions of the new build at all.
    pub(crate) fn removed(&self, Leftovers { users, reachable }: &Leftovers) -> Vec<At> {
        let bases: HashSet<String> = keys(&self.new).filter_map(base).collect();
        let is_removed = |at: &&At| {
            let symbol = name_of(&self.old, **at);
            let is_kept =
                users.get(at).is_some_and(|users| users.iter().any(|(_, how)| *how == Use::Address));
            is_kept
                && base(symbol).is_some_and(|base| !bases.contains(&base))
                && !self.meaning.any().is_some_and(|meaning| meaning.lives_on(symbol))
        };
        let mut removed: Vec<At> = reachable.iter().filter(is_removed).copied().collect();
        removed.sort_unstable();
        removed
    }

    /// Old functions that nothing continues or calls any more, and that a thread may be in without a replaced function on its
    /// stack, because that one jumped there.
    pub(crate) fn orphans(&self, Leftovers { users, reachable }: &Leftovers) -> Vec<Orphan> {
        let replaced = self.replaced();
        let jumps = users.iter().filter(|(at, _)| !reachable.contains(*at)).flat_map(|(at, users)| {
            users.iter().filter(|(_, how)| *how == Use::Jump).map(|(user, _)| (*user, *at))
        });
        let jumps: Vec<(At, At)> = jumps.collect();
        let mut from: HashMap<At, BTreeSet<At>> = HashMap::new();
        loop {
            let mut grown = false;
            for (user, at) in &jumps {
                let more = match replaced.contains(user) {
                    true => BTreeSet::from([*user]),
                    false => from.get(user).cloned().unwrap_or_default(),
                };
                let known = from.entry(*at).or_default();
                let before = known.len();
                known.extend(more);
                grown |= known.len() > before;
            }
            if !grown {
                break;
            }
        }
        let mut orphans: Vec<Orphan> = from.into_iter().map(|(at, from)| Orphan { at, from }).collect();
        orphans.retain(|orphan| !orphan.from.is_empty());
        orphans.sort_unstable_by_key(|orphan| orphan.at);
        orphans
    }

    fn replaced(&self) -> HashSet<At> {
        self.changed.iter().map(|Changed { old, .. }| *old).collect()
    }

    /// Old functions that nothing in the new build continues.
    pub(super) fn unpaired(&self) -> HashSet<At> {
        let continued: HashSet<At> = self
            .partners
            .values()
            .chain(self.twins.values())
            .copied()
            .chain(self.changed.iter().map(|c| c.old))
            .collect();
        let code = self.old.all().filter(|(at, s)| s.kind == Kind::Text && self.old.addr(*at).is_some());
        code.map(|(at, _)| at)
            .filter(|at| !continued.contains(at) && !self.unsettled.iter().any(|set| set.old.contains(at)))
            .collect()
    }

    /// Those of these functions that can still be called: something that stays refers to them, or their address was taken and
    /// may have been kept, or one of them calls another that is so.
    fn reachable(&self, unpaired: &HashSet<At>, users: &Users) -> HashSet<At> {
        let replaced = self.replaced();
        let mut reachable = HashSet::new();
        loop {
            let is_called = |(user, how): &(At, Use)| match how {
                Use::Address => true,
                _ if unpaired.contains(user) => reachable.contains(user),
                _ => !replaced.contains(user),
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
        // Raw code tells what it means by itself, and not whether what is inlined into it is as it was.
        if self.called_otherwise.contains(&at) {
            return true;
        }
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

pub(super) type Users = HashMap<At, Vec<(At, Use)>>;

/// Who refers to each of these functions, and how.
pub(super) fn users(program: &Program<'_>, functions: &HashSet<At>) -> Users {
    let mut users = Users::new();
    if functions.is_empty() {
        return users;
    }
    for (user, section) in program.all().filter(|(at, _)| program.addr(*at).is_some()) {
        for reloc in &section.relocs {
            // Data holds addresses as they are; relative ones are a function's own blocks in its jump tables.
            if (section.kind == Kind::Text || !is_relative(reloc.kind))
                && let Ref::Named { at: Some(at), .. } = reference(program, user.unit, reloc)
                && functions.contains(&at)
                && user != at
            {
                let how = match section.kind == Kind::Text && is_call(section.bytes, reloc) {
                    true if is_jump(section.bytes, reloc) => Use::Jump,
                    true => Use::Call,
                    false => Use::Address,
                };
                users.entry(at).or_default().push((user, how));
            }
        }
    }
    users
}
