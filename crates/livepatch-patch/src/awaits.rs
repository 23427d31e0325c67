//! What an async body awaits, in the order in which a suspended instance counts it.
//!
//! The instance knows the point at which it waits by a number, and what it waits for by its type. Where two points wait for futures of one
//! type, nothing but the source tells that they changed places: the instance would go on behind the other one.

use crate::Tag;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::Hash;

/// An expression that is awaited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Await {
    /// Its text.
    pub what: Tag,
    /// Its text without arguments.
    pub callee: Tag,
    /// The conditions, patterns and loops that it stands under.
    pub under: Tag,
    /// What is made for it to await: arguments that are calls, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handed: Vec<Tag>,
}

impl Await {
    /// Which of the old ones is awaited at another place now, or may be, if one is. An expression whose text is in one list only is taken
    /// for one that was edited where it is: the number of places is known to be the same from the types.
    pub fn moved(old: &[Self], new: &[Self]) -> Option<usize> {
        let (before, after) = (places(old), places(new));
        let under = |all: &[Self], at: &[usize]| at.iter().map(|at| all[*at].under).collect::<Vec<_>>();
        let is_moved = |(what, was): &(&Tag, &Vec<usize>)| match (was.as_slice(), after.get(*what)) {
            (_, None) => false,
            ([was], Some(is)) if is.len() == 1 => *was != is[0],
            (_, Some(is)) => under(old, was) != under(new, is),
        };
        let moved = before.iter().filter(is_moved).map(|(_, was)| was[0]).min();
        let callees = |all: &[Self]| all.iter().map(|one| one.callee).collect::<Vec<_>>();
        let (was, is) = (callees(old), callees(new));
        let callee =
            || in_other_place(&was, &is).and_then(|moved| was.iter().position(|callee| callee == moved));
        let handed =
            || old.iter().zip(new).position(|(old, new)| in_other_place(&old.handed, &new.handed).is_some());
        moved.or_else(callee).or_else(handed)
    }
}

/// The places of each text.
fn places(all: &[Await]) -> HashMap<Tag, Vec<usize>> {
    let mut places: HashMap<Tag, Vec<usize>> = HashMap::new();
    for (at, one) in all.iter().enumerate() {
        places.entry(one.what).or_default().push(at);
    }
    places
}

/// What both lists have once, and the new one in another place, or, where it is longer or shorter, in another order.
pub fn in_other_place<'l, T: Eq + Hash>(old: &'l [T], new: &[T]) -> Option<&'l T> {
    if old.len() != new.len() {
        return in_other_order(old, new);
    }
    let (was, is) = (single(old), single(new));
    old.iter().find(|one| was.get(one).zip(is.get(one)).is_some_and(|(was, is)| was != is))
}

/// What both lists have once, and the new one in another order.
pub fn in_other_order<'l, T: Eq + Hash>(old: &'l [T], new: &[T]) -> Option<&'l T> {
    let (was, is) = (single(old), single(new));
    let in_both = |one: &&T| was.contains_key(*one) && is.contains_key(*one);
    let (before, after) = (old.iter().filter(in_both), new.iter().filter(in_both));
    before.zip(after).find(|(before, after)| before != after).map(|(before, _)| before)
}

/// Where each is that is there once.
fn single<T: Eq + Hash>(all: &[T]) -> HashMap<&T, usize> {
    let mut places: HashMap<&T, Option<usize>> = HashMap::new();
    for (at, one) in all.iter().enumerate() {
        places.entry(one).and_modify(|at| *at = None).or_insert(Some(at));
    }
    places.into_iter().filter_map(|(one, at)| Some((one, at?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn awaits(text: &str) -> Vec<Await> {
        let one = |one: &str| {
            let (what, handed) = one.split_once('(').unwrap_or((one, ""));
            let handed = handed.trim_end_matches(')').split_terminator('+').map(Tag::of).collect();
            let (what, under) = what.split_once('<').unwrap_or((what, ""));
            let callee = Tag::of(what.trim_end_matches(char::is_numeric));
            Await { what: Tag::of(what), callee, under: Tag::of(under), handed }
        };
        text.split(' ').map(one).collect()
    }

    #[test]
    fn what_changed_places() {
        let moved = |old, new| Await::moved(&awaits(old), &awaits(new));
        assert_eq!(moved("a b c", "a c b"), Some(1));
        assert_eq!(moved("a b", "a x"), None);
        assert_eq!(moved("a1 b1", "a2 b2"), None);
        assert_eq!(moved("a1 b1", "b2 a2"), Some(0));
        assert_eq!(moved("a<x a<y", "a<x a<y"), None);
        assert_eq!(moved("a<x a<y", "a<y a<x"), Some(0));
        assert_eq!(moved("b j(f+g)", "b k(f+g)"), None);
        assert_eq!(moved("b j(f+g)", "b k(g+f)"), Some(1));
    }

    #[test]
    fn what_is_in_another_place() {
        let other = |old: &str, new: &str| {
            let (old, new): (Vec<char>, Vec<char>) = (old.chars().collect(), new.chars().collect());
            in_other_place(&old, &new).copied()
        };
        assert_eq!(other("ab", "ba"), Some('a'));
        assert_eq!(other("ab", "ca"), Some('a'));
        assert_eq!(other("ab", "ac"), None);
        assert_eq!(other("ab", "xyab"), None);
        assert_eq!(other("ab", "xyba"), Some('a'));
        assert_eq!(other("aab", "baa"), Some('b'));
        assert_eq!(other("aab", "aba"), Some('b'));
        assert_eq!(other("aab", "caa"), None);
    }
}
