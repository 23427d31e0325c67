//! Are two functions, or two constants, the same?
//!
//! Bytes are compared outside the fields that relocations fill; the relocations are compared by what they refer to:
//! functions and variables by name, constants by content, recursively. A constant that differs only in the line and
//! column of a `core::panic::Location` makes a difference of its own kind, [`Verdict::LineOnly`].
//!
//! Constants may refer to each other in a circle. A pair that is being compared is taken as equal (the largest
//! bisimulation); that is sound because verdicts are only kept when the outermost comparison is done.

use super::names::is_anonymous;
use super::program::{At, Program, Target};
use super::rename;
use crate::objects::{Frame, Kind, Merge, Reloc, Section, SymIx};
use livepatch_patch::RelocKind;
use std::collections::{HashMap, HashSet};

/// How much two things differ; ordered, the worst wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Not at all.
    Same,
    /// In line or column numbers of panic locations.
    LineOnly,
    /// Really. The offset of the first difference in the new code (0 for constants).
    Different(u64),
}

impl Verdict {
    /// Whether the running code does what the new code does, except for line numbers in panic messages.
    pub fn is_equal(self) -> bool {
        !matches!(self, Self::Different(_))
    }
}

/// What a reference refers to, with build-specific names taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ref<'a> {
    /// A function, a variable, a named constant.
    Named {
        /// Normalised name.
        name: &'a str,
        /// Distance from it.
        delta: i64,
        /// Its section, if its unit is loaded.
        at: Option<At>,
    },
    /// Read-only data without a lasting name.
    Constant {
        /// Its section.
        at: At,
        /// Offset in it.
        offset: i64,
    },
}

/// Compares sections of two programs.
#[derive(Debug)]
pub struct Comparer<'p, 'a> {
    old: &'p Program<'a>,
    new: &'p Program<'a>,
    memo: HashMap<(At, At), Verdict>,
    /// Pairs taken as equal until the outermost comparison is done.
    assumed: HashSet<(At, At)>,
    ends: Ends,
    /// Names that more than one section of a program defines.
    ambiguous: HashSet<&'a str>,
    /// New section → the old section that it continues.
    partners: HashMap<At, At>,
    /// Old section → every new section of one of its names.
    continued: HashMap<At, Vec<At>>,
    /// Whether names of one path mean the same.
    by_path: bool,
}

impl<'p, 'a> Comparer<'p, 'a> {
    /// A comparer; `partners` are the copies that belong together where a name alone does not tell.
    pub fn new(
        old: &'p Program<'a>,
        new: &'p Program<'a>,
        ambiguous: HashSet<&'a str>,
        partners: HashMap<At, At>,
        continued: HashMap<At, Vec<At>>,
    ) -> Self {
        Self {
            old,
            new,
            memo: HashMap::new(),
            assumed: HashSet::new(),
            ends: HashMap::new(),
            ambiguous,
            partners,
            continued,
            by_path: false,
        }
    }

    /// From now on a reference is the same if it leads to the same path, whatever the instance and the number of a closure.
    pub(super) fn compare_paths(&mut self) {
        self.by_path = true;
    }

    /// Compares two sections.
    pub fn compare(&mut self, old: At, new: At) -> Verdict {
        if let Some(known) = self.memo.get(&(old, new)) {
            return *known;
        }
        let outermost = self.assumed.is_empty();
        if !self.assumed.insert((old, new)) {
            return Verdict::Same;
        }
        let verdict = self.compare_open(old, new);
        if !verdict.is_equal() {
            self.assumed.remove(&(old, new));
        }
        if outermost {
            self.assumed.clear();
            self.memo.insert((old, new), verdict);
        }
        verdict
    }

    fn compare_open(&mut self, old_at: At, new_at: At) -> Verdict {
        let (old, new) = (self.old.section(old_at), self.new.section(new_at));
        if old.kind != new.kind || old.size != new.size || old.relocs.len() != new.relocs.len() {
            return Verdict::Different(0);
        }
        let bytes = first_difference(old, new);
        let verdict = match bytes {
            None => Verdict::Same,
            Some(_) if self.is_location(old_at, new_at) => Verdict::LineOnly,
            Some(at) => return Verdict::Different(at),
        };
        verdict.max(self.compare_references(old_at, new_at))
    }

    /// Compares what two sections of as many relocations refer to, and their unwind entries.
    pub(super) fn compare_references(&mut self, old_at: At, new_at: At) -> Verdict {
        let (old, new) = (self.old.section(old_at), self.new.section(new_at));
        let mut verdict = Verdict::Same;
        for (old_reloc, new_reloc) in old.relocs.iter().zip(&new.relocs) {
            match self.compare_reloc((old_at, old_reloc), (new_at, new_reloc)) {
                Verdict::Different(_) => return Verdict::Different(new_reloc.offset),
                other => verdict = verdict.max(other),
            }
        }
        verdict.max(self.compare_frames((old_at, &old.frames), (new_at, &new.frames)))
    }

    fn compare_reloc(&mut self, old: (At, &Reloc), new: (At, &Reloc)) -> Verdict {
        match old.1.offset == new.1.offset {
            true => self.compare_targets(old, new),
            false => Verdict::Different(0),
        }
    }

    /// Compares what two references lead to that are part of equal instructions, or lie at one offset of two pieces of data.
    pub(super) fn compare_targets(&mut self, old: (At, &Reloc), new: (At, &Reloc)) -> Verdict {
        if class(old.1.kind) != class(new.1.kind) {
            return Verdict::Different(0);
        }
        let old_ref = reference(self.old, old.0.unit, old.1);
        let new_ref = reference(self.new, new.0.unit, new.1);
        match (old_ref, new_ref) {
            (Ref::Named { name, delta, at }, Ref::Named { name: new_name, delta: new_delta, at: new_at }) => {
                match (name == new_name, delta == new_delta) {
                    (true, true) => self.compare_named(name, at, new_at),
                    (false, true) if self.by_path && is_same_path(name, new_name) => Verdict::Same,
                    (false, true) => self.compare_merged(at, new_at),
                    (_, false) => Verdict::Different(0),
                }
            }
            (Ref::Constant { at, offset }, Ref::Constant { at: new_at, offset: new_offset }) => {
                let skew = self.skew(new.0, new.1);
                self.compare_constants((at, offset + skew), (new_at, new_offset + skew))
            }
            _ => Verdict::Different(0),
        }
    }

    fn compare_named(&mut self, name: &str, old: Option<At>, new: Option<At>) -> Verdict {
        let (Some(old), Some(new)) = (old, new) else { return Verdict::Same };
        let (old_kind, new_kind) = (self.old.section(old).kind, self.new.section(new).kind);
        if old_kind == Kind::ReadOnly || new_kind == Kind::ReadOnly {
            return self.compare(old, new);
        }
        if !self.ambiguous.contains(name) || self.partners.get(&new) == Some(&old) {
            return Verdict::Same;
        }
        // Copies of one generic function in several code units: any with the same code will do. A variable, however,
        // is not another one because it starts with the same value.
        if old_kind.is_variable() { Verdict::Different(0) } else { self.compare(old, new) }
    }

    /// Compares two functions of different names. LLVM merges functions of equal code, and which of the names survives
    /// depends on the build. That the running code calls the other name is harmless as long as that name keeps its
    /// code: every new function of the old name must be equal too.
    fn compare_merged(&mut self, old: Option<At>, new: Option<At>) -> Verdict {
        let (Some(old), Some(new)) = (old, new) else { return Verdict::Different(0) };
        let is_code = |section: &Section<'_>| section.kind == Kind::Text && section.size > 0;
        if !is_code(self.old.section(old)) || !is_code(self.new.section(new)) {
            return Verdict::Different(0);
        }
        let continued = self.continued.get(&old).cloned().unwrap_or_default();
        let all = continued.into_iter().chain([new]);
        all.map(|new| self.compare(old, new)).max().unwrap_or(Verdict::Different(0))
    }

    /// Compares what two references to constants can see: an entry of a mergeable section, else the whole section.
    fn compare_constants(&mut self, (old, old_offset): (At, i64), (new, new_offset): (At, i64)) -> Verdict {
        let (old_section, new_section) = (self.old.section(old), self.new.section(new));
        match (old_section.merge, new_section.merge) {
            (Some(merge), Some(other)) if merge == other => {
                let entry = |section: &Section<'a>, offset| Some(entry(section, merge, offset)?.1);
                match (entry(old_section, old_offset), entry(new_section, new_offset)) {
                    (Some(a), Some(b)) if a == b => Verdict::Same,
                    _ => Verdict::Different(0),
                }
            }
            (None, None) if old_offset == new_offset => self.compare(old, new),
            _ => Verdict::Different(0),
        }
    }

    fn skew(&mut self, at: At, reloc: &Reloc) -> i64 {
        skew(self.new, at, reloc, &mut self.ends)
    }

    fn compare_frames(&mut self, old: (At, &[Frame<'a>]), new: (At, &[Frame<'a>])) -> Verdict {
        if old.1.len() != new.1.len() {
            return Verdict::Different(0);
        }
        let mut verdict = Verdict::Same;
        for (old_frame, new_frame) in old.1.iter().zip(new.1) {
            for ((old_bytes, old_relocs), (new_bytes, new_relocs)) in [
                ((old_frame.body, &old_frame.relocs[1..]), (new_frame.body, &new_frame.relocs[1..])),
                (
                    (old_frame.cie.body, &old_frame.cie.relocs[..]),
                    (new_frame.cie.body, &new_frame.cie.relocs[..]),
                ),
            ] {
                let fields = |relocs: &[Reloc]| relocs.iter().map(|r| (r.offset, r.kind)).collect::<Vec<_>>();
                if old_frame.start != new_frame.start
                    || fields(old_relocs) != fields(new_relocs)
                    || without_padding(old_bytes) != without_padding(new_bytes)
                {
                    return Verdict::Different(0);
                }
                for (a, b) in old_relocs.iter().zip(new_relocs) {
                    verdict = verdict.max(self.compare_reloc((old.0, a), (new.0, b)));
                }
            }
        }
        verdict
    }

    /// Whether both are locations in the same source file.
    fn is_location(&self, old: At, new: At) -> bool {
        let file_of_old = location_file(self.old, old);
        file_of_old.is_some() && file_of_old == location_file(self.new, new)
    }
}

fn is_same_path(old: &str, new: &str) -> bool {
    let path = |name: &str| {
        let mut path = rename::base(name)?;
        // Of these a path has the numbers of closures.
        if name.starts_with("_R") {
            path.retain(|c| !c.is_ascii_digit());
        }
        Some(path)
    };
    path(old).is_some_and(|old| path(new) == Some(old))
}

/// An unwind entry without the `DW_CFA_nop`s at its end: the last one of an object is padded.
fn without_padding(entry: &[u8]) -> &[u8] {
    let end = entry.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &entry[..end]
}

/// The file of a `core::panic::Location` (file: &str, line: u32, column: u32), if the section holds one.
pub fn location_file(program: &Program<'_>, at: At) -> Option<String> {
    let section = program.section(at);
    let [reloc] = section.relocs.as_slice() else { return None };
    let shape = section.kind == Kind::ReadOnly && section.bytes.len() == 24 && section.align == 8;
    if !shape || reloc.offset != 0 || reloc.kind != RelocKind::Abs64 as u32 {
        return None;
    }
    let word = |at: usize| u32::from_le_bytes(section.bytes[at..at + 4].try_into().expect("4 bytes"));
    let length = u64::from_le_bytes(section.bytes[8..16].try_into().expect("8 bytes"));
    let Ref::Constant { at, offset } = reference(program, at.unit, reloc) else { return None };
    let text = program.section(at).bytes.get(usize::try_from(offset).ok()?..)?;
    let text = std::str::from_utf8(text.get(..usize::try_from(length).ok()?)?).ok()?;
    (program.may_be_source(text) && word(16) != 0 && word(20) != 0).then(|| text.to_owned())
}

/// What two references to constants can be compared by: the bytes of the entry or of the whole section.
pub fn constant_bytes<'a>(program: &Program<'a>, at: At, offset: i64) -> Option<&'a [u8]> {
    let section = program.section(at);
    match section.merge {
        Some(merge) => Some(entry(section, merge, offset)?.1),
        None => Some(section.bytes),
    }
}

/// What a relocation refers to.
pub fn reference<'a>(program: &Program<'a>, unit: u32, reloc: &Reloc) -> Ref<'a> {
    let (at, offset, name) = match program.target(unit, reloc.symbol, reloc.addend) {
        Target::External { name, addend, .. } => {
            return Ref::Named { name: program.key(name), delta: addend, at: None };
        }
        Target::Place { at, offset, name } => (at, offset, name),
    };
    let unit = program.unit(at);
    let section = unit.section(at.section);
    let anonymous = |ix: &SymIx| is_anonymous(unit.symbol(*ix).name, unit.symbol(*ix).global);
    if section.merged || section.kind == Kind::ReadOnly && section.symbols.iter().all(anonymous) {
        return Ref::Constant { at, offset };
    }
    let seen = offset + if section.kind == Kind::Text && is_relative(reloc.kind) { 4 } else { 0 };
    let covering = section
        .symbols
        .iter()
        .filter(|ix| unit.offset_of(**ix) as i64 <= seen)
        .map(|ix| unit.offset_of(*ix))
        .max();
    let start = covering.or_else(|| section.symbols.first().map(|ix| unit.offset_of(*ix))).unwrap_or(0);
    let canonical = || {
        let at_start = section.symbols.iter().filter(|ix| unit.offset_of(**ix) == start);
        at_start.map(|ix| program.key(unit.symbol(*ix).name)).min()
    };
    match name {
        Some(name) => {
            let own = section.symbols.iter().find(|ix| unit.symbol(**ix).name == name);
            let base = own.map_or(0, |ix| unit.offset_of(*ix));
            Ref::Named { name: program.key(name), delta: offset - base as i64, at: Some(at) }
        }
        None => Ref::Named {
            name: canonical().unwrap_or(section.name),
            delta: offset - start as i64,
            at: Some(at),
        },
    }
}

/// The entry of a mergeable section that an offset lies in: its start, and what can be seen of it from the offset on.
pub fn entry<'a>(section: &Section<'a>, merge: Merge, offset: i64) -> Option<(u64, &'a [u8])> {
    let offset = usize::try_from(offset).ok()?;
    match merge {
        Merge::Fixed(size) => {
            let start = offset - offset % size as usize;
            Some((start as u64, section.bytes.get(start..start + size as usize)?))
        }
        Merge::Strings(width) => {
            let width = width as usize;
            let rest = section.bytes.get(offset..)?;
            let end = rest.chunks(width).position(|c| c.iter().all(|b| *b == 0))?;
            Some((offset as u64, &rest[..(end + 1) * width]))
        }
    }
}

/// Relocation kinds that say the same thing: the linker turns one into the other where it can.
fn class(kind: u32) -> u32 {
    match RelocKind::from_elf(kind) {
        Some(RelocKind::Plt32) => RelocKind::Pc32 as u32,
        Some(RelocKind::GotPcRelX | RelocKind::RexGotPcRelX) => RelocKind::GotPcRel as u32,
        _ => kind,
    }
}

/// Whether the place's own address is subtracted.
pub fn is_relative(kind: u32) -> bool {
    use livepatch_patch::reloc::Formula;
    RelocKind::from_elf(kind)
        .is_some_and(|kind| !matches!(kind.formula(), Formula::Absolute | Formula::TpOff | Formula::DtpOff))
}

/// Instruction ends by code section: relocation offset → end of its instruction.
pub type Ends = HashMap<At, HashMap<u64, u64>>;

/// What to add to the offset of a PC-relative reference to get the place that is meant. Code counts from the end of
/// the instruction; a table of relative pointers counts from its own start (LLVM's relative lookup tables).
pub fn skew(program: &Program<'_>, at: At, reloc: &Reloc, ends: &mut Ends) -> i64 {
    if !is_relative(reloc.kind) {
        return 0;
    }
    let unit = program.unit(at);
    let section = unit.section(at.section);
    if section.kind == Kind::Text {
        let ends = ends.entry(at).or_insert_with(|| instruction_ends(section));
        return ends.get(&reloc.offset).map_or(4, |end| (end - reloc.offset) as i64);
    }
    let starts = section.symbols.iter().map(|ix| unit.offset_of(*ix)).filter(|start| *start <= reloc.offset);
    starts.max().unwrap_or(0) as i64 - reloc.offset as i64
}

/// For each relocation of a code section, where the instruction that it is part of ends.
fn instruction_ends(section: &Section<'_>) -> HashMap<u64, u64> {
    let mut decoder = iced_x86::Decoder::with_ip(64, section.bytes, 0, iced_x86::DecoderOptions::NONE);
    let mut ends = HashMap::with_capacity(section.relocs.len());
    let mut relocs = section.relocs.iter().peekable();
    while decoder.can_decode() && relocs.peek().is_some() {
        let end = decoder.decode().next_ip();
        while let Some(reloc) = relocs.next_if(|reloc| reloc.offset < end) {
            ends.insert(reloc.offset, end);
        }
    }
    ends
}

/// The first byte that differs outside relocated fields.
fn first_difference(old: &Section<'_>, new: &Section<'_>) -> Option<u64> {
    if old.bytes.len() != new.bytes.len() {
        return Some(0);
    }
    let mut at = 0;
    for reloc in &new.relocs {
        let start = (reloc.offset as usize).min(new.bytes.len());
        if let Some(found) = differ(old.bytes, new.bytes, at..start.max(at)) {
            return Some(found);
        }
        // Unknown kinds have an empty field: their bytes are compared like all others.
        at = start + RelocKind::from_elf(reloc.kind).map_or(0, RelocKind::width);
    }
    differ(old.bytes, new.bytes, at.min(new.bytes.len())..new.bytes.len())
}

fn differ(old: &[u8], new: &[u8], range: std::ops::Range<usize>) -> Option<u64> {
    let (old, new) = (&old[range.clone()], &new[range.clone()]);
    if old == new {
        return None;
    }
    old.iter().zip(new).position(|(a, b)| a != b).map(|i| (range.start + i) as u64)
}

/// Whether a call ([`is_call`]) leaves the frame of the function that makes it: it is a jump.
pub fn is_jump(bytes: &[u8], reloc: &Reloc) -> bool {
    let before = |n: usize| (reloc.offset as usize).checked_sub(n).and_then(|i| bytes.get(i)).copied();
    // e8 call, ff /2 call
    !matches!((before(2), before(1)), (_, Some(0xe8)) | (Some(0xff), Some(0x15)))
}

/// Whether a relocated field is the operand of a direct or GOT-indirect call or jump, not an address being taken.
pub fn is_call(bytes: &[u8], reloc: &Reloc) -> bool {
    RelocKind::from_elf(reloc.kind).is_some_and(|kind| kind.is_branch(bytes, reloc.offset))
}
