//! Functions whose code differs, but not because of the change.
//!
//! rustc divides a crate into code units by estimated size, so one more statement somewhere can move the borders, and
//! with them what is inlined where: dozens of functions get other code that does the same. Replacing those is correct
//! but useless, and harmful where one of them is never idle.
//!
//! A function is left out only if all of this holds, in both programs:
//!
//! 1. The source says which items changed ([`SourceDiff`]), and neither it nor anything inlined into it is among them.
//! 2. A changed function that was inlined and then computed away leaves no trace in the debug information. So if the source
//!    of a function, or of anything inlined into it, mentions something that the change reaches, each such mention must
//!    still be there, as a reference or as an inlined function (`traces.rs`).
//! 3. The one way for a change to get into code that does not mention it is a function passed as a generic argument, of
//!    which neither symbol nor debug information says which one it is. So where functions are handled as values, other
//!    operands or constants count as a change unless inlining explains them.
//! 4. It does not reach a replaced function by direct calls: caller and callee may have been compiled for each other.
//!
//! Where the source does not tell what changed, only functions of the standard library are left out, and only if 4 holds:
//! link-time optimisation compiles them with the program, and the compiler that they came with is the same.
//!
//! The running code of a function left out is what the compiler made of the same source, so it does what the new code
//! would do. Where the patch calls it, and its calling convention may have been altered, the patch carries a copy of
//! the new code for its own use.

use super::compare::{Ends, Ref, constant_bytes, is_call, location_file, reference, skew};
use super::program::{At, Program};
use super::traces::Traces;
use super::{Changed, CopySet, Diff};
use crate::build::{Build, Input};
use crate::findings::Place;
use crate::guard::{FunctionInfo, GuardError, trees};
use crate::objects::{Kind, changed_inputs};
use crate::source::{Change, Side, SourceDiff};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

/// How near a change in the source comes to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// Nothing in it was changed or mentions something changed.
    No,
    /// Something in it mentions something changed, which may have been folded into it without a trace.
    Mentioned,
    /// It, or something inlined into it, was changed; or nothing is known.
    Changed,
}

fn reach(
    source: &SourceDiff,
    crates: &HashSet<String>,
    function: Option<&FunctionInfo>,
    side: Side,
) -> Reach {
    let (Some(function), Change::Items(items)) = (function, source.change()) else { return Reach::Changed };
    let tainted = source.tainted();
    let place = |path: &str, place: Option<&Place>| {
        let Some(place) = place else { return Reach::Changed };
        if tainted.is_in_changed_item(items, &place.file, place.line, side) {
            return Reach::Changed;
        }
        match tainted.is_function_tainted(&place.file, place.line, side) {
            Some(false) => Reach::No,
            Some(true) => Reach::Mentioned,
            None if tainted.mentions_path(path, crates) => Reach::Mentioned,
            None => Reach::No,
        }
    };
    let inlined = function.inlined.iter().map(|f| place(&f.path, f.place.as_ref()));
    let symbol = crate::guard::demangle(&function.symbol);
    let named = if tainted.mentions_path(&symbol, crates) { Reach::Mentioned } else { Reach::No };
    inlined.fold(place(&function.path, own_place(function)).max(named), Reach::max)
}

/// Whether a function without debug information, as the standard library has them, is of crates that did not change,
/// generic arguments included. Only v0 names tell those.
fn is_of_others(symbol: &str, crates: &HashSet<String>) -> bool {
    let path = crate::guard::demangle(symbol);
    let mut words = path.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    symbol.starts_with("_R") && path != symbol && !words.any(|word| crates.contains(word))
}

/// Whether a function and all that is inlined into it are the standard library's, generic arguments included.
fn is_of_library(symbol: &str, info: &FunctionInfo) -> bool {
    let is_path = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
    let is_library = |path: &str| {
        let mut roots = path.split(|c| !is_path(c)).filter_map(|part| Some(part.split_once("::")?.0));
        roots.all(|root| matches!(root, "" | "core" | "alloc" | "std"))
    };
    let own = crate::guard::demangle(symbol);
    let inlined = info.inlined.iter().map(|function| function.path.as_str());
    symbol.starts_with("_R") && own != symbol && inlined.chain([own.as_str()]).all(is_library)
}

/// Where a function is declared; glue that the compiler makes is declared nowhere and holds nobody's code but its types'.
fn own_place(function: &FunctionInfo) -> Option<&Place> {
    static GLUE: Place = Place { file: String::new(), line: 0 };
    function.place.as_ref().or_else(|| function.path.starts_with("core::ptr::drop_in_place").then_some(&GLUE))
}

/// Takes functions that the change does not reach out of `diff.changed` and `diff.unsettled`.
///
/// # Errors
/// Debug information that cannot be read.
pub fn set_aside(
    diff: &mut Diff<'_>,
    (old_build, new_build): (&Build, &Build),
    source: &SourceDiff,
) -> Result<(), GuardError> {
    if *source.change() == Change::Nothing {
        return Ok(());
    }
    let old_at: Vec<At> = diff.changed.iter().map(|c| c.old).chain(sets(diff, |set| &set.old)).collect();
    let new_at: Vec<At> = diff.changed.iter().map(|c| c.new).chain(sets(diff, |set| &set.new)).collect();
    let old = describe(&diff.old, &old_build.image, &old_at)?;
    let new = describe(&diff.new, &new_build.image, &new_at)?;
    let crates = changed_crates(old_build, new_build);
    // What a variable holds of places in the source, as the call sites of `tracing` do, tells of no change.
    let (program, tainted) = (&diff.new, source.tainted());
    diff.initialisers.retain(|(_, new)| {
        tainted.mentions_path(&crate::guard::demangle(crate::emit::name_of(program, *new)), &crates)
    });
    let known = |program: &Program<'_>, at: &At, info: Option<&FunctionInfo>, side| match info {
        None if is_of_others(crate::emit::name_of(program, *at), &crates) => Reach::No,
        Some(info) if is_of_library(crate::emit::name_of(program, *at), info) => Reach::No,
        info => reach(source, &crates, info, side),
    };
    let reach_old = |at: &At| known(&diff.old, at, old.get(at), Side::Old);
    let reach_new = |at: &At| known(&diff.new, at, new.get(at), Side::New);
    let (old_traces, new_traces) = (Traces::new(&diff.old, Side::Old), Traces::new(&diff.new, Side::New));
    let is_doubtful = |at: &At, infos: &HashMap<At, FunctionInfo>, reach, traces: &Traces<'_, '_>| match reach
    {
        Reach::Changed => true,
        Reach::Mentioned => infos.get(at).is_none_or(|info| !traces.all_remain(source.tainted(), *at, info)),
        Reach::No => false,
    };
    let is_real = |change: &Changed| {
        let was = is_doubtful(&change.old, &old, reach_old(&change.old), &old_traces);
        let is = is_doubtful(&change.new, &new, reach_new(&change.new), &new_traces);
        let holds = || may_hold_a_function(diff, change, old.get(&change.old), new.get(&change.new));
        let real = was || is || holds();
        if real {
            let function = crate::emit::name_of(&diff.new, change.new);
            let (old, new) = (reach_old(&change.old), reach_new(&change.new));
            tracing::debug!(function, ?old, ?new, was, is, "the change may reach it");
        }
        real
    };
    let (mut real, mut aside): (Vec<_>, Vec<_>) = diff.changed.iter().copied().partition(is_real);
    // Something changed in the source and something differs in the code, so not all of it can be beside the point.
    if real.is_empty() {
        return Ok(());
    }
    let reaching = callers_of(&diff.old, &real);
    let (back, rest): (Vec<_>, Vec<_>) = aside.into_iter().partition(|change| reaching.contains(&change.old));
    real.extend(back);
    aside = rest;
    let is_reached = |set: &CopySet| {
        set.old.iter().any(|at| reaching.contains(at) || is_doubtful(at, &old, reach_old(at), &old_traces))
            || set.new.iter().any(|at| is_doubtful(at, &new, reach_new(at), &new_traces))
    };
    diff.unsettled.retain(is_reached);
    for change in &aside {
        if is_global(&diff.old, change.old) && is_global(&diff.new, change.new) {
            diff.twins.insert(change.new, change.old);
        }
        diff.repartitioned.push(change.new);
    }
    diff.changed = real;
    Ok(())
}

/// Names of the crates whose objects differ, as paths begin with them.
fn changed_crates(old: &Build, new: &Build) -> HashSet<String> {
    let (old, new) = changed_inputs(old, new);
    let file = |input: &&Input| input.path.rsplit('/').next().unwrap_or_default().to_owned();
    let names = old.iter().chain(&new).map(file);
    names
        .filter_map(|file| {
            let name = file.strip_prefix("lib").filter(|_| file.ends_with(".rlib")).unwrap_or(&file);
            Some(name.split_once('-')?.0.to_owned())
        })
        .collect()
}

fn sets<'d>(
    diff: &'d Diff<'_>,
    side: impl Fn(&'d CopySet) -> &'d Vec<At> + 'd,
) -> impl Iterator<Item = At> + 'd {
    diff.unsettled.iter().flat_map(move |set| side(set).iter().copied())
}

fn describe(
    program: &Program<'_>,
    image: &Path,
    list: &[At],
) -> Result<HashMap<At, FunctionInfo>, GuardError> {
    let placed: Vec<_> = list.iter().filter_map(|at| Some((*at, program.addr(*at)?))).collect();
    let queries: Vec<_> =
        placed.iter().map(|(at, addr)| (crate::emit::name_of(program, *at), *addr)).collect();
    let infos = trees(image, &queries)?;
    Ok(placed.iter().zip(infos).filter_map(|((at, _), info)| Some((*at, info?))).collect())
}

/// Whether a function passed as a value may have been computed away in it: values differ, and inlining does not
/// explain that.
fn may_hold_a_function(
    diff: &Diff<'_>,
    change: &Changed,
    old: Option<&FunctionInfo>,
    new: Option<&FunctionInfo>,
) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return false };
    (old.handles_functions || new.handles_functions)
        && values_differ(diff, change)
        && is_of_one_shape(diff, change, old, new)
}

/// Whether the old and the new code inline and call the same.
fn is_of_one_shape(diff: &Diff<'_>, change: &Changed, old: &FunctionInfo, new: &FunctionInfo) -> bool {
    let inlined = |info: &FunctionInfo| info.inlined.iter().map(|f| f.path.clone()).collect::<BTreeSet<_>>();
    inlined(old) == inlined(new) && names(&diff.old, change.old) == names(&diff.new, change.new)
}

/// Whether the old and the new code work with other immediate operands or other constants.
fn values_differ(diff: &Diff<'_>, change: &Changed) -> bool {
    let (old, new) = ((&diff.old, change.old), (&diff.new, change.new));
    numbers(diff.old.section(change.old).bytes) != numbers(diff.new.section(change.new).bytes)
        || constants(old.0, old.1) != constants(new.0, new.1)
}

/// Contents of the constants that a piece of code refers to, named or not, but for the locations of panics.
fn constants<'a>(program: &Program<'a>, at: At) -> BTreeSet<&'a [u8]> {
    let mut ends = Ends::new();
    let mut found = BTreeSet::new();
    for reloc in &program.section(at).relocs {
        let (target, offset) = match reference(program, at.unit, reloc) {
            Ref::Constant { at: target, offset } => (target, offset + skew(program, at, reloc, &mut ends)),
            Ref::Named { at: Some(target), .. } if program.section(target).kind == Kind::ReadOnly => {
                (target, 0)
            }
            Ref::Named { .. } => continue,
        };
        if location_file(program, target).is_none() {
            found.extend(constant_bytes(program, target, offset));
        }
    }
    found
}

/// Names that a piece of code refers to.
fn names<'a>(program: &Program<'a>, at: At) -> BTreeSet<&'a str> {
    let relocs = program.section(at).relocs.iter();
    relocs
        .filter_map(|reloc| match reference(program, at.unit, reloc) {
            Ref::Named { name, .. } => Some(name),
            Ref::Constant { .. } => None,
        })
        .collect()
}

/// Immediate operands, but for adjustments of the stack pointer.
fn numbers(code: &[u8]) -> BTreeSet<u64> {
    use iced_x86::{Decoder, DecoderOptions, OpKind, Register};
    let mut found = BTreeSet::new();
    for instruction in Decoder::new(64, code, DecoderOptions::NONE) {
        if instruction.op_count() > 0
            && instruction.op_kind(0) == OpKind::Register
            && instruction.op_register(0) == Register::RSP
        {
            continue;
        }
        for i in 0..instruction.op_count() {
            if matches!(
                instruction.op_kind(i),
                OpKind::Immediate8
                    | OpKind::Immediate16
                    | OpKind::Immediate32
                    | OpKind::Immediate64
                    | OpKind::Immediate8to16
                    | OpKind::Immediate8to32
                    | OpKind::Immediate8to64
                    | OpKind::Immediate32to64
            ) {
                found.insert(instruction.immediate(i));
            }
        }
    }
    found
}

fn is_global(program: &Program<'_>, at: At) -> bool {
    let unit = program.unit(at);
    program.section(at).symbols.iter().any(|ix| unit.symbol(*ix).global)
}

/// The functions that reach a replaced one by direct calls, those themselves included. Their running code may rest on
/// what the compiler knew about the old code: that it does not unwind, what it returns, how it takes its arguments.
fn callers_of(old: &Program<'_>, replaced: &[Changed]) -> HashSet<At> {
    let mut callers: HashMap<At, Vec<At>> = HashMap::new();
    for (at, section) in old.all().filter(|(_, section)| section.kind == Kind::Text) {
        for reloc in section.relocs.iter().filter(|reloc| is_call(section.bytes, reloc)) {
            if let Ref::Named { at: Some(callee), .. } = reference(old, at.unit, reloc) {
                callers.entry(callee).or_default().push(at);
            }
        }
    }
    let mut reaching = HashSet::new();
    let mut work: Vec<At> = replaced.iter().map(|change| change.old).collect();
    while let Some(at) = work.pop() {
        if reaching.insert(at) {
            work.extend(callers.get(&at).into_iter().flatten());
        }
    }
    reaching
}
