//! Code that differs only in flags on its own stack that nobody reads.
//!
//! Where a value is moved on some paths only, rustc keeps a flag for it, and the code that drops a coroutine clears the flags of all such
//! values, also of those that live between two awaits: those flags are no part of a suspended instance, and here they are no more than
//! stores of one byte to the stack. Raw code has them, and with them come other places for what else is on the stack. So two pieces of such
//! code are the same if, followed side by side from the entry, through branches, tables and landing pads, they do the same one by one, such
//! stores left out and places on the stack renamed. That pairs every state that can be reached (a bisimulation); whatever is not understood
//! makes a difference.
//!
//! This holds for code that drops something. Other code may hand arguments to what it calls in such a place.

mod routine;
mod stack;

use super::compare::{Comparer, Ref, reference};
use super::knowledge::falls_through;
use super::program::{At, Program};
use crate::objects::Reloc;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic};
use routine::{Doing, Routine};
use stack::Place;
use std::collections::{HashMap, HashSet};

/// Whether two pieces of code that drop something differ only in such flags.
pub(super) fn only_flags_differ(
    (old, old_at): (&Program<'_>, At),
    (new, new_at): (&Program<'_>, At),
    comparer: &mut Comparer<'_, '_>,
) -> bool {
    let (Some(old), Some(new)) = (Routine::of(old, old_at), Routine::of(new, new_at)) else { return false };
    let walk = Walk { old: &old, new: &new, comparer, was: HashMap::new(), is: HashMap::new() };
    old.actions() == new.actions() && walk.agrees()
}

/// Two pieces of code followed side by side.
struct Walk<'w, 'p, 'a, 'c, 'd> {
    old: &'w Routine<'p, 'a>,
    new: &'w Routine<'p, 'a>,
    comparer: &'w mut Comparer<'c, 'd>,
    /// What a place of the new code was in the old one, and the other way round.
    was: HashMap<Place, Place>,
    is: HashMap<Place, Place>,
}

impl Walk<'_, '_, '_, '_, '_> {
    fn agrees(mut self) -> bool {
        let mut work = vec![(0, 0)];
        let mut seen = HashSet::new();
        while let Some((old, new)) = work.pop() {
            let ((old_ix, old), (new_ix, new)) = match (self.old.doing(old), self.new.doing(new)) {
                (Some(old), Some(new)) => (old, new),
                // Behind the last instruction: nothing comes back from the call there.
                (None, None) => continue,
                _ => return false,
            };
            if seen.insert((old_ix, new_ix)) {
                let Some(next) = self.step((old_ix, old), (new_ix, new)) else { return false };
                work.extend(next);
            }
        }
        true
    }

    /// Where control goes from two places that do the same; `None` if they do not.
    fn step(
        &mut self,
        (old_ix, old): (usize, &Doing),
        (new_ix, new): (usize, &Doing),
    ) -> Option<Vec<(usize, usize)>> {
        if as_call(old) != as_call(new) || !self.is_same_place(old.place, new.place) {
            return None;
        }
        let mut next = Vec::new();
        match (&old.reloc, &new.reloc) {
            (None, None) => {}
            (Some(old), Some(new)) => next.extend(self.references(old, new)?),
            _ => return None,
        }
        next.extend(both(old.branch, new.branch)?);
        if old.leaves || matches!(old.what.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            let pad = |routine: &Routine<'_, '_>, ix, doing: &Doing| match doing.leaves {
                true => Some((None, 0)),
                false => routine.unwound(ix),
            };
            match (pad(self.old, old_ix, old), pad(self.new, new_ix, new)) {
                (None, None) => {}
                (Some((old, action)), Some((new, same))) if action == same => next.extend(both(old, new)?),
                _ => return None,
            }
        }
        match (old.leaves, new.leaves) {
            (false, false) => next.extend(falls_through(&old.what).then_some((old_ix + 1, new_ix + 1))),
            (true, false) => returns(self.new, new_ix + 1)?,
            (false, true) => returns(self.old, old_ix + 1)?,
            (true, true) => {}
        }
        Some(next)
    }

    fn is_same_place(&mut self, old: Option<Place>, new: Option<Place>) -> bool {
        let Some((old, new)) = old.zip(new) else { return old == new };
        let is_renamed =
            *self.was.entry(new).or_insert(old) == old && *self.is.entry(old).or_insert(new) == new;
        // What lies above the return address is the caller's.
        is_renamed && (old < 0 && new < 0 || old == new)
    }

    /// Where control may go by two references to tables; nowhere if they lead to the same, `None` otherwise.
    fn references(&mut self, old: &Reloc, new: &Reloc) -> Option<Vec<(usize, usize)>> {
        let table = |routine: &Routine<'_, '_>, reloc: &Reloc| match reference(
            routine.program,
            routine.at.unit,
            reloc,
        ) {
            Ref::Constant { at, offset } => routine.table(at, routine::table_start(offset, reloc)),
            Ref::Named { .. } => None,
        };
        match (table(self.old, old), table(self.new, new)) {
            (Some(old), Some(new)) if old.len() == new.len() => Some(old.into_iter().zip(new).collect()),
            (None, None) => {
                let verdict = self.comparer.compare_targets((self.old.at, old), (self.new.at, new));
                verdict.is_equal().then(Vec::new)
            }
            _ => None,
        }
    }
}

/// Two places, if both are there or neither is.
fn both(old: Option<usize>, new: Option<usize>) -> Option<Option<(usize, usize)>> {
    (old.is_some() == new.is_some()).then(|| old.zip(new))
}

/// A jump to another function as the call that it stands for, with which the function returns.
fn as_call(doing: &Doing) -> Instruction {
    let mut what = doing.what;
    if doing.leaves {
        what.set_code(if what.code() == Code::Jmp_rm64 { Code::Call_rm64 } else { Code::Call_rel32_64 });
    }
    what
}

/// `Some` if nothing is done from here on but to return.
fn returns(routine: &Routine<'_, '_>, at: usize) -> Option<()> {
    let (_, doing) = routine.doing(at)?;
    (doing.what.mnemonic() == Mnemonic::Ret).then_some(())
}
