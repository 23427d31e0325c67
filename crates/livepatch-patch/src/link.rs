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
use crate::patch::{Patch, Place, Reloc, Section, SectionId, SectionKind, SymbolId};
use crate::reloc::{Formula, OutOfRange, RelocKind};
use layout::{Part, Slot};
pub use layout::{Plan, TlsPlan, plan};

mod layout;
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
    /// As [`Binding::Own`], for a function of which an earlier version leads here: whoever takes its address gets that one's.
    OwnBehind(RunAddr),
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
            (Binding::Own | Binding::OwnBehind(_), Place::Section { section, offset, .. })
                if self.plan.sections[section.0 as usize].0 != Part::Tls =>
            {
                Some(self.plan.section_addr(section, self.base).offset(offset as i64))
            }
            (Binding::Own | Binding::OwnBehind(_), _) => None,
        }
    }

    /// What a relocation refers to that is no thread-local.
    fn target(&self, section: &Section, reloc: &Reloc) -> Option<RunAddr> {
        match self.bindings[reloc.symbol.0 as usize] {
            Binding::OwnBehind(earlier) if section.takes_entry(reloc) => Some(earlier),
            _ => self.address(reloc.symbol),
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
                .value(section, reloc, place)
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

    fn value(&self, section: &Section, reloc: &Reloc, place: RunAddr) -> Result<i128, &'static str> {
        let Reloc { kind, symbol, addend, .. } = *reloc;
        let formula = kind.formula();
        if let Some(slot) = Slot::of(formula, symbol) {
            return Ok(relative(self.slot_addr(slot), addend, place));
        }
        match formula {
            Formula::Absolute => {
                Ok(i128::from(self.target(section, reloc).ok_or(NOT_ADDRESS)?.0) + i128::from(addend))
            }
            Formula::Relative => Ok(relative(self.target(section, reloc).ok_or(NOT_ADDRESS)?, addend, place)),
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
            Slot::Address(id) => match self.bindings[id.0 as usize] {
                Binding::OwnBehind(earlier) => [earlier.0, 0],
                _ => [self.address(id).ok_or_else(|| unsuitable(id, RelocKind::GotPcRel, NOT_ADDRESS))?.0, 0],
            },
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
