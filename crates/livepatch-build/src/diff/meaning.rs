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
use super::call_sites::has_name;
use super::closures;
use super::compare::{Comparer, Verdict};
use super::complete::{is_compiled_together, is_complete};
use super::graph::Graph;
use super::lost::users;
use super::names::{is_mangled, normalise};
use super::pair::{ByName, by_name, pair};
use super::program::{At, Program};
use super::rename;
use super::repartition::{Infos, Judge};
use super::runs_once;
use super::shift::{self, Shift};
use super::suspended::dropped;
use super::traces::{family, last_name};
use super::unread;
use super::uses::{Uses, contents};
use super::{Diff, DiffError};
use crate::build::Build;
use crate::emit::name_of;
use crate::findings::Place;
use crate::guard::{FunctionInfo, FunctionRef, demangle, is_fixed_with, of_standard_library};
use crate::image::Image;
use crate::objects::{self, Inputs, Kind, LoadError, Unit};
use crate::source::{self, Side, SourceDiff, Suspect};
use std::collections::{BTreeSet, HashMap, HashSet};

/// How much of a change raw code tells.
#[derive(Debug, Default)]
pub enum Known {
    /// All that differs between the builds has raw code.
    All(Meaning),
    /// Something else differs, too: this tells what changed in the crates that have raw code, and not what did not change.
    Ours(Meaning),
    /// There is no raw code.
    #[default]
    Nothing,
}

impl Known {
    /// What changed, and that nothing else did.
    pub(crate) fn all(&self) -> Option<&Meaning> {
        match self {
            Self::All(meaning) => Some(meaning),
            Self::Ours(_) | Self::Nothing => None,
        }
    }

    /// What changed, and maybe not everything that did.
    pub(crate) fn any(&self) -> Option<&Meaning> {
        match self {
            Self::All(meaning) | Self::Ours(meaning) => Some(meaning),
            Self::Nothing => None,
        }
    }

    pub(super) fn any_mut(&mut self) -> Option<&mut Meaning> {
        match self {
            Self::All(meaning) | Self::Ours(meaning) => Some(meaning),
            Self::Nothing => None,
        }
    }
}

/// What changed, and what leads there.
#[derive(Debug)]
pub struct Meaning {
    /// Names, those of the old build where both have it.
    pub(super) changed: HashSet<String>,
    /// Names of which only numbers in the code moved, which may be lines.
    shifted: HashMap<String, Shift>,
    /// Names of closures that may be other ones than before ([`closures`]).
    mistakable: HashSet<String>,
    /// What the new build has in addition, see [`rename::base`].
    added: HashSet<String>,
    /// New names of what the old build has under another one.
    aliases: HashMap<String, String>,
    /// Those new names by the old ones.
    pub(super) renamed: HashMap<String, String>,
    pub(super) old: Graph,
    pub(super) new: Graph,
    /// Functions of the new build that run once ([`runs_once`]).
    pub(super) runs_once: HashSet<String>,
    /// A number for the constants without a name that each function leads to which only the new build has; of copies, of one of them.
    pub(super) contents: HashMap<String, u64>,
    /// Whether crates of others, of which there is no raw code, are compiled together with ours in one of the builds.
    pub(super) is_together: bool,
}

impl Meaning {
    /// Compares the raw code of two builds.
    ///
    /// # Errors
    /// Kept objects cannot be read.
    pub fn between(old: (&Build, &Image), new: (&Build, &Image)) -> Result<Known, DiffError> {
        if old.0.raw.is_empty() || new.0.raw.is_empty() {
            return Ok(Known::Nothing);
        }
        let (old_bytes, new_bytes) = rayon::join(|| read(old.0), || read(new.0));
        let (old_bytes, new_bytes) = (old_bytes?, new_bytes?);
        let none = Inputs::new(&[]);
        let was = Program::unplaced(old.0, old.1, &none, parse(&old_bytes)?);
        let mut is = Program::unplaced(new.0, new.1, &none, parse(&new_bytes)?);
        let old_names = by_name(&was, |_| true);
        let aliases = rename::by_order(&old_names, &by_name(&is, |_| true));
        let owned: HashMap<String, String> =
            aliases.iter().map(|(new, old)| ((*new).to_owned(), (*old).to_owned())).collect();
        let renamed = owned.iter().map(|(new, old)| (old.clone(), new.clone())).collect();
        is.set_aliases(aliases);
        let new_names = by_name(&is, |_| true);
        let Differences { changed, shifted, mistakable } = differences((&was, &old_names), (&is, &new_names));
        tracing::debug!(?changed, ?shifted, "raw code compared");
        // Code that is compiled together with ours calls such functions by names that raw code of ours does not show.
        let by_name = |name: &String| !is_mangled(name) || name.contains("___rust");
        let is_called_by_name =
            is_compiled_together(new.0) && changed.iter().any(|name| by_name(name) && name != "main");
        let is_all = is_complete(old.0, new.0) && !is_called_by_name;
        let graph = |program: &Program<'_>, names: &ByName<'_>| {
            let mut graph = Graph::new(program, names);
            graph.lead_to(&changed);
            graph
        };
        let (before, after) = rayon::join(|| graph(&was, &old_names), || graph(&is, &new_names));
        let added = new_names.keys().filter(|name| !old_names.contains_key(*name));
        let added = added.filter_map(|name| rename::base(name)).collect();
        let is_together = is_compiled_together(old.0) || is_compiled_together(new.0);
        let runs_once = runs_once::running_once(&is, &new_names, &after);
        let is_new = |(name, _): &(&&str, &Vec<At>)| !old_names.contains_key(*name);
        let holds = |(name, sections): (&&str, &Vec<At>)| {
            Some(((*name).to_owned(), contents(&is, *sections.first()?)))
        };
        let contents = new_names.iter().filter(is_new).filter_map(holds).collect();
        let meaning = Self {
            changed,
            shifted,
            mistakable,
            added,
            aliases: owned,
            renamed,
            old: before,
            new: after,
            runs_once,
            contents,
            is_together,
        };
        Ok(if is_all { Known::All(meaning) } else { Known::Ours(meaning) })
    }

    /// Takes functions for unchanged that differ in line numbers only.
    pub(super) fn forget_lines(&mut self, infos: &Infos, source: &SourceDiff) {
        let old = shift::places(infos.old.values(), |symbol| self.key(symbol));
        let new = shift::places(infos.new.values(), |symbol| self.key(symbol));
        let of_lines = |(name, by): &(&String, &Shift)| shift::is_of_lines(**by, name, (&old, &new), source);
        let lines: HashSet<String> =
            self.shifted.iter().filter(of_lines).map(|(name, _)| name.clone()).collect();
        tracing::debug!(?lines, "differ in line numbers only");
        self.forget(&lines);
    }

    /// Takes functions of crates of others for unchanged of which only one build has raw code: whether rustc inlines such a
    /// function before there is raw code depends on who uses it. Where it was inlined and now is called, the caller's raw
    /// code differs. The same holds for those that `gone` ones of the old image were paired with by nothing but their order: they are made for
    /// other types.
    pub(super) fn forget_instances(&mut self, infos: &Infos, gone: &HashSet<&str>) {
        let functions = || infos.old.values().chain(infos.new.values());
        let own = functions().map(|info| (Some(info.symbol.as_str()), info.place.as_ref()));
        let inlined = functions().flat_map(|info| &info.inlined);
        let inlined = inlined.map(|function| (function.symbol.as_deref(), function.place.as_ref()));
        let foreign = own.chain(inlined).filter(|(_, place)| is_elsewhere(*place));
        let names = foreign.filter_map(|(symbol, _)| symbol).map(|symbol| self.key(symbol));
        let is_known = |graph: &Graph, name: &str| graph.nodes.contains_key(name);
        let on_one_side = |name: &str| is_known(&self.old, name) != is_known(&self.new, name);
        let by_order = |name: &str| self.renamed.contains_key(name) && gone.contains(name);
        let names: HashSet<String> =
            names.filter(|name| on_one_side(name) || by_order(name)).map(str::to_owned).collect();
        self.forget(&names);
    }

    fn forget(&mut self, unchanged: &HashSet<String>) {
        let before = self.changed.len();
        self.changed.retain(|name| !unchanged.contains(name));
        if self.changed.len() == before {
            return;
        }
        self.old.lead_to(&self.changed);
        self.new.lead_to(&self.changed);
    }

    /// The name that this symbol of either build goes by.
    pub(crate) fn key<'s>(&'s self, symbol: &'s str) -> &'s str {
        let name = normalise(symbol);
        self.aliases.get(name).map_or(name, String::as_str)
    }

    /// Whether nothing has another meaning.
    pub(super) fn is_same(&self) -> bool {
        self.changed.is_empty()
    }

    /// Whether the meaning of this function or variable itself changed.
    pub(crate) fn is_changed(&self, symbol: &str) -> bool {
        self.changed.contains(self.key(symbol))
    }

    /// Whether what this symbol of a closure means is certain: the closure that it meant before. `None` if there is no raw code of it.
    pub(crate) fn is_same_closure(&self, symbol: &str) -> Option<bool> {
        let key = self.key(symbol);
        let known = self.graphs().iter().all(|graph| graph.nodes.contains_key(key));
        known.then(|| !(self.changed.contains(key) && self.mistakable.contains(key)))
    }

    /// Whether the new build has what is called so in the old one, or something of that path.
    pub(super) fn lives_on(&self, symbol: &str) -> bool {
        self.knows(symbol, Side::New) || rename::base(symbol).is_some_and(|base| self.added.contains(&base))
    }

    /// Whether there is raw code of it, on this side.
    pub(super) fn knows(&self, symbol: &str, side: Side) -> bool {
        self.graph(side).nodes.contains_key(self.key(symbol))
    }

    /// Whether raw code shows all that changed in the source.
    pub(crate) fn tells_all(&self, source: &SourceDiff) -> bool {
        let shows = |Suspect { name, parent, in_closure, is_async, .. }: &Suspect| {
            self.changed.iter().filter(|symbol| symbol.contains(&**name)).any(|symbol| {
                let path = demangle(symbol);
                let around = family(&path);
                let inside = &path[around.len()..];
                let is_word = |word: &str| word == parent;
                // The outermost one of an `async fn` is its body.
                let closures = inside.matches("::{").count().checked_sub(usize::from(*is_async));
                closures.is_some_and(|closures| (closures > 0) == *in_closure)
                    // Not an item in one.
                    && (inside.is_empty() || last_name(&path).starts_with('{'))
                    && last_name(around) == name
                    && (parent.is_empty()
                        || around.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(is_word))
            })
        };
        !source.hides(shows)
    }

    /// Symbols in the new build of the functions whose meaning changed.
    pub(crate) fn changed_functions(&self) -> impl Iterator<Item = &str> {
        let functions = self
            .changed
            .iter()
            .filter(|name| self.new.nodes.get(*name).is_some_and(|node| node.kind == Some(Kind::Text)));
        functions.map(|name| self.new_name(name))
    }

    /// Symbols in the new build of changed functions that LLVM gave the body of this function of the old one (pass `MergeFunctions`): they are
    /// other names of it, or have no code there, although theirs is the same, and what refers to it means them.
    pub(crate) fn merged_into(&self, old: &Program<'_>, at: At) -> Vec<&str> {
        let own = self.key(name_of(old, at));
        let unit = old.unit(at);
        let names: HashSet<&str> =
            old.section(at).symbols.iter().map(|ix| self.key(unit.symbol(*ix).name)).collect();
        let changed = || {
            let node =
                |name: &&String| self.old.nodes.get(*name).filter(|node| node.kind == Some(Kind::Text));
            self.changed.iter().filter(|name| *name != own).filter_map(move |name| Some((name, node(&name)?)))
        };
        let mut found: Vec<&str> =
            changed().map(|(name, _)| name.as_str()).filter(|name| names.contains(name)).collect();
        let shape = self.old.nodes.get(own).map(|node| node.shape);
        let alike: Vec<&str> = changed()
            .filter(|(name, node)| Some(node.shape) == shape && !names.contains(name.as_str()))
            .map(|(name, _)| name.as_str())
            .collect();
        if !alike.is_empty() {
            let own_code: HashSet<&str> =
                old.image.all_symbols().map(|(symbol, _)| self.key(symbol)).collect();
            let users = users(old, &HashSet::from([at]));
            let users =
                || users.get(&at).into_iter().flatten().map(|(user, _)| self.key(name_of(old, *user)));
            let is_meant = |name: &str| users().any(|user| self.old.may_hold(user, name, &own_code));
            found.extend(alike.into_iter().filter(|name| !own_code.contains(name) && is_meant(name)));
        }
        found.into_iter().map(|name| self.new_name(name)).collect()
    }

    /// Symbols of the variables that only the new build has.
    pub(crate) fn new_variables(&self) -> impl Iterator<Item = &str> {
        let variables = self.new.nodes.iter().filter(|(_, node)| node.kind.is_some_and(Kind::is_variable));
        variables.map(|(name, _)| name.as_str()).filter(|name| !self.old.nodes.contains_key(*name))
    }

    /// Whether a function of the new build may be another than in the old one, itself or in what it leads to.
    pub(crate) fn may_differ(&self, function: &FunctionRef) -> bool {
        function.symbol.as_deref().is_some_and(|symbol| match self.knows(symbol, Side::New) {
            true => self.new.leading.contains(self.key(symbol)),
            false => !is_elsewhere(function.place.as_ref()),
        })
    }

    /// Whether the source that was shipped has this function.
    pub(crate) fn had(&self, symbol: &str) -> bool {
        self.knows(symbol, Side::Old)
    }

    /// [`Self::may_differ`] by a symbol alone. The library's own code is not raw, nor is that of other crates, and no source changes it.
    pub(crate) fn may_lead_to_change(&self, symbol: &str, unchanged: &BTreeSet<String>) -> bool {
        match self.knows(symbol, Side::New) {
            true => self.new.leading.contains(self.key(symbol)),
            false => {
                let path = demangle(symbol);
                !(of_standard_library(&path) || is_fixed_with(&path, unchanged))
            }
        }
    }

    /// Keys of what changed and may have been inlined into a function of the new build and computed away; `None` if that may be anything.
    pub(crate) fn lost(&self, info: &FunctionInfo, program: &Program<'_>, at: At) -> Option<Vec<&str>> {
        let inlined = self.inlined(info);
        let machine = Uses::of(program, at).renamed(|name| self.key(name));
        self.new.lost(Some(self.key(&info.symbol)), &inlined, &self.changed, &machine)
    }

    /// Keys of what is inlined into a function.
    pub(super) fn inlined<'s>(&'s self, info: &'s FunctionInfo) -> HashSet<&'s str> {
        let symbols = info.inlined.iter().filter_map(|inlined| inlined.symbol.as_deref());
        symbols.map(|symbol| self.key(symbol)).collect()
    }

    /// What refers to what, in the old build and in the new one.
    pub(super) fn graphs(&self) -> [&Graph; 2] {
        [&self.old, &self.new]
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
        let inlined = self.inlined(info);
        let own = symbol.map(|symbol| self.key(symbol));
        let roots = || inlined.iter().copied().chain(own);
        // What has no raw code of its own on this side was inlined before raw code was made: that of another root has it.
        let is_changed = |name: &str| self.changed.contains(name) && graph.nodes.contains_key(name);
        if roots().any(is_changed) || info.inlined.iter().any(is_nameless) {
            return true;
        }
        if !roots().any(|name| graph.leading.contains(name)) {
            return false;
        }
        graph.may_lose(own, &inlined, &self.changed, &machine.renamed(|name| self.key(name)))
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
        if has_name(symbol) {
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
    place.is_some_and(|place| source::is_foreign(&place.file))
}

/// An inlined function of which debug information has no symbol, and that may be one of ours.
fn is_nameless(inlined: &FunctionRef) -> bool {
    inlined.symbol.is_none() && !is_elsewhere(inlined.place.as_ref())
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
    /// Those of closures that may be other ones.
    mistakable: HashSet<String>,
}

fn differences<'a>(
    (old, old_names): (&Program<'a>, &ByName<'a>),
    (new, new_names): (&Program<'a>, &ByName<'a>),
) -> Differences {
    let pairs = pair(old_names, new_names, old, new);
    let mut comparer = Comparer::new(
        old,
        new,
        pairs.ambiguous_names.clone(),
        pairs.partners.clone(),
        pairs.continued.clone(),
    );
    let names = |program: &Program<'a>, at: At| -> Vec<String> {
        let unit = program.unit(at);
        program.section(at).symbols.iter().map(|ix| program.key(unit.symbol(*ix).name).to_owned()).collect()
    };
    let sets = pairs
        .sets
        .iter()
        .flat_map(|set| set.old.iter().flat_map(|old| set.new.iter().map(move |new| (*old, *new))));
    let (mut changed, mut shifted) = (HashSet::new(), HashMap::new());
    for (old_at, new_at) in pairs.pairs.iter().copied().chain(sets) {
        let Verdict::Different(_) = comparer.compare(old_at, new_at) else { continue };
        let (was, is) = (old.section(old_at), new.section(new_at));
        let own_name = |(program, at)| demangle(name_of(program, at));
        if dropped(&own_name((old, old_at))).is_some()
            && unread::only_flags_differ((old, old_at), (new, new_at), &mut comparer)
        {
            continue;
        }
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
    let mistakable = closures::mistakable((old, old_names), (new, new_names), pairs, &changed);
    Differences { changed, shifted, mistakable }
}
