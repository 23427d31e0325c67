//! Unwind tables of the patch: the entries of the functions it carries, as one `.eh_frame` section.

use super::{EmitError, Emitter, Item, Key};
use crate::diff::program::At;
use crate::objects::Kind;
use livepatch_patch::{Reloc, Section, SectionKind, SymbolId};

/// The table under construction.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    relocs: Vec<Reloc>,
    common: Vec<Common>,
}

/// An entry that several functions share.
struct Common {
    body: Vec<u8>,
    /// What its relocations refer to.
    against: Vec<(SymbolId, i64)>,
    offset: usize,
}

/// Padding to eight bytes: `DW_CFA_nop`.
const NOP: u8 = 0;

impl Table {
    /// Appends an entry: length, id word, body padded to eight bytes; relocations are relative to the body.
    fn entry(&mut self, id: impl FnOnce(usize) -> u32, body: &[u8], relocs: Vec<Reloc>) -> usize {
        let start = self.bytes.len();
        let length = (4 + body.len() + 4).next_multiple_of(8) - 4;
        self.bytes.extend((length as u32).to_le_bytes());
        self.bytes.extend(id(start + 4).to_le_bytes());
        self.bytes.extend(body);
        self.bytes.resize(start + 4 + length, NOP);
        self.relocs.extend(relocs.into_iter().map(|r| Reloc { offset: r.offset + start as u64 + 8, ..r }));
        start
    }
}

impl Emitter<'_, '_> {
    /// Builds the table for all code that the patch carries; what the entries need is carried too.
    pub(super) fn frames(&mut self) -> Result<(), EmitError> {
        let mut table = Table::default();
        let mut done = 0;
        // Tables for exceptions may refer to code that is not in yet, whose entries then come in another round.
        loop {
            let code = self.carried_code();
            if done == code.len() {
                break;
            }
            for (at, symbol) in &code[done..] {
                self.function(&mut table, *at, *symbol)?;
            }
            done = code.len();
            while let Some((item, section)) = self.work.pop() {
                self.fill(item, section)?;
            }
        }
        if !table.bytes.is_empty() {
            table.bytes.extend([0; 4]);
            let size = table.bytes.len() as u64;
            let (name, bytes, relocs) = (".eh_frame".to_owned(), table.bytes, table.relocs);
            self.sections.push(Section { name, kind: SectionKind::EhFrame, align: 8, bytes, size, relocs });
        }
        Ok(())
    }

    fn carried_code(&self) -> Vec<(At, SymbolId)> {
        let mut code: Vec<_> = self
            .numbers
            .iter()
            .filter_map(|(key, id)| match key {
                Key::Own(Item::Section(at)) if self.diff.new.section(*at).kind == Kind::Text => {
                    Some((*at, *id))
                }
                _ => None,
            })
            .collect();
        code.sort_by_key(|(_, id)| *id);
        code
    }

    fn function(&mut self, table: &mut Table, at: At, symbol: SymbolId) -> Result<(), EmitError> {
        let frames = self.diff.new.section(at).frames.clone();
        for frame in frames {
            let mut cie_relocs = Vec::new();
            for reloc in &frame.cie.relocs {
                cie_relocs.push(self.reloc(at, reloc, false)?);
            }
            let against: Vec<_> = cie_relocs.iter().map(|r| (r.symbol, r.addend)).collect();
            let known = table.common.iter().find(|c| c.body == frame.cie.body && c.against == against);
            let cie = match known {
                Some(common) => common.offset,
                None => {
                    let offset = table.entry(|_| 0, frame.cie.body, cie_relocs);
                    table.common.push(Common { body: frame.cie.body.to_vec(), against, offset });
                    offset
                }
            };
            let mut relocs = Vec::new();
            for (i, reloc) in frame.relocs.iter().enumerate() {
                let mut out = self.reloc(at, reloc, false)?;
                if i == 0 {
                    // The start of the code is the patch's own, whatever else references to it are bound to.
                    (out.symbol, out.addend) = (symbol, frame.start as i64);
                }
                relocs.push(out);
            }
            table.entry(|id_at| (id_at - cie) as u32, frame.body, relocs);
        }
        Ok(())
    }
}
