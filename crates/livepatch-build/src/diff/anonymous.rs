//! Anonymous constants that have another number in the new build.
//!
//! Many derives expand to `const _: () = { … };`. All of these are called `_`, and the compiler numbers them by their order in the
//! module. What is declared in one (types, their methods, functions that are generic over such types) has that number in its
//! symbol, so one more before the others gives their symbols to others: the running function of one type would be led to the new one
//! of another.
//!
//! The numbers are hidden in hashes. But the symbol of what an impl block in such a constant defines spells out the type and the
//! trait, and its hash has the number: where the same path has other symbols, the numbers may be others.

use super::Diff;
use super::pair::{ByName, by_name};
use super::rename::base;
use crate::guard::{demangle, impl_scope};
use std::collections::{BTreeSet, HashMap, HashSet};

impl Diff<'_> {
    /// Paths such as `app::module::_` whose constants may have other numbers.
    pub(crate) fn renumbered_constants(&self) -> BTreeSet<String> {
        let mut scopes = BTreeSet::new();
        match self.meaning.all() {
            Some(meaning) => {
                // Names that were paired are the same on both sides.
                scopes.extend(meaning.renamed.keys().filter_map(|name| scope(name)));
                let [old, new] = meaning.graphs();
                let names = |graph: &'_ super::graph::Graph| graph.nodes.keys().cloned().collect::<Vec<_>>();
                scopes.extend(disjoint(&names(old), &names(new)));
            }
            None => {
                let names = |names: ByName<'_>| names.into_keys().map(str::to_owned).collect::<Vec<String>>();
                scopes.extend(self.new.renamed().filter_map(|(old, _)| scope(old)));
                let (old, new) = (by_name(&self.old, |_| true), by_name(&self.new, |_| true));
                scopes.extend(disjoint(&names(old), &names(new)));
            }
        }
        scopes
    }
}

/// Scopes of what both builds have, but under no common symbol.
fn disjoint(old: &[String], new: &[String]) -> BTreeSet<String> {
    let of = |names: &[String]| {
        let mut paths: HashMap<String, HashSet<String>> = HashMap::new();
        for name in names.iter().filter(|name| scope(name).is_some()) {
            paths.entry(base(name).unwrap_or_default()).or_default().insert(name.clone());
        }
        paths
    };
    let (old, new) = (of(old), of(new));
    let moved = old.iter().filter(|(path, names)| new.get(*path).is_some_and(|now| names.is_disjoint(now)));
    moved.flat_map(|(_, names)| names.iter().filter_map(|name| scope(name))).collect()
}

/// `app::module::_` of a symbol of something in an anonymous constant of that module.
fn scope(symbol: &str) -> Option<String> {
    // Most symbols have nothing of that kind; this saves demangling them.
    if !(symbol.contains("1_") || symbol.contains(".._..")) {
        return None;
    }
    let of_impl = impl_scope(symbol).map(|path| path + "::");
    of_impl.into_iter().chain([demangle(symbol)]).find_map(|path| within(&path))
}

/// The path up to the anonymous constant, if a name has one.
fn within(name: &str) -> Option<String> {
    let at = name.find("::_::")?;
    let start =
        name[..at].rfind(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | ':'))).map_or(0, |i| i + 1);
    Some(format!("{}::_", &name[start..at]))
}

/// Whether a name has a path in it that leads into one of these constants.
pub(crate) fn leads_into<'s>(name: &str, scopes: &'s BTreeSet<String>) -> Option<&'s str> {
    let continues = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
    let is_in = |scope: &&String| {
        name.match_indices(&format!("{scope}::")).any(|(at, _)| !name[..at].ends_with(continues))
    };
    scopes.iter().find(is_in).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_is_the_path_of_the_constant() {
        let make = "_ZN3app1_50_$LT$impl$u20$app..Make$u20$for$u20$app..Plain$GT$4make17ha81ab1724f590ec4E";
        assert_eq!(scope(make).as_deref(), Some("app::_"));
        let name = "_ZN44_$LT$app.._..Local$u20$as$u20$app..Shape$GT$4name17he523563fa4120703E";
        assert_eq!(scope(name).as_deref(), Some("app::_"));
        assert_eq!(scope("_ZN3app4make17ha81ab1724f590ec4E"), None);
    }

    #[test]
    fn equal_paths_without_a_common_symbol_have_moved() {
        let make = |hash: &str| format!("_ZN3app1_10_$LT$A$GT$4make17h{hash}E");
        let (one, two) = (make("0000000000000001"), make("0000000000000002"));
        assert!(disjoint(std::slice::from_ref(&one), &[one.clone(), two.clone()]).is_empty());
        assert_eq!(disjoint(&[one], &[two]), ["app::_".to_owned()].into());
    }

    #[test]
    fn a_name_leads_into_a_constant_wherever_the_path_stands() {
        let scopes = ["app::_".to_owned()].into();
        assert!(leads_into("serde::read<&app::_::{impl#0}::Local>", &scopes).is_some());
        assert!(leads_into("app::_::Local", &scopes).is_some());
        assert!(leads_into("my::app::_::Local", &scopes).is_none());
        assert!(leads_into("app::m::_::Local", &scopes).is_none());
    }
}
