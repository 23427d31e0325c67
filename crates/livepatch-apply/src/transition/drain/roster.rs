//! Who stands where, and when to look at whom again.

use crate::transition::standing::Standing;
use livepatch_process::Tid;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// The threads of one attempt.
#[derive(Debug)]
pub(super) struct Roster {
    pub threads: BTreeMap<Tid, Standing>,
    due: BTreeSet<(Instant, Tid)>,
    due_of: BTreeMap<Tid, Instant>,
    unknown: usize,
    moved: Instant,
}

impl Roster {
    pub fn new() -> Self {
        Self {
            threads: BTreeMap::new(),
            due: BTreeSet::new(),
            due_of: BTreeMap::new(),
            unknown: 0,
            moved: Instant::now(),
        }
    }

    /// The thread to be looked at next, and when.
    pub fn next(&self) -> Option<(Instant, Tid)> {
        self.due.first().copied()
    }

    /// Whether nobody is to be looked at, and everybody is outside.
    pub fn is_done(&self) -> bool {
        self.due.is_empty() && self.threads.values().all(|standing| matches!(standing, Standing::Outside))
    }

    /// Since when every thread has been looked at and none has left; `None` if some thread was not looked at yet.
    pub fn stands_since(&self) -> Option<Instant> {
        (self.unknown == 0).then_some(self.moved)
    }

    pub fn schedule(&mut self, tid: Tid, when: Instant) {
        self.unschedule(tid);
        self.due_of.insert(tid, when);
        self.due.insert((when, tid));
    }

    pub fn unschedule(&mut self, tid: Tid) {
        if let Some(when) = self.due_of.remove(&tid) {
            self.due.remove(&(when, tid));
        }
    }

    pub fn outside(&mut self, tid: Tid) {
        self.unschedule(tid);
        self.stands(tid, Standing::Outside);
    }

    pub fn stands(&mut self, tid: Tid, standing: Standing) {
        let leaves = matches!(standing, Standing::Outside);
        self.unknown += usize::from(matches!(standing, Standing::Unknown));
        let before = self.threads.insert(tid, standing);
        self.was(before.as_ref(), leaves);
    }

    /// Counts what a thread was before.
    fn was(&mut self, before: Option<&Standing>, leaves: bool) {
        if matches!(before, Some(Standing::Unknown)) {
            self.unknown -= 1;
            self.moved = Instant::now();
        } else if leaves && matches!(before, Some(Standing::Inside(_))) {
            self.moved = Instant::now();
        }
    }

    pub fn forget(&mut self, tid: Tid) {
        let before = self.threads.remove(&tid);
        self.was(before.as_ref(), true);
        self.unschedule(tid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_done_who_was_only_taken_off_the_list() {
        let (tid, mut roster) = (Tid(7), Roster::new());
        roster.stands(tid, Standing::Unknown);
        roster.schedule(tid, Instant::now());
        assert!(!roster.is_done());
        roster.unschedule(tid);
        assert!(!roster.is_done());
        roster.outside(tid);
        assert!(roster.is_done());
    }
}
