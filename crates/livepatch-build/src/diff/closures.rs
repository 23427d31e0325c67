//! Closures of which the name may mean another one than before.
//!
//! The compiler names closures and async bodies of a function by counting, so that one more in front gives each behind it the name of
//! the one before. Values of them that the running program keeps (boxed, as function pointers, suspended) would then run the code of
//! another one. Raw code tells: where a closure is what another one of its function was, the numbers moved; and where closures
//! were added or removed, nothing tells which one a closure is that differs.

use super::compare::Comparer;
use super::pair::{ByName, Pairs};
use super::program::{At, Program};
use crate::guard::demangle;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// One program's closures of one function (or of several of one path), by name.
type Siblings<'a> = BTreeMap<&'a str, At>;

/// Names that both programs have, of closures that differ and may be other ones than before. `changed` are the names of all that differs.
pub(super) fn mistakable<'a>(
    (old, old_names): (&Program<'a>, &ByName<'a>),
    (new, new_names): (&Program<'a>, &ByName<'a>),
    pairs: Pairs<'a>,
    changed: &HashSet<String>,
) -> HashSet<String> {
    let (old_groups, new_groups) = (siblings(old_names), siblings(new_names));
    let mut comparer = Comparer::new(old, new, pairs.ambiguous_names, pairs.partners, pairs.continued);
    comparer.compare_paths();
    let mut found = HashSet::new();
    for (parent, before) in &old_groups {
        let Some(after) = new_groups.get(parent) else { continue };
        let names = |group: &Siblings<'a>| group.keys().copied().collect::<BTreeSet<&str>>();
        let is_clear = names(before) == names(after);
        for (name, was) in before.iter().filter(|(name, _)| changed.contains(**name)) {
            let Some(is) = after.get(name) else { continue };
            let others = |group: &Siblings<'a>| {
                let others = group.iter().filter(|(other, _)| *other != name && changed.contains(**other));
                others.map(|(_, at)| *at).collect::<Vec<_>>()
            };
            let moved = others(after).into_iter().any(|other| comparer.compare(*was, other).is_equal())
                || others(before).into_iter().any(|other| comparer.compare(other, *is).is_equal());
            if moved || !is_clear {
                found.insert((*name).to_owned());
            }
        }
    }
    found
}

fn siblings<'a>(names: &ByName<'a>) -> BTreeMap<String, Siblings<'a>> {
    let mut groups: BTreeMap<String, Siblings<'a>> = BTreeMap::new();
    for (name, ats) in names.iter().filter(|(name, _)| name.contains("closure") || name.starts_with("_R")) {
        if let (Some(parent), [at, ..]) = (parent(&demangle(name)), ats.as_slice()) {
            groups.entry(parent.to_owned()).or_default().insert(name, *at);
        }
    }
    groups
}

/// The path of what a closure is written in.
fn parent(path: &str) -> Option<&str> {
    if let Some(parent) = path.strip_suffix("::{{closure}}") {
        return Some(parent);
    }
    let (parent, number) = path.rsplit_once("::{closure#")?;
    number.strip_suffix('}').filter(|number| number.bytes().all(|b| b.is_ascii_digit())).map(|_| parent)
}

#[cfg(test)]
mod tests {
    use super::parent;

    #[test]
    fn closures_of_both_manglings_have_a_parent() {
        assert_eq!(parent("app::f::{{closure}}"), Some("app::f"));
        assert_eq!(parent("app::f::{{closure}}::{{closure}}"), Some("app::f::{{closure}}"));
        assert_eq!(parent("app::f::<u8>::{closure#12}"), Some("app::f::<u8>"));
        assert_eq!(parent("app::f::{closure#0}::g"), None);
        assert_eq!(parent("app::f"), None);
    }
}
