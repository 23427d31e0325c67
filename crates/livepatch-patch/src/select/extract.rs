//! A smaller patch out of a larger one.

use super::reduce::Kept;
use crate::kept::Tag;
use crate::patch::{Origin, Patch, Place, Reloc, Section, SectionId, SectionKind, Symbol, SymbolId};
use std::collections::{BTreeMap, BTreeSet};

/// The relocations of a section, and, for code, those of its entries in the unwind tables, which lead to its handlers.
pub(super) fn relocs(patch: &Patch, id: SectionId) -> Vec<Reloc> {
    let Some(section) = patch.sections.get(id.0 as usize) else { return Vec::new() };
    let mut all = section.relocs.clone();
    if section.kind == SectionKind::Text {
        for table in patch.sections.iter().filter(|section| section.kind == SectionKind::EhFrame) {
            let entries = Entries::of(table).unwrap_or_default();
            for entry in entries.of_code(patch, id) {
                all.extend(entries.relocs(table, entry));
            }
        }
    }
    all
}

/// The patch with only these of its redirects, and with what they need.
///
/// # Errors
/// The unwind tables of the patch cannot be taken apart.
pub(super) fn extract(patch: &Patch, kept: &Kept) -> Result<Patch, &'static str> {
    let place = |symbol: SymbolId| patch.symbols[symbol.0 as usize].place;
    let tables = patch.sections.iter().find(|section| section.kind == SectionKind::EhFrame);
    let entries = tables.map(Entries::of).transpose()?;
    let redirects: Vec<_> = kept.iter().map(|at| &patch.meta.redirects[*at]).collect();
    let mut needed = BTreeSet::new();
    let mut work: Vec<SymbolId> = redirects.iter().map(|redirect| redirect.symbol).collect();
    while let Some(symbol) = work.pop() {
        if let Place::Section { section, .. } = place(symbol)
            && needed.insert(section)
        {
            work.extend(relocs(patch, section).iter().map(|reloc| reloc.symbol));
        }
    }
    let mut sections: Vec<Section> = needed.iter().map(|id| patch.sections[id.0 as usize].clone()).collect();
    if let (Some(table), Some(entries)) = (tables, &entries) {
        sections.extend(entries.shortened(patch, table, &needed));
    }
    let new_sections: BTreeMap<SectionId, SectionId> =
        needed.iter().enumerate().map(|(new, old)| (*old, SectionId(new as u32))).collect();
    let used: BTreeSet<SymbolId> = sections
        .iter()
        .flat_map(|section| &section.relocs)
        .map(|reloc| reloc.symbol)
        .chain(redirects.iter().map(|redirect| redirect.symbol))
        .collect();
    let new_symbols: BTreeMap<SymbolId, SymbolId> =
        used.iter().enumerate().map(|(new, old)| (*old, SymbolId(new as u32))).collect();
    for reloc in sections.iter_mut().flat_map(|section| &mut section.relocs) {
        reloc.symbol = new_symbols[&reloc.symbol];
    }
    let symbols = used.iter().map(|id| moved(&patch.symbols[id.0 as usize], &new_sections)).collect();
    let mut meta = patch.meta.clone();
    let positions: BTreeMap<u32, u32> =
        kept.iter().enumerate().map(|(new, old)| (*old as u32, new as u32)).collect();
    let moved_to = |functions: &mut Vec<u32>| {
        *functions = functions.iter().filter_map(|at| positions.get(at).copied()).collect();
        !functions.is_empty()
    };
    // What is not chosen may be there for the chosen ones alone. Else it is as it was: what earlier patches took of it leads there.
    let left = patch.meta.redirects.iter().enumerate().filter(|(at, _)| !kept.contains(at));
    let is_there =
        |symbol| matches!(place(symbol), Place::Section { section, .. } if needed.contains(&section));
    let left = left.filter(|(_, redirect)| is_there(redirect.symbol));
    meta.altered
        .extend(left.map(|(_, redirect)| Tag::of_symbol(&patch.symbols[redirect.symbol.0 as usize].name)));
    meta.redirects = redirects.into_iter().cloned().collect();
    for redirect in &mut meta.redirects {
        redirect.symbol = new_symbols[&redirect.symbol];
        if let Some(Origin { tied, .. }) = &mut redirect.origin {
            moved_to(tied);
        }
    }
    meta.notes.retain_mut(|note| note.functions.is_empty() || moved_to(&mut note.functions));
    meta.orphans.retain_mut(|orphan| moved_to(&mut orphan.from));
    meta.new_items.retain_mut(|item| renumber(&mut item.symbol, &new_symbols));
    meta.stands.retain_mut(|of| renumber(&mut of.symbol, &new_symbols));
    meta.constants.retain_mut(|constant| renumber(&mut constant.symbol, &new_symbols));
    Ok(Patch { meta, sections, symbols })
}

fn renumber(symbol: &mut SymbolId, new: &BTreeMap<SymbolId, SymbolId>) -> bool {
    new.get(symbol).map(|new| *symbol = *new).is_some()
}

fn moved(symbol: &Symbol, sections: &BTreeMap<SectionId, SectionId>) -> Symbol {
    let place = match symbol.place {
        Place::Section { section, offset, size } => {
            Place::Section { section: sections.get(&section).copied().unwrap_or(section), offset, size }
        }
        other => other,
    };
    Symbol { name: symbol.name.clone(), place }
}

/// The entries of an `.eh_frame` section (DWARF 5, section 6.4.1, and LSB Core, section 10.6.1).
#[derive(Default)]
struct Entries(Vec<Entry>);

#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    end: usize,
    /// Start of the common entry that it refers to; `None` for a common entry.
    common: Option<usize>,
}

/// Length and identity in front of an entry's body.
const HEAD: usize = 8;

impl Entries {
    fn of(table: &Section) -> Result<Self, &'static str> {
        let word = |at: usize| {
            let bytes = table.bytes.get(at..at + 4).ok_or("unwind tables that end in an entry")?;
            Ok::<_, &str>(bytes.iter().rev().fold(0usize, |value, byte| value << 8 | usize::from(*byte)))
        };
        let mut entries = Vec::new();
        let mut start = 0;
        while start < table.bytes.len() {
            let length = word(start)?;
            if length == 0 {
                break;
            }
            let end = start + 4 + length;
            if !(4..0xffff_fff0).contains(&length) || end > table.bytes.len() {
                return Err("unwind tables with an entry of a wrong length");
            }
            let common = match word(start + 4)? {
                0 => None,
                back => Some(
                    (start + 4)
                        .checked_sub(back)
                        .ok_or("an unwind entry that refers outside of its table")?,
                ),
            };
            entries.push(Entry { start, end, common });
            start = end;
        }
        let is_common = |at: usize| entries.iter().any(|entry| entry.start == at && entry.common.is_none());
        if entries.iter().filter_map(|entry| entry.common).any(|at| !is_common(at)) {
            return Err("an unwind entry that refers to none in common");
        }
        Ok(Self(entries))
    }

    /// What the relocation of an entry's first address refers to.
    fn code(patch: &Patch, table: &Section, entry: &Entry) -> Option<SectionId> {
        let at = (entry.start + HEAD) as u64;
        let reloc = table.relocs.iter().find(|reloc| reloc.offset == at)?;
        match patch.symbols[reloc.symbol.0 as usize].place {
            Place::Section { section, .. } => Some(section),
            _ => None,
        }
    }

    fn of_code<'e>(&'e self, patch: &'e Patch, id: SectionId) -> impl Iterator<Item = &'e Entry> {
        let table = patch.sections.iter().find(|section| section.kind == SectionKind::EhFrame);
        self.0.iter().filter(move |entry| {
            entry.common.is_some() && table.and_then(|table| Self::code(patch, table, entry)) == Some(id)
        })
    }

    /// The relocations of an entry and of what it has in common.
    fn relocs(&self, table: &Section, entry: &Entry) -> Vec<Reloc> {
        let common = self.0.iter().find(|other| Some(other.start) == entry.common);
        let ranges: Vec<_> =
            common.into_iter().chain([entry]).map(|e| e.start as u64..e.end as u64).collect();
        let inside = |reloc: &&Reloc| ranges.iter().any(|range| range.contains(&reloc.offset));
        table.relocs.iter().filter(inside).copied().collect()
    }

    /// The table with only the entries of this code.
    fn shortened(&self, patch: &Patch, table: &Section, code: &BTreeSet<SectionId>) -> Option<Section> {
        let is_kept = |entry: &&Entry| {
            entry.common.is_some() && Self::code(patch, table, entry).is_some_and(|id| code.contains(&id))
        };
        let kept: Vec<Entry> = self.0.iter().filter(is_kept).copied().collect();
        let common: BTreeSet<usize> = kept.iter().filter_map(|entry| entry.common).collect();
        if kept.is_empty() {
            return None;
        }
        let mut out = Section { bytes: Vec::new(), relocs: Vec::new(), ..table.clone() };
        let mut starts = BTreeMap::new();
        for entry in &self.0 {
            let is_in = common.contains(&entry.start) || kept.iter().any(|kept| kept.start == entry.start);
            if !is_in {
                continue;
            }
            let start = out.bytes.len();
            starts.insert(entry.start, start);
            out.bytes.extend(&table.bytes[entry.start..entry.end]);
            if let Some(common) = entry.common {
                // Common entries come before those that refer to them, as the format has it.
                let back = (start + 4 - starts[&common]) as u32;
                out.bytes[start + 4..start + HEAD].copy_from_slice(&back.to_le_bytes());
            }
            let range = entry.start as u64..entry.end as u64;
            let relocs = table.relocs.iter().filter(|reloc| range.contains(&reloc.offset));
            out.relocs.extend(
                relocs.map(|reloc| Reloc {
                    offset: reloc.offset - entry.start as u64 + start as u64,
                    ..*reloc
                }),
            );
        }
        out.bytes.extend([0; 4]);
        out.size = out.bytes.len() as u64;
        Some(out)
    }
}
