//! Whether running code at one address does what the new build's code at another does.
//!
//! LLVM merges functions of equal code under one of their names, and which one it is depends on the build. So a pointer in
//! constant data may hold a function of another name although nothing changed. The names say nothing then, but the code does:
//! functions of equal bytes that refer to the same things do the same, for as long as the running one keeps its code.

use super::compare::Comparer;
use super::program::{At, Program};
use super::{Diff, is_monolithic, pair};
use crate::objects::Kind;
use livepatch_patch::LinkAddr;
use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};

/// Answers for a diff. It is seldom asked, so it prepares itself at the first question.
#[derive(Debug)]
pub(crate) struct SameCode<'d, 'a> {
    diff: &'d Diff<'a>,
    prepared: OnceCell<Prepared<'d, 'a>>,
}

#[derive(Debug)]
struct Prepared<'d, 'a> {
    old: HashMap<LinkAddr, At>,
    new: HashMap<LinkAddr, At>,
    /// Running code that the patch leads elsewhere.
    replaced: HashSet<At>,
    comparer: RefCell<Comparer<'d, 'a>>,
}

impl<'d, 'a> SameCode<'d, 'a> {
    pub(crate) fn new(diff: &'d Diff<'a>) -> Self {
        Self { diff, prepared: OnceCell::new() }
    }

    /// Whether the function at `old` in the running program goes on to run as it is, and is equal to the one at `new` in the new
    /// one. Where an object is not loaded, nothing is known of its code.
    pub(crate) fn is_same(&self, old: LinkAddr, new: LinkAddr) -> bool {
        let prepared = self.prepared.get_or_init(|| Prepared::new(self.diff));
        let (Some(old), Some(new)) = (prepared.old.get(&old), prepared.new.get(&new)) else { return false };
        !prepared.replaced.contains(old) && prepared.comparer.borrow_mut().compare(*old, *new).is_equal()
    }
}

impl<'d, 'a> Prepared<'d, 'a> {
    fn new(diff: &'d Diff<'a>) -> Self {
        let (old, new) = (&diff.old, &diff.new);
        let pairs = pair::pair(&pair::placed(old), &pair::placed(new), old, new);
        let comparer = Comparer::new(old, new, pairs.ambiguous_names, pairs.partners, pairs.continued);
        Self {
            old: functions(old),
            new: functions(new),
            replaced: diff.changed.iter().map(|change| change.old).collect(),
            comparer: RefCell::new(comparer),
        }
    }
}

/// Sections that are one function each, by address.
fn functions(program: &Program<'_>) -> HashMap<LinkAddr, At> {
    let code = program.all().filter(|(_, section)| section.kind == Kind::Text && section.size > 0);
    code.filter(|(at, _)| !is_monolithic(program, *at))
        .filter_map(|(at, _)| Some((program.addr(at)?, at)))
        .collect()
}
