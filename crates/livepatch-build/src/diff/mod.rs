//! Which functions of two builds are really different.
//!
//! 1. Load the objects whose contents changed ([`crate::objects`]).
//! 2. Pair functions and variables of the two programs by normalised name (`pair.rs`).
//! 3. Compare each pair ([`compare`]).
//!
//! Functions that only moved to another code unit compare equal: what they are made of is compared, not where the
//! compiler put it.

mod anchor;
pub(crate) mod anonymous;
mod apart;
mod by_source;
pub(crate) mod call_sites;
pub(crate) mod callers;
mod closures;
pub mod compare;
pub(crate) mod complete;
pub(crate) mod described;
mod graph;
pub(crate) mod knowledge;
mod links;
pub(crate) mod lost;
mod meaning;
pub mod names;
mod numbered;
pub(crate) mod once;
mod pair;
pub mod program;
pub(crate) mod rename;
pub mod repartition;
mod runs_once;
pub(crate) mod same_code;
mod shift;
mod stands;
mod suspended;
pub(crate) mod traces;
mod unread;
mod uses;
pub(crate) mod variables;

use crate::build::Build;
use crate::guard::GuardError;
use crate::image::Image;
use crate::objects::{Inputs, Kind, LoadError, changed_inputs};
use crate::source::Side;
use compare::{Comparer, Verdict};
pub use meaning::{Known, Meaning};
pub use pair::CopySet;
use program::{At, Program};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Why two builds could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// See there.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The linker's map names two inputs alike, so their sections cannot be told apart.
    #[error("the link has two inputs of one file name, {0} and {1}; rename one of them")]
    SameName(String, String),
    /// See there.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// See there.
    #[error("cannot read the raw code of {name}")]
    Raw {
        /// The crate, as its outputs are named.
        name: String,
        /// Cause.
        #[source]
        error: Box<crate::Error>,
    },
}

/// A function that both programs have, with other code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The running code.
    pub old: At,
    /// The new code.
    pub new: At,
    /// Offset of the first difference in the new code.
    pub first: u64,
}

/// The result.
#[derive(Debug)]
pub struct Diff<'a> {
    /// The running program.
    pub old: Program<'a>,
    /// The new one.
    pub new: Program<'a>,
    /// Functions that are really different.
    pub changed: Vec<Changed>,
    /// Functions that differ only in line numbers of panic messages, or in where the compiler put them.
    pub line_only: Vec<At>,
    /// Mutable statics and thread-locals whose initial value differs (old, new).
    pub initialisers: Vec<(At, At)>,
    /// Sections found by their name (`.init_array`, distributed slices) that differ: their names.
    pub special: Vec<String>,
    /// Code sections with several functions that differ: (section, object).
    pub monolithic: Vec<(String, String)>,
    /// Old copies of a function without an equal among the new ones, which differ among themselves.
    pub unsettled: Vec<CopySet>,
    /// Old functions whose path one of other code and with other parameters or another result has in the new program.
    pub called_otherwise: HashSet<At>,
    /// Old functions that were taken in because they may have been compiled for another function, or for a variable, and what that is.
    pub compiled_for: HashMap<At, String>,
    /// Variables that the change touches, and of which the compiler may have known something, by their names in raw code.
    pub touched: HashSet<String>,
    /// Old functions whose code leads to what the source does not mean, each with that (`diff/links.rs`).
    pub linked: HashMap<At, At>,
    /// Functions whose address in the running program stands for another one, too, with what is known of that; by their paths.
    pub merged: BTreeMap<String, String>,
    /// New code that differs only because the compiler divided the crate in another way.
    pub repartitioned: Vec<At>,
    /// What of the two builds means something else, where raw code tells.
    pub meaning: Known,
    /// New section → old section, for everything that lives on.
    pub partners: HashMap<At, At>,
    /// Parts of variables of which the old program has only others.
    pub partial: HashSet<At>,
    /// Constants and functions of the new program whose equal twin is in the old image (new → old).
    pub twins: HashMap<At, At>,
}

impl<'a> Diff<'a> {
    /// One of the two programs.
    pub(crate) fn program(&self, side: Side) -> &Program<'a> {
        if side == Side::Old { &self.old } else { &self.new }
    }
}

/// Compares two builds.
///
/// # Errors
/// An object cannot be read.
pub fn diff<'a>(
    old: (&'a Build, &'a Image, &'a Inputs),
    new: (&'a Build, &'a Image, &'a Inputs),
) -> Result<Diff<'a>, DiffError> {
    let diff = diff_scope(old, new, false)?;
    // Code in an object that did not change may read a constant that did.
    let constant_changed = diff.changed.iter().any(|c| diff.old.section(c.old).kind == Kind::ReadOnly)
        || differs_in_merged(&diff.old, &diff.new);
    let mut diff = if constant_changed { diff_scope(old, new, true)? } else { diff };
    diff.changed.retain(|changed| diff.new.section(changed.new).kind == Kind::Text);
    Ok(diff)
}

/// Whether a constant that the linker merges with others, and that other objects can name, has another value.
fn differs_in_merged(old: &Program<'_>, new: &Program<'_>) -> bool {
    let merged = |program: &Program<'_>| -> HashSet<(String, Vec<u8>)> {
        let all = program.all().filter(|(_, section)| section.merged);
        let named = all.flat_map(|(at, section)| {
            let symbols = section.symbols.iter().map(move |ix| program.unit(at).symbol(*ix));
            let named = symbols.filter(|symbol| !names::is_anonymous(symbol.name, symbol.global));
            named.map(move |symbol| (program.key(symbol.name).to_owned(), section.bytes.to_vec()))
        });
        named.collect()
    };
    merged(old) != merged(new)
}

fn diff_scope<'a>(
    old: (&'a Build, &'a Image, &'a Inputs),
    new: (&'a Build, &'a Image, &'a Inputs),
    everything: bool,
) -> Result<Diff<'a>, DiffError> {
    let (old_program, mut new_program) = load(old, new, everything)?;
    let (old_names, new_names) = (pair::placed(&old_program), pair::placed(&new_program));
    let renamed = rename::of_programs((&old_program, &old_names, old.0), (&new_program, &new_names, new.0))?;
    new_program.set_aliases(renamed.aliases);
    let new_names = pair::placed(&new_program);
    let pairs = pair::pair(&old_names, &new_names, &old_program, &new_program);
    let mut own = pair::of_one(&new_program, &new_names);
    let mut comparer = Comparer::new(
        &old_program,
        &new_program,
        pairs.ambiguous_names,
        pairs.partners.clone(),
        pairs.continued,
    );
    let mut changed = Vec::new();
    let mut line_only = Vec::new();
    let mut initialisers = Vec::new();
    let mut monolithic = Vec::new();
    let mut unsettled = Vec::new();
    let mut partners = pairs.partners;
    let mut twins = HashMap::new();
    for (old_at, new_at) in pairs.pairs {
        let kind = new_program.section(new_at).kind;
        match comparer.compare(old_at, new_at) {
            Verdict::Same => {
                twins.insert(new_at, old_at);
            }
            Verdict::LineOnly => {
                twins.insert(new_at, old_at);
                line_only.push(new_at);
            }
            Verdict::Different(_) if kind.is_variable() => initialisers.push((old_at, new_at)),
            Verdict::Different(_) if kind == Kind::Text && is_monolithic(&new_program, new_at) => {
                let unit = new_program.unit(new_at);
                monolithic.push((new_program.section(new_at).name.to_owned(), unit.file.clone()));
            }
            Verdict::Different(first) => {
                let section = new_program.section(new_at);
                let place = section.relocs.iter().find(|reloc| reloc.offset == first);
                let what = place.map(|reloc| compare::reference(&new_program, new_at.unit, reloc));
                tracing::debug!(section = section.name, first, reference = ?what, "differs");
                changed.push(Changed { old: old_at, new: new_at, first });
            }
        }
    }
    for set in pairs.sets {
        pair::settle(
            (&mut comparer, &mut own),
            set,
            &mut partners,
            &mut twins,
            &mut changed,
            &mut unsettled,
            (&old_program, &new_program),
        );
    }
    let mut called_otherwise = renamed.called_otherwise;
    called_otherwise.retain(|(old_at, new_at)| !comparer.compare(*old_at, *new_at).is_equal());
    let special = special_differences(&old_program, &new_program, &mut comparer);
    Ok(Diff {
        changed,
        line_only,
        initialisers,
        special,
        monolithic,
        unsettled,
        repartitioned: Vec::new(),
        called_otherwise: called_otherwise.into_iter().map(|(old_at, _)| old_at).collect(),
        compiled_for: HashMap::new(),
        touched: HashSet::new(),
        linked: HashMap::new(),
        merged: BTreeMap::new(),
        meaning: Known::Nothing,
        partners,
        partial: pairs.partial,
        twins,
        old: old_program,
        new: new_program,
    })
}

type Programs<'a> = (Program<'a>, Program<'a>);

fn load<'a>(
    (old, old_image, old_inputs): (&'a Build, &'a Image, &'a Inputs),
    (new, new_image, new_inputs): (&'a Build, &'a Image, &'a Inputs),
    everything: bool,
) -> Result<Programs<'a>, DiffError> {
    let (old_changed, new_changed) = changed_inputs(old, new);
    let paths =
        |inputs: Vec<&'a crate::build::Input>| inputs.iter().map(|i| i.path.as_str()).collect::<HashSet<_>>();
    let (old_paths, new_paths) = (paths(old_changed), paths(new_changed));
    let in_old = |input: &crate::build::Input| everything || old_paths.contains(input.path.as_str());
    let in_new = |input: &crate::build::Input| everything || new_paths.contains(input.path.as_str());
    let none = HashSet::new();
    let (known_old, known_new) = if everything {
        (none.clone(), none)
    } else {
        (new_inputs.digests(&in_new)?, old_inputs.digests(&in_old)?)
    };
    let old_units = old_inputs.units(&in_old, &known_old)?;
    let new_units = new_inputs.units(&in_new, &known_new)?;
    Ok((
        Program::new(old, old_image, old_inputs, old_units)?,
        Program::new(new, new_image, new_inputs, new_units)?,
    ))
}

/// Whether a code section holds functions at several places, so that they cannot be replaced one by one.
pub fn is_monolithic(program: &Program<'_>, at: At) -> bool {
    let unit = program.unit(at);
    program.section(at).symbols.iter().any(|ix| unit.offset_of(*ix) != 0)
}

fn special_differences(old: &Program<'_>, new: &Program<'_>, comparer: &mut Comparer<'_, '_>) -> Vec<String> {
    let special = |program: &Program<'_>| {
        let all = program
            .all()
            .filter(|(at, s)| s.kind == Kind::Special && s.size > 0 && program.addr(*at).is_some());
        all.map(|(at, s)| (s.name.to_owned(), at)).collect::<Vec<_>>()
    };
    let (mut olds, mut names) = (special(old), Vec::new());
    for (name, new_at) in special(new) {
        let twin = olds
            .iter()
            .position(|(old_name, old_at)| *old_name == name && comparer.compare(*old_at, new_at).is_equal());
        match twin {
            Some(index) => drop(olds.swap_remove(index)),
            None => names.push(name),
        }
    }
    names.extend(olds.into_iter().map(|(name, _)| name));
    names.sort();
    names.dedup();
    names
}
