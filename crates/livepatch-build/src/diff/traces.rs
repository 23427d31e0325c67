//! Whether all that a function mentions of a change is still there in its machine code.
//!
//! A callee that was inlined and then computed away leaves nothing behind that says so. What was not is called, or is
//! among the inlined functions. So the calls that the source of a function has are counted against those of its code.

use super::compare::{Ref, reference};
use super::program::{At, Program};
use crate::guard::{FunctionInfo, demangle};
use crate::objects::Kind;
use crate::source::{Expected, Side, Tainted};
use std::collections::{BTreeSet, HashMap};

/// One program's code, to look for mentions in.
pub(crate) struct Traces<'p, 'a> {
    program: &'p Program<'a>,
    side: Side,
    /// Closures by the path of the function that they stand in.
    closures: HashMap<String, Vec<At>>,
}

impl<'p, 'a> Traces<'p, 'a> {
    pub(crate) fn new(program: &'p Program<'a>, side: Side) -> Self {
        let mut closures: HashMap<String, Vec<At>> = HashMap::new();
        for (at, _) in program.all().filter(|(_, section)| section.kind == Kind::Text) {
            let path = demangle(crate::emit::name_of(program, at));
            if family(&path).len() < path.len() {
                closures.entry(family(&path).to_owned()).or_default().push(at);
            }
        }
        Self { program, side, closures }
    }

    /// Whether each mention of something tainted, in the source of a function and of all that is inlined into it, is a
    /// reference or an inlined function of it.
    pub(super) fn all_remain(&self, tainted: &Tainted, at: At, info: &FunctionInfo) -> bool {
        self.missing(tainted, at, info).is_some_and(|missing| missing.is_empty())
    }

    /// Tainted names of which there are more mentions in the source of a function, and of all that is inlined into it, than
    /// references and inlined functions in its code; each with whether there is none at all. `None` if that is not known.
    pub(crate) fn missing(
        &self,
        tainted: &Tainted,
        at: At,
        info: &FunctionInfo,
    ) -> Option<Vec<(String, bool)>> {
        let expected = expected(tainted, self.side, info)?;
        if expected.is_empty() {
            return Some(Vec::new());
        }
        let mut found: HashMap<String, usize> = HashMap::new();
        for inlined in &info.inlined {
            *found.entry(last_name(family(&inlined.path)).to_owned()).or_default() += inlined.times as usize;
        }
        for at in self.members(at, info) {
            for name in references(self.program, at) {
                *found.entry(last_name(family(&demangle(name))).to_owned()).or_default() += 1;
            }
        }
        let found = |name: &String| found.get(name).copied().unwrap_or(0);
        let missing = expected.into_iter().filter(|(name, count)| *count > 0 && found(name) < *count);
        Some(missing.map(|(name, _)| (found(&name) == 0, name)).map(|(none, name)| (name, none)).collect())
    }

    /// The function itself, its closures, and the closures of what is inlined into it: what one item's source became.
    fn members(&self, at: At, info: &FunctionInfo) -> BTreeSet<At> {
        let own = demangle(crate::emit::name_of(self.program, at));
        let paths = info.inlined.iter().map(|f| f.path.as_str()).chain([own.as_str()]);
        let closures = paths.filter_map(|path| self.closures.get(family(path))).flatten().copied();
        closures.chain([at]).collect()
    }
}

/// Tainted names that the code should refer to; `None` if that is not known of a part of it.
fn expected(tainted: &Tainted, side: Side, info: &FunctionInfo) -> Option<HashMap<String, usize>> {
    let inlined = info.inlined.iter().filter_map(|f| Some((f.place.as_ref()?, f.times as usize)));
    let mut items: HashMap<*const Expected, Copies<'_>> = HashMap::new();
    for (place, times) in inlined.chain(info.place.as_ref().map(|place| (place, 1))) {
        if tainted.is_function_tainted(&place.file, place.line, side) != Some(true) {
            continue;
        }
        let expected = tainted.expected_references(&place.file, place.line, side)?;
        let copies = items.entry(expected).or_insert_with(|| Copies { expected, at: HashMap::new() });
        *copies.at.entry(place.line).or_default() += times;
    }
    let mut all: HashMap<String, usize> = HashMap::new();
    for (name, count) in items.values().flat_map(Copies::references) {
        *all.entry(name.to_owned()).or_default() += count;
    }
    Some(all)
}

/// What of one item of the source is in a function: by the lines that its parts are declared on, how many copies.
struct Copies<'t> {
    expected: &'t Expected,
    at: HashMap<u32, usize>,
}

impl<'t> Copies<'t> {
    /// The references that all copies have to have. A closure without a copy of its own was called, or computed away with what it
    /// mentions.
    fn references(&self) -> Vec<(&'t str, usize)> {
        let closures = &self.expected.closures;
        let own = self.at.iter().filter(|(line, _)| !closures.contains_key(line)).map(|(_, times)| *times);
        let own = own.max().unwrap_or(0);
        let of_closures = closures
            .iter()
            .map(|(line, counted)| (self.at.get(line).copied().unwrap_or(0).max(own.min(1)), counted));
        let parts = of_closures.chain([(own, &self.expected.own)]);
        parts
            .flat_map(|(times, counted)| counted.iter().map(move |(name, n)| (name.as_str(), n * times)))
            .collect()
    }
}

/// Functions and variables that code refers to, once for each reference.
fn references<'a>(program: &Program<'a>, at: At) -> impl Iterator<Item = &'a str> {
    program.section(at).relocs.iter().filter_map(move |reloc| {
        let Ref::Named { name, at: target, .. } = reference(program, at.unit, reloc) else { return None };
        // A named constant can be read by the optimiser.
        target.is_none_or(|target| program.section(target).kind != Kind::ReadOnly).then_some(name)
    })
}

/// The path of the function that a closure stands in.
pub(crate) fn family(path: &str) -> &str {
    let end = ["::{{closure}}", "::{closure"].iter().filter_map(|mark| path.find(mark)).min();
    &path[..end.unwrap_or(path.len())]
}

/// The item's own name: `total` of `<app::Price<u8> as app::Sum>::total::<u32>`.
pub(crate) fn last_name(path: &str) -> &str {
    let mut path = path;
    while path.ends_with('>') {
        let mut depth = 0;
        let start = path.char_indices().rev().find(|(_, c)| {
            depth += i32::from(*c == '>') - i32::from(*c == '<');
            depth == 0
        });
        let Some((start, _)) = start else { break };
        path = path[..start].trim_end_matches("::");
    }
    path.rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_items() {
        for (path, name) in [
            ("app::main", "main"),
            ("<app::Price<u8> as app::Sum>::total", "total"),
            ("<app::Price<u8> as app::Sum>::total::<u32, app::Of<u8>>", "total"),
            ("app::sum<u32>", "sum"),
            ("app::main::{{closure}}::{{closure}}", "main"),
            ("app::main::{closure#0}::{closure#1}", "main"),
        ] {
            assert_eq!(last_name(family(path)), name, "{path}");
        }
    }
}
