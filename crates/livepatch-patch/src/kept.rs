//! Code of a patch that the process may keep the address of.
//!
//! New functions are reached from the patch's own code, and, where that stores their address (in a vtable, as a function pointer), from
//! whatever the process keeps. A later patch that has such a function again has to lead the kept addresses to it.

use crate::ident::Digest;
use crate::patch::{Patch, Place, Reloc, Section, SectionId, SectionKind, Symbol, SymbolId};
use crate::reloc::Formula;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A function of a patch that the process may come to after the patch was taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The function.
    pub symbol: SymbolId,
    /// Some code or data of the patch takes its address. If not, only such functions lead to it.
    pub addressed: bool,
    /// Functions of the patch and of the image that it calls or jumps to.
    pub calls: BTreeSet<SymbolId>,
}

/// Of a text only a few bits: enough to tell apart what occurs in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tag(u32);

impl Tag {
    /// Of any text.
    pub fn of(text: &str) -> Self {
        let Digest([a, b, c, d, ..]) = Digest::of(text.as_bytes());
        Self(u32::from_le_bytes([a, b, c, d]))
    }

    /// Of a mangled name; what the optimiser appended does not count.
    pub fn of_symbol(name: &str) -> Self {
        Self::of(plain(name))
    }
}

impl Section {
    /// Whether a relocation takes the address of what it refers to as a whole, and is neither a call nor a reference into a function (a jump
    /// table).
    pub(crate) fn takes_entry(&self, reloc: &Reloc) -> bool {
        let in_code = self.kind == SectionKind::Text;
        // What is relative counts from the end of the field, unless something follows it in the instruction: not in those that take
        // addresses of functions.
        let (formula, whole) = (reloc.kind.formula(), -(reloc.kind.width() as i64));
        match formula {
            _ if self.kind == SectionKind::EhFrame => false,
            Formula::Absolute => reloc.addend == 0,
            Formula::Relative => {
                in_code && reloc.addend == whole && !reloc.kind.is_branch(&self.bytes, reloc.offset)
            }
            _ => false,
        }
    }
}

impl Patch {
    /// The functions of the patch whose address the process may keep, and those that they lead to.
    pub fn kept(&self) -> Vec<Kept> {
        let addressed = self.addressed();
        let mut found = BTreeMap::new();
        let mut left: Vec<SymbolId> = addressed.iter().copied().collect();
        while let Some(symbol) = left.pop() {
            if found.contains_key(&symbol) {
                continue;
            }
            let calls = self.called(symbol);
            left.extend(calls.iter().filter(|callee| self.is_code(**callee)));
            found.insert(symbol, Kept { symbol, addressed: addressed.contains(&symbol), calls });
        }
        found.into_values().collect()
    }

    /// Functions of the patch that one of them calls or jumps to.
    fn called(&self, symbol: SymbolId) -> BTreeSet<SymbolId> {
        let Some((_, section)) = self.section_of(symbol) else { return BTreeSet::new() };
        let branches =
            section.relocs.iter().filter(|reloc| reloc.kind.is_branch(&section.bytes, reloc.offset));
        branches
            .map(|reloc| reloc.symbol)
            .filter(|callee| *callee != symbol && self.is_code(*callee))
            .collect()
    }

    /// The functions of the patch of which some code or data takes the address.
    pub fn addressed(&self) -> BTreeSet<SymbolId> {
        self.taken().filter(|symbol| self.is_code(*symbol)).collect()
    }

    /// What of the image some code or data of the patch takes the address of: functions and variables.
    pub fn taken_of_image(&self) -> BTreeSet<SymbolId> {
        let of_image =
            |id: &SymbolId| matches!(self.symbol(*id), Some(Symbol { place: Place::Image { .. }, .. }));
        self.taken().filter(of_image).collect()
    }

    /// Whatever code or data of the patch refers to and does not call.
    fn taken(&self) -> impl Iterator<Item = SymbolId> {
        let sections = self.sections.iter().filter(|section| section.kind != SectionKind::EhFrame);
        sections.flat_map(|section| {
            let is_branch = |reloc: &&Reloc| {
                section.kind == SectionKind::Text && reloc.kind.is_branch(&section.bytes, reloc.offset)
            };
            // Relative ones in data are a function's own blocks in its jump tables.
            let is_address = |reloc: &&Reloc| {
                section.kind == SectionKind::Text || reloc.kind.formula() == Formula::Absolute
            };
            let addresses = section.relocs.iter().filter(is_address).filter(move |reloc| !is_branch(reloc));
            addresses.map(|reloc| reloc.symbol)
        })
    }

    /// What a function of the patch is, whatever its address, the lines in panic messages, and the code of functions that it names. Of
    /// variables that the patch brings it is the type that counts.
    pub fn code_digest(&self, symbol: SymbolId) -> Option<Digest> {
        let Place::Section { section, .. } = self.symbol(symbol)?.place else { return None };
        let mut text = String::new();
        self.spell(section, &mut vec![section], &mut text);
        Some(Digest::of(text.as_bytes()))
    }

    /// Whether a constant of the patch leads to a variable of the patch, directly or through other constants.
    pub fn leads_to_variable(&self, constant: SymbolId) -> bool {
        let (mut seen, mut work) = (BTreeSet::new(), vec![constant]);
        while let Some((section, of)) = work.pop().and_then(|id| self.section_of(id)) {
            match of.kind {
                SectionKind::ReadOnly if seen.insert(section) => {
                    let targets = of.relocs.iter().map(|reloc| reloc.symbol);
                    work.extend(targets.filter(|id| self.section_of(*id).is_some()));
                }
                SectionKind::ReadOnly | SectionKind::Text | SectionKind::EhFrame => {}
                SectionKind::Data | SectionKind::Bss | SectionKind::TlsData | SectionKind::TlsBss => {
                    return true;
                }
            }
        }
        false
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
        if section.name == LOCATION && bytes.len() > LINE {
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
                _ => {
                    // Variables of one name may be different ones.
                    let mut items = self.meta.new_items.iter();
                    let of_type =
                        items.find(|item| item.symbol == reloc.symbol).and_then(|item| item.type_digest);
                    out.push_str(&format!(" {} {of_type:?}", plain(&symbol.name)));
                }
            }
        }
    }
}

/// The name without what the optimiser appends to make a local symbol visible to other code units.
pub fn plain(name: &str) -> &str {
    name.split(".llvm.").next().unwrap_or(name)
}

/// Whether a variable of this path is named as call sites of the crate `tracing` are, by this version of it or an earlier one.
pub fn names_call_site(path: &str) -> bool {
    ["::__CALLSITE", "::CALLSITE"].iter().any(|name| path.ends_with(name))
}

/// Offset of line and column in a `core::panic::Location`, behind its file's address and length.
const LINE: usize = 16;

/// What the section of a `core::panic::Location` is called in a patch.
pub const LOCATION: &str = ".rodata.location";

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
        let place = Section {
            name: if name == FILE { LOCATION } else { "" }.to_owned(),
            ..section(
                SectionKind::ReadOnly,
                &location,
                vec![Reloc { addend: 0, ..reloc(0, RelocKind::Abs64, 3) }],
            )
        };
        patch.sections = vec![
            section(SectionKind::Text, &code, relocs),
            section(SectionKind::Text, &[0xc3], vec![]),
            place,
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
    fn a_jump_table_keeps_nothing() {
        let of = |kind| {
            let mut patch = patch(&[0xe8, 0, 0, 0, 0], RelocKind::Pc32, 1, FILE);
            let reloc = Reloc { offset: 0, kind, symbol: CALLEE, addend: 0 };
            let bytes = vec![0; 8];
            let table = Section {
                name: String::new(),
                kind: SectionKind::ReadOnly,
                align: 8,
                size: 8,
                bytes,
                relocs: vec![reloc],
            };
            patch.sections.push(table);
            patch.addressed()
        };
        assert_eq!(of(RelocKind::Pc32), [].into());
        assert_eq!(of(RelocKind::Abs64), [CALLEE].into());
    }

    #[test]
    fn what_kept_functions_lead_to_is_kept() {
        let kept = |code: &[u8]| -> Vec<_> {
            let mut patch = patch(&[0x48, 0x8d, 0x3d, 0, 0, 0, 0], RelocKind::Pc32, 1, FILE);
            // The address that it takes is that of a function that has this code and refers to itself and to the first one.
            patch.sections[1].bytes = code.to_vec();
            patch.sections[1].size = code.len() as u64;
            let reloc = |offset, symbol| Reloc { offset, kind: RelocKind::Plt32, symbol, addend: -4 };
            patch.sections[1].relocs = vec![reloc(1, CALLER), reloc(6, CALLEE)];
            patch.kept().into_iter().map(|kept| (kept.symbol, kept.addressed, kept.calls)).collect()
        };
        let calls = kept(&[0xe8, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0]);
        assert_eq!(calls, [(CALLER, false, [].into()), (CALLEE, true, [CALLER].into())]);
    }

    #[test]
    fn what_the_optimiser_appends_to_a_name_does_not_count() {
        assert_eq!(Tag::of_symbol("_ZN1aE.llvm.123"), Tag::of_symbol("_ZN1aE"));
        assert_ne!(Tag::of_symbol("_ZN1aE"), Tag::of_symbol("_ZN1bE"));
    }

    #[test]
    fn lines_do_not_count_and_code_does() {
        let digest =
            |code: &[u8], line| patch(code, RelocKind::Pc32, line, FILE).code_digest(CALLER).expect("code");
        let call = [0x90, 0xe8, 0, 0, 0, 0];
        assert_eq!(digest(&call, 1), digest(&call, 2));
        assert_ne!(digest(&call, 1), digest(&[0xcc, 0xe8, 0, 0, 0, 0], 1));
        // A number elsewhere is no line.
        let of_table = |n| patch(&call, RelocKind::Pc32, n, b"premium\0").code_digest(CALLER);
        assert_ne!(of_table(1), of_table(2));
        // What a relocation fills in is no code.
        assert_eq!(digest(&call, 1), digest(&[0x90, 0xe8, 7, 7, 7, 7], 1));
    }
}
