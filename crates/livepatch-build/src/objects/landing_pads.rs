//! Landing pads of a function: where control goes on if a call unwinds.
//!
//! Source: Itanium C++ ABI, Exception Handling Tables, with the encodings that LLVM writes.

use super::Section;
use gimli::{EndianSlice, LittleEndian, Reader};
use std::ops::Range;

/// The calls of one function that have a landing pad.
#[derive(Debug)]
pub struct LandingPads<'a> {
    sites: Vec<Site>,
    /// What the actions are, zeros at the end left out: the same bytes mean the same, because no types are referred to.
    pub actions: &'a [u8],
}

#[derive(Debug)]
struct Site {
    code: Range<u64>,
    pad: u64,
    action: u64,
}

impl<'a> LandingPads<'a> {
    /// Reads a function's table, a section of its own. `None` if it has a form that is not known, or refers to types.
    pub fn of(table: &Section<'a>) -> Option<Self> {
        const OMITTED: u8 = 0xff;
        const ULEB128: u8 = 0x01;
        if !table.relocs.is_empty() {
            return None;
        }
        let mut reader = EndianSlice::new(table.bytes, LittleEndian);
        if reader.read_u8().ok()? != OMITTED {
            return None;
        }
        if reader.read_u8().ok()? != OMITTED {
            reader.read_uleb128().ok()?;
        }
        if reader.read_u8().ok()? != ULEB128 {
            return None;
        }
        let length = reader.read_uleb128().ok()?;
        let mut calls = reader.split(usize::try_from(length).ok()?).ok()?;
        let mut sites = Vec::new();
        while !calls.is_empty() {
            let mut next = || calls.read_uleb128().ok();
            let (start, length, pad, action) = (next()?, next()?, next()?, next()?);
            sites.push(Site { code: start..start.checked_add(length)?, pad, action });
        }
        let end = reader.slice().iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Some(Self { sites, actions: &reader.slice()[..end] })
    }

    /// Where a call goes on if it unwinds, by the offset of its instruction (0: nothing is to be done here), and with which action. `None` if
    /// no entry covers it: unwinding through it ends the program.
    pub fn behind(&self, call: u64) -> Option<(u64, u64)> {
        let site = self.sites.iter().find(|site| site.code.contains(&call))?;
        Some((site.pad, site.action))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Reloc, SymIx};
    use super::*;

    fn table(bytes: &[u8]) -> Section<'_> {
        Section::of_bytes(Kind::ReadOnly, bytes)
    }

    #[test]
    fn calls_and_their_pads() {
        // No base, types with an offset, calls in LEB128: 5..10 to 40 with action 1, 10..12 to nowhere; the action is a filter.
        let bytes = [0xff, 0x9b, 0x10, 0x01, 8, 5, 5, 40, 1, 10, 2, 0, 0, 0x7f, 0, 0, 0];
        let pads = LandingPads::of(&table(&bytes)).unwrap();
        let behind: Vec<_> = [4, 5, 9, 10, 12].into_iter().map(|call| pads.behind(call)).collect();
        assert_eq!(behind, [None, Some((40, 1)), Some((40, 1)), Some((0, 0)), None]);
        assert_eq!(pads.actions, [0x7f]);
        let cut = |to: usize| LandingPads::of(&table(&bytes[..to])).is_none();
        assert!((0..13).all(cut));
        let mut with_types = table(&bytes);
        with_types.relocs.push(Reloc { offset: 13, kind: 1, symbol: SymIx(0), addend: 0 });
        assert!(LandingPads::of(&with_types).is_none());
    }
}
