//! Code of a patch that the process may keep the address of.
//!
//! New functions are reached from the patch's own code, and, where that stores their address (in a vtable, as a function pointer), from
//! whatever the process keeps. A later patch that has such a function again has to lead the kept addresses to it.

use crate::ident::Digest;
use crate::patch::{Patch, Place, Reloc, Section, SectionId, SectionKind, Symbol, SymbolId};
use std::collections::BTreeSet;

impl Patch {
    /// The functions of the patch of which some code or data takes the address.
    pub fn addressed(&self) -> BTreeSet<SymbolId> {
        let mut found = BTreeSet::new();
        for section in self.sections.iter().filter(|section| section.kind != SectionKind::EhFrame) {
            let is_branch = |reloc: &&Reloc| {
                section.kind == SectionKind::Text && reloc.kind.is_branch(&section.bytes, reloc.offset)
            };
            let addresses = section.relocs.iter().filter(|reloc| !is_branch(reloc));
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

    /// Whether it may be a `core::panic::Location`: the address and the length of a Rust file's name, and two numbers.
    fn is_location(&self, section: &Section) -> bool {
        let [reloc] = section.relocs.as_slice() else { return false };
        section.size == 24
            && reloc.offset == 0
            && self.file_name(section, reloc).is_some_and(|name| name.ends_with(b".rs"))
    }

    /// What the first two words of a section, address and length, lead to.
    fn file_name(&self, section: &Section, address: &Reloc) -> Option<&[u8]> {
        let Place::Section { offset, .. } = self.symbol(address.symbol)?.place else { return None };
        let (_, names) = self.section_of(address.symbol)?;
        let length = u64::from_le_bytes(section.bytes.get(8..16)?.try_into().ok()?);
        let start = offset.checked_add_signed(address.addend)?;
        names.bytes.get(usize::try_from(start).ok()?..)?.get(..usize::try_from(length).ok()?)
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
        if self.is_location(section) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reloc::RelocKind;

    const CALLER: SymbolId = SymbolId(0);
    const CALLEE: SymbolId = SymbolId(1);
    const FILE: &[u8] = b"main.rs\0";

    /// A function that refers to another one in this way, and a place in the source.
    fn patch(code: &[u8], kind: RelocKind, line: u8, name: &[u8]) -> Patch {
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
        // The name's terminating zero is not counted.
        location[8] = 7;
        location[LINE] = line;
        let to_location = reloc(code.len() as u64, RelocKind::Pc32, 2);
        let code = [code, &[0; 4]].concat();
        let relocs = vec![reloc(code.len() as u64 - 8, kind, 1), to_location];
        patch.sections = vec![
            section(SectionKind::Text, &code, relocs),
            section(SectionKind::Text, &[0xc3], vec![]),
            section(
                SectionKind::ReadOnly,
                &location,
                vec![Reloc { addend: 0, ..reloc(0, RelocKind::Abs64, 3) }],
            ),
            section(SectionKind::ReadOnly, name, vec![]),
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
        assert_eq!(
            patch(&[0x48, 0x8d, 0x3d, 0, 0, 0, 0], RelocKind::Pc32, 1, FILE).addressed(),
            [CALLEE].into()
        );
        for code in [&[0xe8, 0, 0, 0, 0][..], &[0xe9, 0, 0, 0, 0], &[0x0f, 0x84, 0, 0, 0, 0]] {
            assert_eq!(patch(code, RelocKind::Pc32, 1, FILE).addressed(), [].into(), "{code:x?}");
        }
        assert_eq!(patch(&[0xff, 0x15, 0, 0, 0, 0], RelocKind::GotPcRel, 1, FILE).addressed(), [].into());
        assert_eq!(
            patch(&[0x48, 0x8b, 0x3d, 0, 0, 0, 0], RelocKind::GotPcRel, 1, FILE).addressed(),
            [CALLEE].into()
        );
    }

    #[test]
    fn lines_do_not_count_and_code_does() {
        let digest =
            |code: &[u8], line| patch(code, RelocKind::Pc32, line, FILE).code_digest(CALLER).expect("code");
        let call = [0x90, 0xe8, 0, 0, 0, 0];
        assert_eq!(digest(&call, 1), digest(&call, 2));
        assert_ne!(digest(&call, 1), digest(&[0xcc, 0xe8, 0, 0, 0, 0], 1));
        // A number behind another text is no line.
        let of_table = |n| patch(&call, RelocKind::Pc32, n, b"premium\0").code_digest(CALLER);
        assert_ne!(of_table(1), of_table(2));
        // What a relocation fills in is no code.
        assert_eq!(digest(&call, 1), digest(&[0x90, 0xe8, 7, 7, 7, 7], 1));
    }
}
