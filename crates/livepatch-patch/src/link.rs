//! The patch linker: a [`Patch`], addresses for what lies outside it, and a base address in; bytes out.
//!
//! A linked patch is three parts in this order from its base, each page-aligned:
//!
//! ```text
//! base ──► text      code sections, then one veneer for each import that is called     R-X
//!          rodata    constants, unwind tables, then the GOT                            R--
//!          data      writable sections, then zero-filled ones                          RW-
//! ```
//!
//! New thread-locals are laid out as one TLS block of their own ([`Plan::tls`]) whose place is decided by the target's
//! loader; [`tls_image`] makes its initial contents, which may hold addresses of the other parts.
//!
//! A *veneer* is `jmp *slot(%rip)`: it carries a 32-bit call to an address that 32 bits cannot reach.

use crate::addr::RunAddr;
use crate::patch::{Patch, Place, Section, SectionId, SectionKind, SymbolId};
use crate::reloc::{Formula, OutOfRange, RelocKind};
use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// Page size that parts are aligned to.
pub const PAGE: u64 = 4096;
const VENEER: u64 = 8;
const WORD: u64 = 8;

/// Where something outside the patch lives in one process. One entry for each symbol of the patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Defined by the patch itself; the linker places it.
    Own,
    /// At this address: baseline code or data, an import, or a static that an earlier patch brought in (then the
    /// patch's own copy stays unused).
    At(RunAddr),
    /// A thread-local of some loaded module.
    Tls(TlsPlace),
}

/// How to reach a thread-local variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsPlace {
    /// The loader's number of the module (1 is the executable).
    pub module: u64,
    /// Offset in the module's TLS block.
    pub offset: u64,
    /// Offset from the thread pointer, where the module has static TLS.
    pub tp_offset: Option<i64>,
}

/// Sizes of the mapped parts (multiples of the page size) and where each section goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Code and veneers (read, execute).
    pub text_size: u64,
    /// Constants, GOT, unwind tables (read).
    pub rodata_size: u64,
    /// Writable data (read, write).
    pub data_size: u64,
    /// New thread-locals, if any: what a TLS carrier must provide.
    pub tls: Option<TlsPlan>,
    sections: Vec<(Part, u64)>,
    got: BTreeMap<Slot, u64>,
    veneers: BTreeMap<SymbolId, u64>,
}

/// What the TLS carrier must provide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPlan {
    /// Size of the block in bytes.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u64,
    /// Whether code reaches it by a fixed offset from the thread pointer, so that it must be static TLS.
    pub needs_static: bool,
    /// Offset in the block of each thread-local that the patch defines.
    pub offsets: Vec<(SymbolId, u64)>,
}

/// A linked patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// `text_size` bytes for the base.
    pub text: Vec<u8>,
    /// `rodata_size` bytes, following the text.
    pub rodata: Vec<u8>,
    /// `data_size` bytes, following the read-only part.
    pub data: Vec<u8>,
    /// Start of the unwind tables, as `__register_frame` wants it.
    pub eh_frame: Option<RunAddr>,
    /// Address of each symbol (`None` for thread-locals).
    pub symbols: Vec<Option<RunAddr>>,
}

/// Why a patch cannot be linked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A value does not fit; the base is too far away or the patch too large.
    #[error("relocating `{symbol}` in {section}+{offset:#x}")]
    Range {
        /// Symbol referred to.
        symbol: String,
        /// Section of the place.
        section: String,
        /// Offset of the place.
        offset: u64,
        /// What does not fit.
        #[source]
        source: OutOfRange,
    },
    /// A thread-local relocation against a symbol that is none, or the other way round.
    #[error("{kind} in {section}+{offset:#x} does not suit `{symbol}`, which is {what}")]
    Unsuitable {
        /// Kind of the relocation.
        kind: RelocKind,
        /// Symbol referred to.
        symbol: String,
        /// Section of the place.
        section: String,
        /// Offset of the place.
        offset: u64,
        /// What the symbol is bound to.
        what: &'static str,
    },
    /// The number of bindings differs from the number of symbols.
    #[error("{bindings} bindings for {symbols} symbols")]
    Bindings {
        /// Bindings given.
        bindings: usize,
        /// Symbols in the patch.
        symbols: usize,
    },
    /// The parts together exceed what 32-bit displacements span.
    #[error("the patch needs {0} bytes, more than 1 GiB")]
    TooLarge(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Text,
    ReadOnly,
    Data,
    Tls,
}

/// A GOT entry; two words for the general- and local-dynamic kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Address(SymbolId),
    TlsGd(SymbolId),
    TlsLd(SymbolId),
    TpOff(SymbolId),
}

impl Slot {
    fn of(formula: Formula, symbol: SymbolId) -> Option<Self> {
        match formula {
            Formula::Got => Some(Self::Address(symbol)),
            Formula::TlsGd => Some(Self::TlsGd(symbol)),
            Formula::TlsLd => Some(Self::TlsLd(symbol)),
            Formula::GotTpOff => Some(Self::TpOff(symbol)),
            _ => None,
        }
    }

    fn words(self) -> u64 {
        match self {
            Self::Address(_) | Self::TpOff(_) => 1,
            Self::TlsGd(_) | Self::TlsLd(_) => 2,
        }
    }
}

impl Part {
    fn of(kind: SectionKind) -> Self {
        match kind {
            SectionKind::Text => Self::Text,
            SectionKind::ReadOnly | SectionKind::EhFrame => Self::ReadOnly,
            SectionKind::Data | SectionKind::Bss => Self::Data,
            SectionKind::TlsData | SectionKind::TlsBss => Self::Tls,
        }
    }
}

impl Plan {
    /// Bytes to reserve for the three parts.
    pub fn total(&self) -> u64 {
        self.text_size + self.rodata_size + self.data_size
    }

    fn part_base(&self, part: Part, base: RunAddr) -> RunAddr {
        match part {
            Part::Text | Part::Tls => base,
            Part::ReadOnly => base.offset(self.text_size as i64),
            Part::Data => base.offset((self.text_size + self.rodata_size) as i64),
        }
    }

    fn section_addr(&self, id: SectionId, base: RunAddr) -> RunAddr {
        let (part, offset) = self.sections[id.0 as usize];
        self.part_base(part, base).offset(offset as i64)
    }
}

/// Lays a patch out: sizes and offsets do not depend on addresses.
///
/// # Errors
/// The parts together exceed 1 GiB.
pub fn plan(patch: &Patch) -> Result<Plan, LinkError> {
    let mut cursors = [0u64; 4];
    let mut sections = vec![(Part::Text, 0); patch.sections.len()];
    let mut tls_align = 1;
    // Initialised before zero-filled, so that the TLS image and the data have their zeroes at the end.
    let mut order: Vec<usize> = (0..patch.sections.len()).collect();
    order.sort_by_key(|&i| matches!(patch.sections[i].kind, SectionKind::Bss | SectionKind::TlsBss));
    for i in order {
        let section = &patch.sections[i];
        let part = Part::of(section.kind);
        let cursor = &mut cursors[part as usize];
        let offset = cursor.next_multiple_of(section.align);
        *cursor = offset.saturating_add(section.size);
        if part == Part::Tls {
            tls_align = tls_align.max(section.align);
        }
        sections[i] = (part, offset);
    }
    let mut got = BTreeMap::new();
    let mut veneers = BTreeMap::new();
    cursors[Part::ReadOnly as usize] = cursors[Part::ReadOnly as usize].next_multiple_of(WORD);
    cursors[Part::Text as usize] = cursors[Part::Text as usize].next_multiple_of(16);
    for (symbol, formula) in references(patch) {
        let is_import = matches!(patch.symbols[symbol.0 as usize].place, Place::Import { .. });
        let slot = Slot::of(formula, symbol)
            .or((formula == Formula::Branch && is_import).then_some(Slot::Address(symbol)));
        if let Some(slot) = slot {
            got.entry(slot)
                .or_insert_with(|| bump(&mut cursors[Part::ReadOnly as usize], slot.words() * WORD));
        }
        if formula == Formula::Branch && is_import {
            veneers.entry(symbol).or_insert_with(|| bump(&mut cursors[Part::Text as usize], VENEER));
        }
    }
    let tls = tls_plan(patch, &sections, cursors[Part::Tls as usize], tls_align);
    let [text_size, rodata_size, data_size, _] = cursors.map(|size| size.next_multiple_of(PAGE));
    let total = cursors.iter().fold(0u64, |sum, size| sum.saturating_add(*size));
    if total > 1 << 30 {
        return Err(LinkError::TooLarge(total));
    }
    Ok(Plan { text_size, rodata_size, data_size, tls, sections, got, veneers })
}

fn bump(cursor: &mut u64, size: u64) -> u64 {
    let at = *cursor;
    *cursor += size;
    at
}

fn references(patch: &Patch) -> impl Iterator<Item = (SymbolId, Formula)> + '_ {
    patch
        .sections
        .iter()
        .flat_map(|section| &section.relocs)
        .map(|reloc| (reloc.symbol, reloc.kind.formula()))
}

fn tls_plan(patch: &Patch, sections: &[(Part, u64)], size: u64, align: u64) -> Option<TlsPlan> {
    let offsets: Vec<_> = own_tls(patch).map(|(id, s, off)| (id, sections[s.0 as usize].1 + off)).collect();
    (size > 0).then(|| TlsPlan {
        size,
        align,
        needs_static: references(patch).any(|(symbol, formula)| {
            matches!(formula, Formula::TpOff | Formula::GotTpOff)
                && offsets.iter().any(|(id, _)| *id == symbol)
        }),
        offsets,
    })
}

fn own_tls(patch: &Patch) -> impl Iterator<Item = (SymbolId, SectionId, u64)> + '_ {
    patch.symbols.iter().enumerate().filter_map(|(i, symbol)| match symbol.place {
        Place::Section { section, offset, .. }
            if Part::of(patch.sections[section.0 as usize].kind) == Part::Tls =>
        {
            Some((SymbolId(i as u32), section, offset))
        }
        _ => None,
    })
}

/// Links the three mapped parts for `base`.
///
/// # Errors
/// A value does not fit its place, or a binding does not suit its relocation.
pub fn link(patch: &Patch, plan: &Plan, base: RunAddr, bindings: &[Binding]) -> Result<Linked, LinkError> {
    let linker = Linker::new(patch, plan, base, bindings)?;
    let mut linked = Linked {
        text: vec![0xcc; plan.text_size as usize],
        rodata: vec![0; plan.rodata_size as usize],
        data: vec![0; plan.data_size as usize],
        eh_frame: None,
        symbols: (0..patch.symbols.len()).map(|i| linker.address(SymbolId(i as u32))).collect(),
    };
    for (i, section) in patch.sections.iter().enumerate() {
        let (part, offset) = plan.sections[i];
        let out = match part {
            Part::Text => &mut linked.text,
            Part::ReadOnly => &mut linked.rodata,
            Part::Data => &mut linked.data,
            Part::Tls => continue,
        };
        let addr = plan.section_addr(SectionId(i as u32), base);
        if section.kind == SectionKind::EhFrame {
            linked.eh_frame = Some(addr);
        }
        let out = &mut out[offset as usize..][..section.size as usize];
        linker.section(section, addr, out)?;
    }
    linker.fill_got(&mut linked.rodata)?;
    linker.fill_veneers(&mut linked.text)?;
    Ok(linked)
}

/// The initial contents of the patch's TLS block (without its zero-filled end), for a patch mapped at `base`.
///
/// # Errors
/// As [`link`].
pub fn tls_image(
    patch: &Patch,
    plan: &Plan,
    base: RunAddr,
    bindings: &[Binding],
) -> Result<Vec<u8>, LinkError> {
    let linker = Linker::new(patch, plan, base, bindings)?;
    let mut image = Vec::new();
    for (section, (_, offset)) in patch.sections.iter().zip(&plan.sections) {
        if section.kind == SectionKind::TlsData {
            let end = offset + section.size;
            if (image.len() as u64) < end {
                image.resize(end as usize, 0);
            }
            // Absolute addresses are all that an initialiser of static storage can hold, so the place's own address,
            // which differs in every thread, is never used.
            let out = &mut image[*offset as usize..end as usize];
            linker.section(section, RunAddr(0), out)?;
        }
    }
    Ok(image)
}

struct Linker<'a> {
    patch: &'a Patch,
    plan: &'a Plan,
    base: RunAddr,
    bindings: &'a [Binding],
}

impl<'a> Linker<'a> {
    fn new(
        patch: &'a Patch,
        plan: &'a Plan,
        base: RunAddr,
        bindings: &'a [Binding],
    ) -> Result<Self, LinkError> {
        if bindings.len() != patch.symbols.len() {
            return Err(LinkError::Bindings { bindings: bindings.len(), symbols: patch.symbols.len() });
        }
        Ok(Self { patch, plan, base, bindings })
    }

    fn address(&self, id: SymbolId) -> Option<RunAddr> {
        match (self.bindings[id.0 as usize], self.patch.symbols[id.0 as usize].place) {
            (Binding::At(addr), _) => Some(addr),
            (Binding::Tls(_), _) => None,
            (Binding::Own, Place::Section { section, offset, .. })
                if self.plan.sections[section.0 as usize].0 != Part::Tls =>
            {
                Some(self.plan.section_addr(section, self.base).offset(offset as i64))
            }
            (Binding::Own, _) => None,
        }
    }

    fn tls(&self, id: SymbolId) -> Option<TlsPlace> {
        match self.bindings[id.0 as usize] {
            Binding::Tls(place) => Some(place),
            _ => None,
        }
    }

    fn section(&self, section: &Section, addr: RunAddr, out: &mut [u8]) -> Result<(), LinkError> {
        out[..section.bytes.len()].copy_from_slice(&section.bytes);
        out[section.bytes.len()..].fill(0);
        for reloc in &section.relocs {
            let place = addr.offset(reloc.offset as i64);
            let value = self
                .value(reloc.kind, reloc.symbol, reloc.addend, place)
                .map_err(|what| self.unsuitable(section, reloc.offset, reloc.kind, reloc.symbol, what))?;
            let field = &mut out[reloc.offset as usize..][..reloc.kind.width()];
            reloc.kind.write(field, value).map_err(|source| LinkError::Range {
                symbol: self.patch.symbols[reloc.symbol.0 as usize].name.clone(),
                section: section.name.clone(),
                offset: reloc.offset,
                source,
            })?;
        }
        Ok(())
    }

    fn value(
        &self,
        kind: RelocKind,
        symbol: SymbolId,
        addend: i64,
        place: RunAddr,
    ) -> Result<i128, &'static str> {
        let formula = kind.formula();
        if let Some(slot) = Slot::of(formula, symbol) {
            return Ok(relative(self.slot_addr(slot), addend, place));
        }
        match formula {
            Formula::Absolute => {
                Ok(i128::from(self.address(symbol).ok_or(NOT_ADDRESS)?.0) + i128::from(addend))
            }
            Formula::Relative => Ok(relative(self.address(symbol).ok_or(NOT_ADDRESS)?, addend, place)),
            Formula::Branch => {
                let direct = relative(self.address(symbol).ok_or(NOT_ADDRESS)?, addend, place);
                match self.plan.veneers.get(&symbol) {
                    Some(offset) if i32::try_from(direct).is_err() => {
                        Ok(relative(self.base.offset(*offset as i64), addend, place))
                    }
                    _ => Ok(direct),
                }
            }
            Formula::DtpOff => Ok(i128::from(self.tls(symbol).ok_or(NOT_TLS)?.offset) + i128::from(addend)),
            Formula::TpOff => {
                let tls = self.tls(symbol).ok_or(NOT_TLS)?;
                Ok(i128::from(tls.tp_offset.ok_or(NOT_STATIC)?) + i128::from(addend))
            }
            Formula::Got | Formula::TlsGd | Formula::TlsLd | Formula::GotTpOff => unreachable!("has a slot"),
        }
    }

    fn slot_addr(&self, slot: Slot) -> RunAddr {
        self.plan.part_base(Part::ReadOnly, self.base).offset(self.plan.got[&slot] as i64)
    }

    fn fill_got(&self, rodata: &mut [u8]) -> Result<(), LinkError> {
        for (slot, offset) in &self.plan.got {
            let words = self.slot_words(*slot)?;
            for (i, word) in words.iter().take(slot.words() as usize).enumerate() {
                rodata[*offset as usize + i * 8..][..8].copy_from_slice(&word.to_le_bytes());
            }
        }
        Ok(())
    }

    fn slot_words(&self, slot: Slot) -> Result<[u64; 2], LinkError> {
        let unsuitable = |id: SymbolId, kind, what| LinkError::Unsuitable {
            kind,
            symbol: self.patch.symbols[id.0 as usize].name.clone(),
            section: "the GOT".to_owned(),
            offset: self.plan.got[&slot],
            what,
        };
        Ok(match slot {
            Slot::Address(id) => {
                [self.address(id).ok_or_else(|| unsuitable(id, RelocKind::GotPcRel, NOT_ADDRESS))?.0, 0]
            }
            Slot::TlsGd(id) => {
                let tls = self.tls(id).ok_or_else(|| unsuitable(id, RelocKind::TlsGd, NOT_TLS))?;
                [tls.module, tls.offset]
            }
            Slot::TlsLd(id) => {
                [self.tls(id).ok_or_else(|| unsuitable(id, RelocKind::TlsLd, NOT_TLS))?.module, 0]
            }
            Slot::TpOff(id) => {
                let tls = self.tls(id).ok_or_else(|| unsuitable(id, RelocKind::GotTpOff, NOT_TLS))?;
                let tp_offset =
                    tls.tp_offset.ok_or_else(|| unsuitable(id, RelocKind::GotTpOff, NOT_STATIC))?;
                [tp_offset as u64, 0]
            }
        })
    }

    /// `ff 25 disp32` (`jmp *disp32(%rip)`, the displacement counting from the end of the six bytes), then two `int3`.
    fn fill_veneers(&self, text: &mut [u8]) -> Result<(), LinkError> {
        for (symbol, offset) in &self.plan.veneers {
            let next = self.base.offset(*offset as i64 + 6);
            let distance = relative(self.slot_addr(Slot::Address(*symbol)), 0, next);
            let out = &mut text[*offset as usize..][..VENEER as usize];
            out.copy_from_slice(&[0xff, 0x25, 0, 0, 0, 0, 0xcc, 0xcc]);
            RelocKind::Pc32.write(&mut out[2..6], distance).map_err(|source| LinkError::Range {
                symbol: self.patch.symbols[symbol.0 as usize].name.clone(),
                section: "the veneers".to_owned(),
                offset: *offset,
                source,
            })?;
        }
        Ok(())
    }

    fn unsuitable(
        &self,
        section: &Section,
        offset: u64,
        kind: RelocKind,
        id: SymbolId,
        what: &'static str,
    ) -> LinkError {
        let symbol = self.patch.symbols[id.0 as usize].name.clone();
        LinkError::Unsuitable { kind, symbol, section: section.name.clone(), offset, what }
    }
}

const NOT_ADDRESS: &str = "a thread-local";
const NOT_TLS: &str = "not a thread-local";
const NOT_STATIC: &str = "a thread-local without a fixed offset from the thread pointer";

fn relative(target: RunAddr, addend: i64, place: RunAddr) -> i128 {
    i128::from(target.0) + i128::from(addend) - i128::from(place.0)
}
