//! Unwind tables of the modules of a process: found once while the target runs, looked up while it is stopped.

use super::depth::{AT_ENTRY, Depths, MAX_CODE};
use super::entry::StraightCode;
use super::{Unverified, dwarf};
use crate::elf::Peek;
use crate::landing::Pad;
use gimli::{
    BaseAddresses, CieOrFde, EhFrame, EhFrameHdr, EhFrameOffset, EndianArcSlice, Expression,
    FrameDescriptionEntry, LittleEndian, ParsedEhFrameHdr, Register, RegisterRule, UnwindContext,
    UnwindExpression, UnwindSection,
};
use livepatch_patch::RunAddr;
use livepatch_process::Process;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The bytes of an unwind section, shared.
pub(super) type CfiReader = EndianArcSlice<LittleEndian>;

/// An unwind section cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unwind tables of {module} are damaged: {what}")]
pub struct TableError {
    /// Name of the module.
    pub module: String,
    /// What is wrong.
    pub what: String,
}

/// How the canonical frame address is found.
#[derive(Clone, Debug)]
pub(super) enum Cfa {
    Register { register: u8, offset: i64 },
    Expression(Expression<CfiReader>),
}

/// How the caller's value of a register is found.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    /// The tables say nothing: the ABI decides.
    Unspecified,
    Undefined,
    Same,
    /// Saved at CFA + offset.
    At(i64),
    /// Equal to CFA + offset.
    Is(i64),
    Register(u8),
    AtExpression(Expression<CfiReader>),
    IsExpression(Expression<CfiReader>),
    Constant(u64),
}

/// Everything that the tables say about one address.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) cfa: Cfa,
    pub(super) rules: [Rule; dwarf::COUNT],
    pub(super) signal: bool,
    pub(super) function: RunAddr,
}

impl Row {
    /// Whether this is a function that ends in `__builtin_eh_return` (of the unwinder).
    pub(super) fn rewrites_callers(&self) -> bool {
        let saved = |register: &usize| matches!(self.rules[*register], Rule::At(_));
        !self.signal && dwarf::EXCEPTION.iter().all(saved)
    }
}

/// The unwind table of one module, or of one patch.
#[derive(Debug)]
pub struct Table {
    name: String,
    text: Range<u64>,
    eh_frame: EhFrame<CfiReader>,
    bases: BaseAddresses,
    index: Index,
}

#[derive(Debug)]
enum Index {
    /// The binary search table that the linker made.
    Header(Box<ParsedEhFrameHdr<CfiReader>>),
    /// Function ranges with the offset of their entry, sorted by start.
    Sorted(Vec<(Range<u64>, usize)>),
}

fn reader(bytes: Vec<u8>) -> CfiReader {
    EndianArcSlice::new(Arc::from(bytes), LittleEndian)
}

impl Table {
    /// A table with the linker's search table: contents of the `PT_GNU_EH_FRAME` segment and of memory from
    /// the start of `.eh_frame` on. `text` is the range of code that the table speaks for.
    pub fn with_header(
        name: &str,
        text: Range<RunAddr>,
        header: (RunAddr, Vec<u8>),
        eh_frame: (RunAddr, Vec<u8>),
    ) -> Result<Self, TableError> {
        let fail = |error: gimli::Error| TableError { module: name.into(), what: error.to_string() };
        let bases = bases(&text, eh_frame.0).set_eh_frame_hdr(header.0.0);
        let parsed = EhFrameHdr::from(reader(header.1)).parse(&bases, 8).map_err(fail)?;
        let section = section(eh_frame.1);
        let index = match parsed.table() {
            Some(_) => Index::Header(Box::new(parsed)),
            None => Index::Sorted(scan(&section, &bases).map_err(fail)?),
        };
        Ok(Self { name: name.into(), text: text.start.0..text.end.0, eh_frame: section, bases, index })
    }

    /// A table without a search table: every entry is read once, up to the terminator.
    pub fn scanned(
        name: &str,
        text: Range<RunAddr>,
        eh_frame: (RunAddr, Vec<u8>),
    ) -> Result<Self, TableError> {
        let bases = bases(&text, eh_frame.0);
        let section = section(eh_frame.1);
        let entries = scan(&section, &bases)
            .map_err(|error| TableError { module: name.into(), what: error.to_string() })?;
        Ok(Self {
            name: name.into(),
            text: text.start.0..text.end.0,
            eh_frame: section,
            bases,
            index: Index::Sorted(entries),
        })
    }

    /// Where `.eh_frame` starts, read from the contents of a `PT_GNU_EH_FRAME` segment.
    pub fn eh_frame_start(name: &str, header: (RunAddr, &[u8])) -> Result<RunAddr, TableError> {
        let fail = |error: gimli::Error| TableError { module: name.into(), what: error.to_string() };
        let bases = BaseAddresses::default().set_eh_frame_hdr(header.0.0);
        let parsed = EhFrameHdr::from(reader(header.1.to_vec())).parse(&bases, 8).map_err(fail)?;
        parsed.eh_frame_ptr().direct().map(RunAddr).map_err(fail)
    }

    /// Name of the module.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Range of the function that covers `pc`, if the table has one.
    pub fn function(&self, pc: RunAddr) -> Option<Range<RunAddr>> {
        let fde = self.entry(pc.0).ok()??;
        Some(RunAddr(fde.initial_address())..RunAddr(fde.end_address()))
    }

    /// Range of the function that starts at `start`, if it is entered at its start with nothing but the return address on the stack: parts
    /// that a compiler puts elsewhere have tables of their own.
    fn whole_function(&self, start: RunAddr) -> Option<Range<RunAddr>> {
        let small = |range: &Range<RunAddr>| range.start == start && range.end.0 - range.start.0 <= MAX_CODE;
        let range = self.function(start).filter(small)?;
        let row = self.row(range.start.0, &mut UnwindContext::new()).ok()?;
        let called = matches!(row.cfa, Cfa::Register { register, offset: AT_ENTRY } if usize::from(register) == dwarf::RSP);
        called.then_some(range)
    }

    fn entry(&self, pc: u64) -> gimli::Result<Option<FrameDescriptionEntry<CfiReader>>> {
        let offset = match &self.index {
            Index::Header(header) => self.searched(header, pc)?,
            Index::Sorted(entries) => {
                let after = entries.partition_point(|(range, _)| range.start <= pc);
                entries[..after].last().map(|(_, offset)| *offset)
            }
        };
        let Some(offset) = offset else { return Ok(None) };
        let fde =
            self.eh_frame.fde_from_offset(&self.bases, EhFrameOffset(offset), EhFrame::cie_from_offset)?;
        Ok(Some(fde).filter(|fde| fde.contains(pc)))
    }

    fn searched(&self, header: &ParsedEhFrameHdr<CfiReader>, pc: u64) -> gimli::Result<Option<usize>> {
        let Some(table) = header.table() else { return Ok(None) };
        let entry = table.lookup(pc, &self.bases)?.direct()?;
        let start = header.eh_frame_ptr().direct()?;
        Ok(entry.checked_sub(start).and_then(|offset| usize::try_from(offset).ok()))
    }

    fn row(&self, pc: u64, context: &mut UnwindContext<usize>) -> Result<Row, Unverified> {
        let bad = |error: gimli::Error| Unverified::BadCfi { pc: RunAddr(pc), what: error.to_string() };
        let fde = self.entry(pc).map_err(bad)?.ok_or(Unverified::NoCfi(RunAddr(pc)))?;
        if fde.cie().return_address_register() != Register(dwarf::RIP as u16) {
            let what = "unusual return address column".to_owned();
            return Err(Unverified::BadCfi { pc: RunAddr(pc), what });
        }
        let row = fde.unwind_info_for_address(&self.eh_frame, &self.bases, context, pc).map_err(bad)?;
        let expression = |e: &UnwindExpression<usize>| e.get(&self.eh_frame).map_err(bad);
        let cfa = match row.cfa() {
            gimli::CfaRule::RegisterAndOffset { register, offset } => Cfa::Register {
                register: small(*register).ok_or(Unverified::LostRegister(register.0))?,
                offset: *offset,
            },
            gimli::CfaRule::Expression(e) => Cfa::Expression(expression(e)?),
        };
        let mut rules = [const { Rule::Unspecified }; dwarf::COUNT];
        for (register, rule) in row.registers() {
            let Some(slot) = rules.get_mut(usize::from(register.0)) else { continue };
            *slot = match rule {
                RegisterRule::Undefined => Rule::Undefined,
                RegisterRule::SameValue => Rule::Same,
                RegisterRule::Offset(offset) => Rule::At(*offset),
                RegisterRule::ValOffset(offset) => Rule::Is(*offset),
                RegisterRule::Register(other) => small(*other).map_or(Rule::Undefined, Rule::Register),
                RegisterRule::Expression(e) => Rule::AtExpression(expression(e)?),
                RegisterRule::ValExpression(e) => Rule::IsExpression(expression(e)?),
                RegisterRule::Constant(value) => Rule::Constant(*value),
                RegisterRule::Architectural => {
                    let what = "architectural register rule".to_owned();
                    return Err(Unverified::BadCfi { pc: RunAddr(pc), what });
                }
            };
        }
        let function = RunAddr(fde.initial_address());
        Ok(Row { cfa, rules, signal: fde.is_signal_trampoline(), function })
    }
}

fn small(register: Register) -> Option<u8> {
    u8::try_from(register.0).ok().filter(|r| usize::from(*r) < dwarf::COUNT)
}

fn bases(text: &Range<RunAddr>, eh_frame: RunAddr) -> BaseAddresses {
    BaseAddresses::default().set_text(text.start.0).set_eh_frame(eh_frame.0)
}

fn section(bytes: Vec<u8>) -> EhFrame<CfiReader> {
    let mut section = EhFrame::from(reader(bytes));
    section.set_address_size(8);
    section
}

fn scan(section: &EhFrame<CfiReader>, bases: &BaseAddresses) -> gimli::Result<Vec<(Range<u64>, usize)>> {
    let mut found = Vec::new();
    let mut entries = section.entries(bases);
    while let Some(entry) = entries.next()? {
        if let CieOrFde::Fde(partial) = entry {
            let fde = partial.parse(EhFrame::cie_from_offset)?;
            found.push((fde.initial_address()..fde.end_address(), fde.offset()));
        }
    }
    found.sort_by_key(|(range, _)| range.start);
    Ok(found)
}

/// The unwind tables of a process, with the rows that were looked up.
#[derive(Debug, Default)]
pub struct Tables {
    tables: Vec<Table>,
    main: Option<StraightCode>,
    process: Option<Process>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// By ascending place.
    pads: Vec<Pad>,
    rows: HashMap<u64, Result<Arc<Row>, Unverified>>,
    /// By the start of the function.
    depths: HashMap<u64, Option<Depths>>,
    context: UnwindContext<usize>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

impl Cache {
    /// The place that a place in a landing pad stands for; any other stands for itself.
    fn origin(&self, pc: RunAddr) -> RunAddr {
        let after = self.pads.partition_point(|pad| pad.at <= pc);
        self.pads[..after].last().and_then(|pad| pad.origin(pc)).unwrap_or(pc)
    }
}

impl Tables {
    /// Tables of all modules. Their text ranges must not overlap; of overlapping ones the lower wins.
    pub fn new(mut tables: Vec<Table>) -> Self {
        tables.sort_by_key(|table| table.text.start);
        Self { tables, main: None, process: None, cache: Mutex::default() }
    }

    /// Also proves frames of the executable's `main` if the tables leave it out.
    pub fn with_main(self, main: Option<StraightCode>) -> Self {
        Self { main, ..self }
    }

    /// Also proves frames whose frame pointer is not known, where the code in this process shows how deep they are.
    pub fn with_code_of(self, process: &Process) -> Self {
        Self { process: Some(process.clone()), ..self }
    }

    /// Lets these landing pads, too, count as the instructions that they are copies of.
    pub fn know_pads(&self, pads: &[Pad]) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.pads.extend_from_slice(pads);
        cache.pads.sort_by_key(|pad| pad.at);
        cache.pads.dedup();
    }

    /// The table that speaks for an address.
    pub fn find(&self, pc: RunAddr) -> Option<&Table> {
        let after = self.tables.partition_point(|table| table.text.start <= pc.0);
        self.tables[..after].last().filter(|table| table.text.contains(&pc.0))
    }

    /// The tables, by ascending address.
    pub fn iter(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter()
    }

    pub(super) fn row(&self, pc: RunAddr) -> Result<Arc<Row>, Unverified> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let pc = cache.origin(pc);
        let Cache { rows, context, .. } = &mut *cache;
        rows.entry(pc.0)
            .or_insert_with(|| {
                let table = self.find(pc).ok_or(Unverified::NoCfi(pc))?;
                let main = || self.main.as_ref().and_then(|main| main.row(pc));
                match table.row(pc.0, context) {
                    Err(Unverified::NoCfi(_)) => main().ok_or(Unverified::NoCfi(pc)),
                    row => row,
                }
                .map(Arc::new)
            })
            .clone()
    }

    /// The distance from the stack pointer to the frame address at an instruction, by the code of the function. `offset` is what
    /// the tables have for the frame pointer.
    pub(super) fn depth(&self, function: RunAddr, pc: RunAddr, offset: i64) -> Option<i64> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let pc = cache.origin(pc);
        let depths = cache.depths.entry(function.0).or_insert_with(|| {
            let code = self.find(function)?.whole_function(function)?;
            let bytes = self.process.as_ref()?.bytes(code.start, (code.end.0 - code.start.0) as usize);
            Depths::of(code.start.0, &bytes.ok()?)
        });
        depths.as_ref()?.at(pc.0, offset)
    }
}
