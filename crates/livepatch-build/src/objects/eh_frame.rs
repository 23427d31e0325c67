//! Unwind entries of an object file, attached to the code they describe.
//!
//! Source: LSB 5.0 core, chapter 10.6 (`.eh_frame`); DWARF 5, section 6.4.1.

use super::{Def, Reloc, Section, Symbol};

/// A common information entry.
#[derive(Clone, Debug)]
pub struct Cie<'a> {
    /// Everything behind the id word.
    pub body: &'a [u8],
    /// Relocations (the personality routine), offsets relative to `body`.
    pub relocs: Vec<Reloc>,
}

/// A frame description entry.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    /// The entry it refers to.
    pub cie: Cie<'a>,
    /// Everything behind the CIE pointer: start, length, augmentation data, instructions.
    pub body: &'a [u8],
    /// Relocations, offsets relative to `body`. The first is the start of the code.
    pub relocs: Vec<Reloc>,
    /// Offset in the section of the code it describes.
    pub start: u64,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes")))
}

fn relocs_in(relocs: &[Reloc], from: usize, to: usize) -> Vec<Reloc> {
    let range =
        relocs.partition_point(|r| r.offset < from as u64)..relocs.partition_point(|r| r.offset < to as u64);
    relocs[range].iter().map(|r| Reloc { offset: r.offset - from as u64, ..*r }).collect()
}

/// Splits one `.eh_frame` section and hands each entry to the section whose code it describes.
pub(super) fn attach<'a>(
    bytes: &'a [u8],
    relocs: &[Reloc],
    symbols: &[Symbol<'a>],
    sections: &mut [Section<'a>],
) -> Result<(), String> {
    let cut = || "unwind table cut short".to_owned();
    let mut at = 0;
    while at < bytes.len() {
        let length = word(bytes, at).ok_or_else(cut)? as usize;
        if length == 0 {
            break;
        }
        if length == 0xffff_ffff {
            return Err("64-bit unwind entries".into());
        }
        let (id_at, end) = (at + 4, at + 4 + length);
        let id = word(bytes, id_at).ok_or_else(cut)? as usize;
        if end > bytes.len() {
            return Err(cut());
        }
        if id != 0 {
            let cie_at = id_at.checked_sub(id).ok_or_else(cut)?;
            let cie_end = cie_at + 4 + word(bytes, cie_at).ok_or_else(cut)? as usize;
            let cie = Cie {
                body: bytes.get(cie_at + 8..cie_end).ok_or_else(cut)?,
                relocs: relocs_in(relocs, cie_at + 8, cie_end),
            };
            let body = &bytes[id_at + 4..end];
            let relocs = relocs_in(relocs, id_at + 4, end);
            let start = relocs.first().filter(|r| r.offset == 0).ok_or("an unwind entry without a start")?;
            let symbol = symbols.get(start.symbol.0 as usize).ok_or_else(cut)?;
            if let Def::Section(section, offset) = symbol.def {
                let start = offset.wrapping_add_signed(start.addend);
                sections[section.0 as usize].frames.push(Frame { cie, body, relocs, start });
            }
        }
        at = end;
    }
    Ok(())
}
