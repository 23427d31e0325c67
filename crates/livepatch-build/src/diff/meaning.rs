//! Which functions a change can reach, told from raw code ([`crate::raw`]).
//!
//! 1. The raw code of both builds is compared: the functions, constants and variables of which it differs are those whose
//!    own meaning changed.
//! 2. References lead from those back to everything that has one of them below it: only that can be reached by the change.
//! 3. A function of the program is reached if its meaning changed, or that of a function inlined into it (debug information
//!    tells which), or if something of changed meaning may have been inlined into it and then computed away, which leaves
//!    no trace. The last is so unless all references of the raw code, of the function and of all that is inlined, are still
//!    there in the machine code; and, where something is reached through its address only, all indirect calls.
//!
//! A function that is not reached means what it meant. Its old code goes on to be right, however much the new code differs,
//! because what both were made of is the same; except that it may have been compiled for what the optimiser knew of old
//! code that it calls, which `repartition.rs` looks after.

use super::by_source::{is_of_library, is_of_others};
use super::call_sites::is_call_site;
use super::compare::{Comparer, Verdict};
use super::names::{is_mangled, normalise};
use super::pair::{ByName, by_name, pair};
use super::program::{At, Program};
use super::rename;
use super::repartition::{Infos, Judge};
use super::shift::{self, Shift};
use super::uses::Uses;
use super::{Diff, DiffError};
use crate::build::Build;
use crate::emit::name_of;
use crate::findings::Place;
use crate::guard::{FunctionInfo, FunctionRef, demangle};
use crate::image::Image;
use crate::objects::{self, Inputs, Kind, LoadError, Unit, changed_inputs};
use crate::source::{Side, SourceDiff};
use crate::units;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What changed, and what leads there.
#[derive(Debug)]
pub struct Meaning {
    /// Names, those of the old build where both have it.
    changed: HashSet<String>,
    /// Names of which only numbers in the code moved, which may be lines.
    shifted: HashMap<String, Shift>,
    /// What the new build has in addition, see [`rename::base`].
    added: HashSet<String>,
    /// New names of what the old build has under another one.
    aliases: HashMap<String, String>,
    old: Graph,
    new: Graph,
}

/// The references of one build's raw code.
#[derive(Debug, Default)]
struct Graph {
    nodes: HashMap<String, Node>,
    /// Names from which something that changed can be reached.
    leading: HashSet<String>,
}

#[derive(Debug, Default)]
struct Node {
    calls: Vec<(String, usize)>,
    others: Vec<(String, usize)>,
    indirect: usize,
}

impl Meaning {
    /// Compares the raw code of two builds; `None` where not all of what differs between them has raw code.
    ///
    /// # Errors
    /// Kept objects cannot be read.
    pub fn between(old: (&Build, &Image), new: (&Build, &Image)) -> Result<Option<Self>, DiffError> {
        if !is_complete(old.0, new.0) {
            return Ok(None);
        }
        let (old_bytes, new_bytes) = (read(old.0)?, read(new.0)?);
        let none = Inputs::new(&[]);
        let was = Program::new(old.0, old.1, &none, parse(&old_bytes)?)?;
        let mut is = Program::new(new.0, new.1, &none, parse(&new_bytes)?)?;
        let old_names = by_name(&was, |_| true);
        let aliases = rename::by_order(&old_names, &by_name(&is, |_| true));
        let owned = aliases.iter().map(|(new, old)| ((*new).to_owned(), (*old).to_owned())).collect();
        is.set_aliases(aliases);
        let new_names = by_name(&is, |_| true);
        let Differences { changed, shifted } = differences((&was, &old_names), (&is, &new_names));
        tracing::debug!(?changed, ?shifted, "raw code compared");
        // Code that is compiled together with ours calls such functions by names that raw code of ours does not show.
        let by_name = |name: &String| !is_mangled(name) || name.contains("___rust");
        if is_compiled_together(new.0) && changed.iter().any(|name| by_name(name) && name != "main") {
            return Ok(None);
        }
        let (mut old, mut new) = (Graph::new(&was, &old_names), Graph::new(&is, &new_names));
        old.lead_to(&changed);
        new.lead_to(&changed);
        let added = new_names.keys().filter(|name| !old_names.contains_key(*name));
        let added = added.filter_map(|name| rename::base(name)).collect();
        Ok(Some(Self { changed, shifted, added, aliases: owned, old, new }))
    }

    /// Takes functions for unchanged that differ in line numbers only.
    pub(super) fn forget_lines(&mut self, infos: &Infos, source: &SourceDiff) {
        let old = shift::places(infos.old.values(), |symbol| self.key(symbol));
        let new = shift::places(infos.new.values(), |symbol| self.key(symbol));
        let of_lines = |(name, by): &(&String, &Shift)| shift::is_of_lines(**by, name, (&old, &new), source);
        let lines: Vec<String> = self.shifted.iter().filter(of_lines).map(|(name, _)| name.clone()).collect();
        if lines.is_empty() {
            return;
        }
        tracing::debug!(?lines, "differ in line numbers only");
        self.changed.retain(|name| !lines.contains(name));
        self.old.lead_to(&self.changed);
        self.new.lead_to(&self.changed);
    }

    /// The name that this symbol of either build goes by.
    fn key<'s>(&'s self, symbol: &'s str) -> &'s str {
        let name = normalise(symbol);
        self.aliases.get(name).map_or(name, String::as_str)
    }

    /// Whether the meaning of this function or variable itself changed.
    pub(crate) fn is_changed(&self, symbol: &str) -> bool {
        self.changed.contains(self.key(symbol))
    }

    /// Whether the new build has what is called so in the old one, or something of that path.
    pub(super) fn lives_on(&self, symbol: &str) -> bool {
        self.knows(symbol, Side::New) || rename::base(symbol).is_some_and(|base| self.added.contains(&base))
    }

    /// Whether there is raw code of it, on this side.
    pub(super) fn knows(&self, symbol: &str, side: Side) -> bool {
        self.graph(side).nodes.contains_key(self.key(symbol))
    }

    fn graph(&self, side: Side) -> &Graph {
        if side == Side::Old { &self.old } else { &self.new }
    }

    /// Whether the change may have got into the machine code of a function. `symbol` is its own if it has raw code.
    pub(super) fn reaches(
        &self,
        symbol: Option<&str>,
        info: &FunctionInfo,
        machine: &Uses<'_>,
        side: Side,
    ) -> bool {
        let graph = self.graph(side);
        let inlined = info.inlined.iter().filter_map(|inlined| inlined.symbol.as_deref());
        let roots: HashSet<&str> = inlined.chain(symbol).map(|symbol| self.key(symbol)).collect();
        if roots.iter().any(|name| self.changed.contains(*name)) || info.inlined.iter().any(is_nameless) {
            return true;
        }
        if !roots.iter().any(|name| graph.leading.contains(*name)) {
            return false;
        }
        graph.may_lose(&roots, &self.changed, &machine.renamed(|name| self.key(name)))
    }
}

/// Judges by raw code.
pub(super) struct ByMeaning<'j, 'a> {
    pub meaning: &'j Meaning,
    pub diff: &'j Diff<'a>,
    pub source: &'j SourceDiff,
    pub crates: &'j HashSet<String>,
    pub infos: &'j Infos,
}

impl Judge for ByMeaning<'_, '_> {
    fn may_reach(&self, at: At, side: Side) -> bool {
        let program = self.diff.program(side);
        let symbol = name_of(program, at);
        let Some(info) = self.infos.of(side).get(&at) else { return !is_of_others(symbol, self.crates) };
        let known = self.meaning.knows(symbol, side);
        if !known && !is_of_library(symbol, info) && !is_foreign(symbol, info.place.as_ref()) {
            return true;
        }
        let places = info.inlined.iter().filter_map(|inlined| inlined.place.as_ref());
        let in_changed_text =
            places.chain(&info.place).any(|place| self.source.is_in_changed_text(place, side));
        in_changed_text || self.meaning.reaches(known.then_some(symbol), info, &Uses::of(program, at), side)
    }

    fn is_changed_variable(&self, symbol: &str) -> bool {
        if is_call_site(symbol) {
            // It holds its line, so it differs wherever something moved.
            return self.source.tainted().mentions_path(&demangle(symbol), self.crates);
        }
        self.meaning.is_changed(symbol) || !self.meaning.knows(symbol, Side::New)
    }
}

/// Whether a function is of a crate that is nobody's to change, as it is and not as a variant that the optimiser made.
fn is_foreign(symbol: &str, place: Option<&Place>) -> bool {
    let plain = normalise(symbol);
    let whole = (plain.starts_with("_ZN") && plain.ends_with('E'))
        || (plain.starts_with("_R") && !plain.contains('.'));
    whole && is_elsewhere(place)
}

fn is_elsewhere(place: Option<&Place>) -> bool {
    let parts = ["/rustc/", "/rustlib/src/", "/registry/src/", "/git/checkouts/"];
    place.is_some_and(|place| parts.iter().any(|part| place.file.contains(part)))
}

/// An inlined function of which debug information has no symbol, and that may be one of ours.
fn is_nameless(inlined: &FunctionRef) -> bool {
    inlined.symbol.is_none() && !is_elsewhere(inlined.place.as_ref())
}

impl Graph {
    fn new<'a>(program: &Program<'a>, names: &ByName<'a>) -> Self {
        let mut of_sections: HashMap<At, Uses<'a>> = HashMap::new();
        let mut nodes = HashMap::new();
        for (name, sections) in names {
            let mut all = Uses::default();
            for at in sections {
                all.join(of_sections.entry(*at).or_insert_with(|| Uses::of(program, *at)));
            }
            let owned =
                |uses: HashMap<&str, usize>| uses.into_iter().map(|(n, c)| (n.to_owned(), c)).collect();
            let node = Node { calls: owned(all.calls), others: owned(all.others), indirect: all.indirect };
            nodes.insert((*name).to_owned(), node);
        }
        Self { nodes, leading: HashSet::new() }
    }

    /// Finds the names from which one of these can be reached.
    fn lead_to(&mut self, changed: &HashSet<String>) {
        let mut users: HashMap<&str, Vec<&str>> = HashMap::new();
        for (name, node) in &self.nodes {
            let used = node.calls.iter().chain(&node.others);
            used.for_each(|(used, _)| users.entry(used).or_default().push(name));
        }
        let mut leading = HashSet::new();
        let mut work: Vec<&str> = changed.iter().map(String::as_str).collect();
        while let Some(name) = work.pop() {
            if leading.insert(name.to_owned()) {
                work.extend(users.get(name).into_iter().flatten());
            }
        }
        self.leading = leading;
    }

    /// Whether a reference to something that changed may have been inlined and computed away in code that was made of
    /// `roots`, none of which changed.
    fn may_lose(&self, roots: &HashSet<&str>, changed: &HashSet<String>, machine: &Uses<'_>) -> bool {
        let mut members: HashSet<&str> = roots.clone();
        let mut work: Vec<&str> = roots.iter().copied().collect();
        let mut wanted = Wanted::default();
        loop {
            while let Some(name) = work.pop() {
                if let Some(node) = self.nodes.get(name) {
                    wanted.add(node, &self.leading);
                }
            }
            // What is neither called nor inlined visibly was inlined without a trace, with all that it does.
            let lost = wanted.missing(machine).filter(|name| !members.contains(name));
            let lost: Vec<&str> =
                lost.filter_map(|name| Some(&**self.nodes.get_key_value(name)?.0)).collect();
            if lost.is_empty() {
                break;
            }
            members.extend(&lost);
            work.extend(lost);
        }
        let devirtualised = wanted.by_address && wanted.indirect > machine.indirect;
        let lost: Vec<&str> = wanted.missing(machine).filter(|name| changed.contains(*name)).collect();
        if devirtualised || !lost.is_empty() {
            tracing::debug!(?lost, devirtualised, "may have been computed away");
        }
        devirtualised || !lost.is_empty()
    }
}

/// References that machine code has to have if nothing was computed away.
#[derive(Default)]
struct Wanted<'g> {
    calls: BTreeMap<&'g str, usize>,
    others: BTreeMap<&'g str, usize>,
    indirect: usize,
    /// Whether something that leads to the change is reached through its address.
    by_address: bool,
}

impl<'g> Wanted<'g> {
    fn add(&mut self, node: &'g Node, leading: &HashSet<String>) {
        for (into, from) in [(&mut self.calls, &node.calls), (&mut self.others, &node.others)] {
            for (name, count) in from.iter().filter(|(name, _)| leading.contains(name)) {
                *into.entry(name).or_default() += count;
            }
        }
        self.by_address |= node.others.iter().any(|(name, _)| leading.contains(name));
        self.indirect += node.indirect;
    }

    fn missing(&self, machine: &Uses<'_>) -> impl Iterator<Item = &'g str> {
        let count = |map: &HashMap<&str, usize>, name: &str| map.get(name).copied().unwrap_or(0);
        let lost_calls = self.calls.iter().filter(move |(name, wanted)| {
            // A function whose address is kept in a register is called from there as often as needed.
            let by_register = !self.others.contains_key(**name) && count(&machine.others, name) > 0;
            !by_register && count(&machine.calls, name) < **wanted
        });
        let lost_others = self.others.iter().filter(move |(name, wanted)| {
            count(&machine.others, name) + count(&machine.calls, name) < **wanted
        });
        lost_calls.chain(lost_others).map(|(name, _)| *name).collect::<Vec<_>>().into_iter()
    }
}

/// Whether every crate that may differ has raw code in both builds.
fn is_complete(old: &Build, new: &Build) -> bool {
    let (old_inputs, new_inputs) = changed_inputs(old, new);
    let covered = |build: &Build, path: &str| {
        let file = path.rsplit('/').next().unwrap_or_default();
        let of_crate = |stem: &str| {
            file.strip_prefix("lib").and_then(|rest| rest.strip_suffix(".rlib")) == Some(stem)
                || file.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.'))
        };
        // A list of symbols that rustc makes for shared objects.
        file == "symbols.o" || build.raw.iter().any(|(stem, _)| of_crate(stem))
    };
    let uncovered =
        old_inputs.iter().map(|input| (old, input)).chain(new_inputs.iter().map(|input| (new, input)));
    let uncovered: Vec<_> = uncovered
        .filter(|(build, input)| !covered(build, &input.path))
        .map(|(_, input)| &input.path)
        .collect();
    let complete = uncovered.is_empty() && has_all(old) && has_all(new) && foreign(old) == foreign(new);
    if !complete {
        tracing::debug!(?uncovered, "no raw code of all that differs");
    }
    complete
}

/// Whether the local crates of a build have raw code, the linked one among them.
fn has_all(build: &Build) -> bool {
    let units = build.manifest.units.iter().filter(|unit| units::is_in_program(unit) && unit.local);
    let has_raw = |name: &str| {
        build.raw.iter().any(|(stem, _)| {
            stem.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
    };
    let linked = &build.manifest.link.crate_name;
    has_raw(linked) && units.into_iter().all(|unit| unit.raw.is_none() || has_raw(&unit.crate_name))
}

/// Whether link-time optimisation compiles crates of others together with ours.
fn is_compiled_together(build: &Build) -> bool {
    let settings = build.manifest.units.iter().flat_map(|unit| &unit.settings);
    settings.into_iter().any(|setting| setting.starts_with("-C lto") && !setting.ends_with("=off"))
}

/// What identifies the crates that are nobody's to change.
fn foreign(build: &Build) -> Vec<(&str, &str, &str)> {
    let units = build.manifest.units.iter().filter(|unit| units::is_in_program(unit) && !unit.local);
    let mut all: Vec<_> = units.map(|unit| (&*unit.package, &*unit.version, &*unit.metadata)).collect();
    all.sort_unstable();
    all
}

fn read(build: &Build) -> Result<Vec<(String, Vec<u8>)>, DiffError> {
    let one = |(stem, path): &(String, std::path::PathBuf)| {
        let bytes = crate::raw::read(path)
            .map_err(|error| DiffError::Raw { name: stem.clone(), error: Box::new(error) })?;
        Ok((stem.clone(), bytes))
    };
    build.raw.iter().map(one).collect()
}

fn parse(objects: &[(String, Vec<u8>)]) -> Result<Vec<Unit<'_>>, DiffError> {
    let mut units = Vec::with_capacity(objects.len());
    for (stem, bytes) in objects {
        units.extend(objects::object(stem, bytes).map_err(LoadError::from)?);
    }
    Ok(units)
}

/// How the raw code of two builds differs.
struct Differences {
    /// Names whose raw code differs, or is there on one side only.
    changed: HashSet<String>,
    /// Those of which only numbers moved.
    shifted: HashMap<String, Shift>,
}

fn differences<'a>(
    (old, old_names): (&Program<'a>, &ByName<'a>),
    (new, new_names): (&Program<'a>, &ByName<'a>),
) -> Differences {
    let pairs = pair(old_names, new_names, old, new);
    let mut comparer =
        Comparer::new(old, new, pairs.ambiguous_names, pairs.partners.clone(), pairs.continued);
    let names = |program: &Program<'a>, at: At| -> Vec<String> {
        let unit = program.unit(at);
        program.section(at).symbols.iter().map(|ix| program.key(unit.symbol(*ix).name).to_owned()).collect()
    };
    let sets = pairs
        .sets
        .iter()
        .flat_map(|set| set.old.iter().flat_map(|old| set.new.iter().map(move |new| (*old, *new))));
    let (mut changed, mut shifted) = (HashSet::new(), HashMap::new());
    for (old_at, new_at) in pairs.pairs.into_iter().chain(sets) {
        let Verdict::Different(_) = comparer.compare(old_at, new_at) else { continue };
        let (was, is) = (old.section(old_at), new.section(new_at));
        let shift = Shift::between(was, is)
            .filter(|_| was.kind == Kind::Text && comparer.compare_references(old_at, new_at).is_equal());
        for name in names(old, old_at).into_iter().chain(names(new, new_at)) {
            // Several sections of one name have to agree.
            match shift {
                Some(shift) if !changed.contains(&name) => drop(shifted.insert(name.clone(), shift)),
                _ if shifted.get(&name).copied() == shift => {}
                _ => drop(shifted.remove(&name)),
            }
            changed.insert(name);
        }
    }
    let only = |these: &ByName<'a>, others: &ByName<'a>| -> Vec<String> {
        these.keys().filter(|name| !others.contains_key(*name)).map(|name| (*name).to_owned()).collect()
    };
    changed.extend(only(old_names, new_names));
    changed.extend(only(new_names, old_names));
    Differences { changed, shifted }
}
