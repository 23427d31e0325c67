//! Which functions a change can reach, told from the source and debug information: where there is no raw code of all that
//! differs.
//!
//! A function is not reached only if all of this holds, in both programs:
//!
//! 1. The source says which items changed ([`SourceDiff`]), and neither it nor anything inlined into it is among them.
//! 2. A changed function that was inlined and then computed away leaves no trace in the debug information. So if the source
//!    of a function, or of anything inlined into it, mentions something that the change reaches, each such mention must
//!    still be there, as a reference or as an inlined function (`traces.rs`).
//! 3. The one way for a change to get into code that does not mention it is a function passed as a generic argument, of
//!    which neither symbol nor debug information says which one it is. So where functions are handled as values, other
//!    operands or constants count as a change unless inlining explains them.
//!
//! Where the source does not tell what changed, only functions of the standard library are not reached: link-time
//! optimisation compiles them with the program, and the compiler that they came with is the same.

use super::compare::{Ends, Ref, constant_bytes, location_file, reference, skew};
use super::program::{At, Program};
use super::repartition::{Infos, Judge};
use super::traces::Traces;
use super::{Changed, Diff};
use crate::emit::name_of;
use crate::findings::Place;
use crate::guard::FunctionInfo;
use crate::objects::Kind;
use crate::source::{Change, Side, SourceDiff};
use std::collections::{BTreeSet, HashSet};

/// See the module.
pub(super) struct BySource<'j, 'a> {
    diff: &'j Diff<'a>,
    source: &'j SourceDiff,
    crates: &'j HashSet<String>,
    infos: &'j Infos,
    traces: [Traces<'j, 'a>; 2],
}

impl<'j, 'a> BySource<'j, 'a> {
    pub(super) fn new(
        diff: &'j Diff<'a>,
        source: &'j SourceDiff,
        crates: &'j HashSet<String>,
        infos: &'j Infos,
    ) -> Self {
        let traces = [Traces::new(&diff.old, Side::Old), Traces::new(&diff.new, Side::New)];
        Self { diff, source, crates, infos, traces }
    }

    fn reach(&self, at: At, side: Side) -> Reach {
        let symbol = name_of(self.diff.program(side), at);
        match self.infos.of(side).get(&at) {
            None if is_of_others(symbol, self.crates) => Reach::No,
            Some(info) if is_of_library(symbol, info) => Reach::No,
            info => reach(self.source, self.crates, info, side),
        }
    }
}

impl Judge for BySource<'_, '_> {
    fn may_reach(&self, at: At, side: Side) -> bool {
        let traces = &self.traces[usize::from(side == Side::New)];
        match self.reach(at, side) {
            Reach::Changed => true,
            Reach::Mentioned => {
                let info = self.infos.of(side).get(&at);
                info.is_none_or(|info| !traces.all_remain(self.source.tainted(), at, info))
            }
            Reach::No => false,
        }
    }

    fn is_real(&self, change: &Changed) -> bool {
        let (old, new) = (self.infos.old.get(&change.old), self.infos.new.get(&change.new));
        self.may_reach(change.old, Side::Old)
            || self.may_reach(change.new, Side::New)
            || may_hold_a_function(self.diff, change, old, new)
    }

    fn is_changed_variable(&self, symbol: &str) -> bool {
        // What a variable holds of places in the source, as the call sites of `tracing` do, tells of no change.
        self.source.tainted().mentions_path(&crate::guard::demangle(symbol), self.crates)
    }
}

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
pub(super) fn is_of_others(symbol: &str, crates: &HashSet<String>) -> bool {
    let path = crate::guard::demangle(symbol);
    let mut words = path.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    symbol.starts_with("_R") && path != symbol && !words.any(|word| crates.contains(word))
}

/// Whether a function and all that is inlined into it are the standard library's, generic arguments included.
pub(super) fn is_of_library(symbol: &str, info: &FunctionInfo) -> bool {
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
