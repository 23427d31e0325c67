//! Code of a patch that the process may keep the address of.
//!
//! New functions are reached from the patch's own code, and, where that stores their address (in a vtable, as a function pointer), from
//! whatever the process keeps. A later patch that has such a function again has to lead the kept addresses to it.

use crate::ident::Digest;
use crate::patch::{Patch, Place, Reloc, Section, SectionId, SectionKind, Symbol, SymbolId};
use crate::reloc::{Formula, RelocKind};
use std::collections::BTreeSet;

impl Patch {
    /// The functions of the patch of which some code or data takes the address.
    pub fn addressed(&self) -> BTreeSet<SymbolId> {
        let mut found = BTreeSet::new();
        for section in self.sections.iter().filter(|section| section.kind != SectionKind::EhFrame) {
            let addresses = section.relocs.iter().filter(|reloc| !is_branch(section, reloc));
            found.extend(addresses.map(|reloc| reloc.symbol).filter(|symbol| self.is_code(*symbol)));
        }
        found
    }

    /// What a function of the patch is, whatever its address, the lines in panic messages, and the code of functions that it names.
    pub fn code_digest(&self, symbol: SymbolId) -> Option<Digest> {
        let Place::Section { section, .. } = self.symbol(symbol)?.place else { return None };
        let mut text = String::new();
        self.spell(section, &mut vec![section], &mut text);
        Some(Digest::of(text.as_bytes()))
    }

    fn symbol(&self, id: SymbolId) -> Option<&Symbol> {
        self.symbols.get(id.0 as usize)
    }

    fn section_of(&self, id: SymbolId) -> Option<(SectionId, &Section)> {
        let Place::Section { section, .. } = self.symbol(id)?.place else { return None };
        Some((section, self.sections.get(section.0 as usize)?))
    }

    fn is_code(&self, symbol: SymbolId) -> bool {
        self.section_of(symbol).is_some_and(|(_, section)| section.kind == SectionKind::Text)
    }

    fn spell(&self, id: SectionId, within: &mut Vec<SectionId>, out: &mut String) {
        let Some(section) = self.sections.get(id.0 as usize) else { return };
        let mut bytes = section.bytes.clone();
        for reloc in &section.relocs {
            let start = reloc.offset as usize;
            if let Some(field) = bytes.get_mut(start..start + reloc.kind.width()) {
                field.fill(0);
            }
        }
        if is_location(section) {
            bytes.truncate(LINE);
        }
        out.push_str(&format!("{:?} {} {bytes:02x?}", section.kind, section.size));
        for reloc in &section.relocs {
            out.push_str(&format!(" {} {} {}", reloc.offset, reloc.kind, reloc.addend));
            let Some(symbol) = self.symbol(reloc.symbol) else { continue };
            match self.section_of(reloc.symbol) {
                Some((target, of)) if of.kind == SectionKind::ReadOnly && !within.contains(&target) => {
                    within.push(target);
                    out.push_str(" {");
                    self.spell(target, within, out);
                    out.push('}');
                    within.pop();
                }
                _ => out.push_str(&format!(" {}", plain(&symbol.name))),
            }
        }
    }
}

/// The name without what the optimiser appends to make a local symbol visible to other code units.
pub fn plain(name: &str) -> &str {
    name.split(".llvm.").next().unwrap_or(name)
}

/// Offset of line and column in a `core::panic::Location`, behind its file's address and length.
const LINE: usize = 16;

/// Whether it may be a `core::panic::Location`: nothing else is taken for less by this than for a place in the source.
fn is_location(section: &Section) -> bool {
    section.size == 24 && matches!(section.relocs.as_slice(), [reloc] if reloc.offset == 0)
}

/// Whether a reference is a call or a jump, directly or through a slot of a table.
fn is_branch(section: &Section, reloc: &Reloc) -> bool {
    let before =
        |n: usize| (reloc.offset as usize).checked_sub(n).and_then(|at| section.bytes.get(at)).copied();
    section.kind == SectionKind::Text
        && match reloc.kind.formula() {
            Formula::Branch => true,
            // ff /2 call, ff /4 jmp
            Formula::Got => before(2) == Some(0xff) && matches!(before(1), Some(0x15 | 0x25)),
            // e8 call, e9 jmp, 0f 8x jcc
            _ => {
                reloc.kind == RelocKind::Pc32
                    && (matches!(before(1), Some(0xe8 | 0xe9))
                        || (before(2) == Some(0x0f) && matches!(before(1), Some(0x80..=0x8f))))
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: SymbolId = SymbolId(0);
    const CALLEE: SymbolId = SymbolId(1);

    /// A function that refers to another one in this way, and a place in the source.
    fn patch(code: &[u8], kind: RelocKind, line: u8) -> Patch {
        let mut patch = crate::container::tests::sample();
        patch.symbols.clear();
        let reloc = |offset, kind, symbol| Reloc { offset, kind, symbol: SymbolId(symbol), addend: -4 };
        let section = |kind, bytes: &[u8], relocs| Section {
            name: String::new(),
            kind,
            align: 16,
            size: bytes.len() as u64,
            bytes: bytes.to_vec(),
            relocs,
        };
        let mut location = [0; 24];
        location[LINE] = line;
        let to_location = reloc(code.len() as u64, RelocKind::Pc32, 2);
        let code = [code, &[0; 4]].concat();
        let relocs = vec![reloc(code.len() as u64 - 8, kind, 1), to_location];
        patch.sections = vec![
            section(SectionKind::Text, &code, relocs),
            section(SectionKind::Text, &[0xc3], vec![]),
            section(SectionKind::ReadOnly, &location, vec![reloc(0, RelocKind::Abs64, 3)]),
            section(SectionKind::ReadOnly, b"main.rs", vec![]),
        ];
        for at in 0..4 {
            let size = patch.sections[at].size;
            let place = Place::Section { section: SectionId(at as u32), offset: 0, size };
            patch.symbols.push(Symbol { name: format!("symbol {at}"), place });
        }
        patch
    }

    #[test]
    fn what_is_only_called_is_not_kept() {
        // lea rdi,[rip+...] takes the address; call, jmp and je do not.
        assert_eq!(patch(&[0x48, 0x8d, 0x3d, 0, 0, 0, 0], RelocKind::Pc32, 1).addressed(), [CALLEE].into());
        for code in [&[0xe8, 0, 0, 0, 0][..], &[0xe9, 0, 0, 0, 0], &[0x0f, 0x84, 0, 0, 0, 0]] {
            assert_eq!(patch(code, RelocKind::Pc32, 1).addressed(), [].into(), "{code:x?}");
        }
        assert_eq!(patch(&[0xff, 0x15, 0, 0, 0, 0], RelocKind::GotPcRel, 1).addressed(), [].into());
        assert_eq!(
            patch(&[0x48, 0x8b, 0x3d, 0, 0, 0, 0], RelocKind::GotPcRel, 1).addressed(),
            [CALLEE].into()
        );
    }

    #[test]
    fn lines_do_not_count_and_code_does() {
        let digest =
            |code: &[u8], line| patch(code, RelocKind::Pc32, line).code_digest(CALLER).expect("code");
        let call = [0x90, 0xe8, 0, 0, 0, 0];
        assert_eq!(digest(&call, 1), digest(&call, 2));
        assert_ne!(digest(&call, 1), digest(&[0xcc, 0xe8, 0, 0, 0, 0], 1));
        // What a relocation fills in is no code.
        assert_eq!(digest(&call, 1), digest(&[0x90, 0xe8, 7, 7, 7, 7], 1));
    }
}
