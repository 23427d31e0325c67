//! Functions that cannot be redirected, because the optimiser passes their arguments otherwise than before.
//!
//! It alters that of functions all of whose callers it knows: an argument that is not used is not passed, a result that is always the same
//! is not returned. Where nothing but replaced code calls the old copy, it need not be redirected: new callers call the new copy, which comes
//! with the patch, and the old one is left to whoever is in it. The callers are replaced even if they mean what they meant.

use super::callers;
use super::lost::{Use, Users, users};
use super::program::At;
use super::repartition::Infos;
use super::{Changed, Diff};
use crate::guard::Callers;
use std::collections::{HashMap, HashSet};

/// What was found.
#[derive(Default)]
pub(super) struct Apart {
    /// Functions that are not redirected: old and new code.
    pub parted: Vec<Changed>,
    /// Old callers that are replaced for this, each with what it calls.
    pub callers: HashMap<At, At>,
}

/// Looks for them among `replaced`; `aside` are further functions that can be replaced, and nothing continues `unpaired`.
pub(super) fn apart(
    diff: &Diff<'_>,
    (infos, unpaired): (&Infos, &HashSet<At>),
    (replaced, aside): (&[Changed], &[Changed]),
) -> Apart {
    let mut apart = Apart::default();
    let pairs: Vec<_> = replaced.iter().map(|change| (change.old, change.new)).collect();
    let known = callers::of_pairs(diff, &pairs);
    let candidates: Vec<Changed> =
        replaced.iter().copied().filter(|change| is_passed_otherwise(infos, change, &known)).collect();
    if candidates.is_empty() {
        return apart;
    }
    let asked = candidates.iter().map(|change| change.old).chain(unpaired.iter().copied()).collect();
    let users = users(&diff.old, &asked);
    let can_be: HashSet<At> = replaced.iter().chain(aside).map(|change| change.old).collect();
    let is_replaced: HashSet<At> = replaced.iter().map(|change| change.old).collect();
    for change in candidates {
        let Some(callers) = callers(change.old, &users, (&can_be, unpaired)) else { continue };
        apart.parted.push(change);
        let more = callers.into_iter().filter(|caller| !is_replaced.contains(caller));
        apart.callers.extend(more.map(|caller| (caller, change.old)));
    }
    apart
}

/// The functions that can be replaced and that call an old one, themselves or through others that nothing continues; `None` if something
/// else can come to it.
fn callers(at: At, users: &Users, (can_be, unpaired): (&HashSet<At>, &HashSet<At>)) -> Option<HashSet<At>> {
    let (mut callers, mut seen, mut work) = (HashSet::new(), HashSet::from([at]), vec![at]);
    while let Some(at) = work.pop() {
        for (user, how) in users.get(&at).into_iter().flatten() {
            match *how != Use::Address {
                true if can_be.contains(user) => drop(callers.insert(*user)),
                true if unpaired.contains(user) => work.extend(seen.insert(*user).then_some(*user)),
                _ => return None,
            }
        }
    }
    (!callers.is_empty()).then_some(callers)
}

/// Whether it is a function to whose new code old callers would pass arguments wrongly.
fn is_passed_otherwise(infos: &Infos, change: &Changed, known: &HashMap<(At, At), [Callers; 2]>) -> bool {
    let conventions = infos.old.get(&change.old).zip(infos.new.get(&change.new));
    let callers = known[&(change.old, change.new)];
    conventions.is_some_and(|(old, new)| old.convention.differs(&new.convention, callers))
}

impl Diff<'_> {
    /// Lets the old code of these be, so that whoever calls the new code gets it from the patch.
    pub(super) fn part(&mut self, parted: &[Changed]) {
        for Changed { old, .. } in parted {
            self.changed.retain(|change| change.old != *old);
            self.partners.retain(|_, partner| partner != old);
            self.twins.retain(|_, twin| twin != old);
        }
    }
}
