//! What must hold in every patch, whoever wrote it. The linker and the loader rely on it.

use crate::patch::{NewItemKind, Patch, Place, Section, SectionId, SectionKind, Symbol, SymbolId};

/// A rule that a patch breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// See the text.
    #[error("section {section}: {what}")]
    Section {
        /// Its name.
        section: String,
        /// The rule.
        what: &'static str,
    },
    /// See the text.
    #[error("symbol {symbol}: {what}")]
    Symbol {
        /// Its name.
        symbol: String,
        /// The rule.
        what: &'static str,
    },
    /// See the text.
    #[error("function {path}: {what}")]
    Redirect {
        /// Its path.
        path: String,
        /// The rule.
        what: &'static str,
    },
    /// See the text.
    #[error("library {library:?}: {what}")]
    Library {
        /// Its name.
        library: String,
        /// The rule.
        what: &'static str,
    },
    /// A note is about a function that is not there.
    #[error("a note about a function that is not in the patch")]
    Note,
    /// Too many of something.
    #[error("more than {0}")]
    TooMany(&'static str),
}

const MAX_ITEMS: usize = 1 << 20;
const MAX_SIZE: u64 = 1 << 30;
const MAX_LIBRARIES: usize = 64;
/// The longest name of a file (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// Length of the jump that redirects a function.
const JUMP: u64 = 5;

pub(super) fn check(patch: &Patch) -> Result<(), Invalid> {
    if patch.sections.len() > MAX_ITEMS || patch.symbols.len() > MAX_ITEMS {
        return Err(Invalid::TooMany("1,048,576 sections or symbols"));
    }
    if patch.sections.iter().filter(|s| s.kind == SectionKind::EhFrame).count() > 1 {
        return Err(Invalid::TooMany("one section of unwind tables"));
    }
    for section in &patch.sections {
        check_section(patch, section)
            .map_err(|what| Invalid::Section { section: section.name.clone(), what })?;
    }
    for symbol in &patch.symbols {
        check_symbol(patch, symbol).map_err(|what| Invalid::Symbol { symbol: symbol.name.clone(), what })?;
    }
    check_redirects(patch)?;
    check_orphans(patch)?;
    check_libraries(&patch.meta.libraries)?;
    for item in &patch.meta.new_items {
        let fits = defined_in(patch, item.symbol).is_some_and(|kind| match item.kind {
            NewItemKind::Function => kind == SectionKind::Text,
            NewItemKind::Static => matches!(kind, SectionKind::Data | SectionKind::Bss),
            NewItemKind::ThreadLocal => matches!(kind, SectionKind::TlsData | SectionKind::TlsBss),
        });
        if !fits {
            return Err(Invalid::Symbol {
                symbol: item.path.clone(),
                what: "is listed as new but defined elsewhere",
            });
        }
    }
    for constant in &patch.meta.constants {
        if defined_in(patch, constant.symbol) != Some(SectionKind::ReadOnly) {
            let what = "is listed as a constant but defined elsewhere";
            return Err(Invalid::Symbol { symbol: constant.path.clone(), what });
        }
    }
    let about = patch.meta.notes.iter().flat_map(|note| &note.functions);
    if about.max().is_some_and(|last| *last as usize >= patch.meta.redirects.len()) {
        return Err(Invalid::Note);
    }
    Ok(())
}

fn check_section(patch: &Patch, section: &Section) -> Result<(), &'static str> {
    if section.name.contains('\0') {
        return Err("name with a NUL byte");
    }
    if !section.align.is_power_of_two() || section.align > 4096 {
        return Err("alignment is not a power of two up to 4096");
    }
    if section.size > MAX_SIZE {
        return Err("larger than 1 GiB");
    }
    let stored = if section.kind.is_zero_filled() { 0 } else { section.size };
    if stored != section.bytes.len() as u64 {
        return Err("size and contents differ");
    }
    if section.kind == SectionKind::EhFrame && !section.bytes.ends_with(&[0; 4]) {
        return Err("unwind tables without an end marker");
    }
    if section.kind.is_zero_filled() && !section.relocs.is_empty() {
        return Err("relocations in a zero-filled section");
    }
    let mut end = 0;
    for reloc in &section.relocs {
        if reloc.offset < end {
            return Err("relocations overlap or are not in order");
        }
        end = reloc.offset.checked_add(reloc.kind.width() as u64).ok_or("relocation outside the section")?;
        if end > section.size {
            return Err("relocation outside the section");
        }
        if reloc.symbol.0 as usize >= patch.symbols.len() {
            return Err("relocation against a symbol that does not exist");
        }
    }
    Ok(())
}

fn check_symbol(patch: &Patch, symbol: &Symbol) -> Result<(), &'static str> {
    if symbol.name.contains('\0') || symbol.name.is_empty() {
        return Err("empty name or one with a NUL byte");
    }
    match symbol.place {
        Place::Section { section, offset, size } => {
            let section =
                patch.sections.get(section.0 as usize).ok_or("lies in a section that does not exist")?;
            let end = offset.checked_add(size).ok_or("lies outside its section")?;
            if end > section.size { Err("lies outside its section") } else { Ok(()) }
        }
        Place::Import { got: Some(slot), .. } if slot.0 == 0 || slot.0 % 8 != 0 => {
            Err("GOT slot is not aligned")
        }
        _ => Ok(()),
    }
}

fn defined_in(patch: &Patch, id: SymbolId) -> Option<SectionKind> {
    match patch.symbols.get(id.0 as usize)?.place {
        Place::Section { section: SectionId(section), .. } => {
            Some(patch.sections.get(section as usize)?.kind)
        }
        _ => None,
    }
}

/// A library is what the loader finds under its name, not a file that a patch chooses.
fn check_libraries(libraries: &[String]) -> Result<(), Invalid> {
    if libraries.len() > MAX_LIBRARIES {
        return Err(Invalid::TooMany("64 libraries"));
    }
    let is_plain =
        |name: &String| !name.is_empty() && name.len() <= MAX_NAME && !name.contains(['/', '\0', '$']);
    match libraries.iter().find(|name| !is_plain(name)) {
        None => Ok(()),
        Some(name) => Err(Invalid::Library { library: name.clone(), what: "not a plain name" }),
    }
}

fn check_orphans(patch: &Patch) -> Result<(), Invalid> {
    for orphan in &patch.meta.orphans {
        let fail = |what| Err(Invalid::Redirect { path: orphan.path.clone(), what });
        if orphan.from.iter().max().is_none_or(|last| *last as usize >= patch.meta.redirects.len()) {
            return fail("reached from a function that is not in the patch");
        }
        if orphan.old_size == 0 || orphan.old_size > MAX_SIZE {
            return fail("empty or larger than 1 GiB");
        }
        if orphan.old.checked_add(orphan.old_size).is_none() {
            return fail("ends beyond the address space");
        }
    }
    Ok(())
}

fn check_redirects(patch: &Patch) -> Result<(), Invalid> {
    let mut ranges = Vec::with_capacity(patch.meta.redirects.len());
    for redirect in &patch.meta.redirects {
        let fail = |what| Err(Invalid::Redirect { path: redirect.path.clone(), what });
        if defined_in(patch, redirect.symbol) != Some(SectionKind::Text) {
            return fail("its new code is not in a code section of the patch");
        }
        if redirect.room < JUMP || redirect.old_size == 0 {
            return fail("no room for a jump");
        }
        let tied = redirect.origin.iter().flat_map(|origin| &origin.tied);
        if tied.max().is_some_and(|last| *last as usize >= patch.meta.redirects.len()) {
            return fail("tied to a function that is not in the patch");
        }
        let span = redirect.room.max(redirect.old_size);
        if span > MAX_SIZE {
            return fail("larger than 1 GiB");
        }
        let Some(end) = redirect.old.checked_add(JUMP.max(redirect.old_size)) else {
            return fail("ends beyond the address space");
        };
        ranges.push((redirect.old, end, &redirect.path));
    }
    ranges.sort();
    for pair in ranges.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(Invalid::Redirect {
                path: pair[1].2.clone(),
                what: "overlaps another replaced function",
            });
        }
    }
    Ok(())
}
