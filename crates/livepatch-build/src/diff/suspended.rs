//! Coroutines of which suspended instances own something else than before.
//!
//! Where a value is moved on some paths only before an await, the compiler keeps a flag beside it that says whether it is still there.
//! A flag has no name, and debug information does not tell whose it is: in the fixed source it may be another value's, and a running
//! future's flag would be taken for that. What is dropped with a suspended future tells, because it asks the flags. So the code that
//! drops a coroutine has to mean what it meant.

use super::graph::Node;
use super::traces::{family, last_name};
use super::{Diff, Meaning};
use crate::emit::name_of;
use crate::guard::demangle;
use crate::source::Side;
use std::collections::BTreeSet;

impl Diff<'_> {
    /// The paths of coroutines, and of closures, of which both builds have code to drop them, which differs.
    pub(crate) fn dropped_otherwise(&self) -> BTreeSet<String> {
        let meaning = self.meaning.any();
        let knows =
            |meaning: &Meaning, name| meaning.knows(name, Side::Old) && meaning.knows(name, Side::New);
        let of_raw = meaning.into_iter().flat_map(|meaning| {
            let in_both = meaning.changed.iter().filter(|name| knows(meaning, name));
            in_both.filter_map(|name| dropped(&demangle(name)))
        });
        let names = self.changed.iter().map(|change| name_of(&self.old, change.old));
        let unknown = names.filter(|name| !meaning.is_some_and(|meaning| knows(meaning, name)));
        of_raw.chain(unknown.filter_map(|name| dropped(&demangle(name)))).collect()
    }
}

impl Meaning {
    /// What is done, by raw code, when suspended instances of the async function of this name, or of blocks in it, are dropped.
    pub(crate) fn drop_of(&self, function: &str) -> BTreeSet<String> {
        let nodes = self.new.nodes.iter().filter(|(name, _)| name.contains(function));
        let glue = nodes.filter(|(name, _)| {
            dropped(&demangle(name)).is_some_and(|of| last_name(family(&of)) == function)
        });
        glue.map(|(_, node)| code(node)).collect()
    }

    /// What a function that only the new build has does, by raw code, and with which constants.
    pub(crate) fn code_of(&self, symbol: &str) -> Option<String> {
        let name = self.key(symbol);
        Some(format!("{} {}", code(self.new.nodes.get(name)?), self.contents.get(name)?))
    }
}

fn code(node: &Node) -> String {
    let calls: BTreeSet<_> = node.calls.iter().chain(&node.others).collect();
    format!("{} {calls:?}", node.shape)
}

/// What a piece of drop glue drops, if that is what a closure or an async body makes.
pub(super) fn dropped(path: &str) -> Option<String> {
    let glue = path.strip_prefix("core::ptr::drop_in_place")?;
    let of = glue.strip_prefix("::").unwrap_or(glue).strip_prefix('<')?.strip_suffix('>')?;
    let label = of.rsplit("::").next()?;
    (label == "{{closure}}" || label.starts_with("{closure#") && label.ends_with('}')).then(|| of.to_owned())
}

#[cfg(test)]
mod tests {
    use super::dropped;

    #[test]
    fn only_what_a_body_makes_counts() {
        for path in [
            "core::ptr::drop_in_place<app::job::{{closure}}>",
            "core::ptr::drop_in_place::<app::job::{closure#0}>",
        ] {
            assert!(dropped(path).is_some_and(|of| of.starts_with("app::job::{")), "{path}");
        }
        for path in [
            "core::ptr::drop_in_place<app::Job>",
            "app::job::{{closure}}",
            "core::ptr::drop_in_place<alloc::boxed::Box<app::job::{{closure}}>>",
        ] {
            assert_eq!(dropped(path), None, "{path}");
        }
    }
}
