//! Where everything of a patch goes, relative to a base that is not known yet.

use super::{LinkError, PAGE, VENEER, WORD};
use crate::addr::RunAddr;
use crate::patch::{Patch, Place, SectionId, SectionKind, SymbolId};
use crate::reloc::Formula;
use std::collections::BTreeMap;

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
    pub(super) sections: Vec<(Part, u64)>,
    pub(super) got: BTreeMap<Slot, u64>,
    pub(super) veneers: BTreeMap<SymbolId, u64>,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Text,
    ReadOnly,
    Data,
    Tls,
}

/// A GOT entry; two words for the general- and local-dynamic kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    Address(SymbolId),
    TlsGd(SymbolId),
    TlsLd(SymbolId),
    TpOff(SymbolId),
}

impl Slot {
    pub(super) fn of(formula: Formula, symbol: SymbolId) -> Option<Self> {
        match formula {
            Formula::Got => Some(Self::Address(symbol)),
            Formula::TlsGd => Some(Self::TlsGd(symbol)),
            Formula::TlsLd => Some(Self::TlsLd(symbol)),
            Formula::GotTpOff => Some(Self::TpOff(symbol)),
            _ => None,
        }
    }

    pub(super) fn words(self) -> u64 {
        match self {
            Self::Address(_) | Self::TpOff(_) => 1,
            Self::TlsGd(_) | Self::TlsLd(_) => 2,
        }
    }
}

impl Part {
    pub(super) fn of(kind: SectionKind) -> Self {
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

    pub(super) fn part_base(&self, part: Part, base: RunAddr) -> RunAddr {
        match part {
            Part::Text | Part::Tls => base,
            Part::ReadOnly => base.offset(self.text_size as i64),
            Part::Data => base.offset((self.text_size + self.rodata_size) as i64),
        }
    }

    pub(super) fn section_addr(&self, id: SectionId, base: RunAddr) -> RunAddr {
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

pub(super) fn own_tls(patch: &Patch) -> impl Iterator<Item = (SymbolId, SectionId, u64)> + '_ {
    patch.symbols.iter().enumerate().filter_map(|(i, symbol)| match symbol.place {
        Place::Section { section, offset, .. }
            if Part::of(patch.sections[section.0 as usize].kind) == Part::Tls =>
        {
            Some((SymbolId(i as u32), section, offset))
        }
        _ => None,
    })
}
