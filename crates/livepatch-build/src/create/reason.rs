//! Which function a changed instruction came from.

use crate::guard;
use livepatch_patch::LinkAddr;
use object::{Object, ObjectSection};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

type Reader<'a> = gimli::EndianSlice<'a, gimli::LittleEndian>;

/// Debug sections of an image, from which [`Lines`] borrows.
pub(super) struct DebugSections {
    data: HashMap<&'static str, Vec<u8>>,
}

/// The inline stacks of an image.
pub(super) struct Lines<'a> {
    context: Option<addr2line::Context<Reader<'a>>>,
}

impl DebugSections {
    /// Reads them; an unreadable image has none, and then every reason is `changed`.
    pub(super) fn read(image: &Path) -> Self {
        let mut data = HashMap::new();
        if let Ok(bytes) = std::fs::read(image)
            && let Ok(file) = object::File::parse(bytes.as_slice())
        {
            for id in [
                gimli::SectionId::DebugAbbrev,
                gimli::SectionId::DebugAddr,
                gimli::SectionId::DebugAranges,
                gimli::SectionId::DebugInfo,
                gimli::SectionId::DebugLine,
                gimli::SectionId::DebugLineStr,
                gimli::SectionId::DebugRanges,
                gimli::SectionId::DebugRngLists,
                gimli::SectionId::DebugStr,
                gimli::SectionId::DebugStrOffsets,
            ] {
                let section = file.section_by_name(id.name());
                let contents = section.and_then(|section| section.uncompressed_data().ok()).map(Cow::into_owned);
                data.insert(id.name(), contents.unwrap_or_default());
            }
        }
        Self { data }
    }

    /// Prepares for lookups.
    pub(super) fn lines(&self) -> Lines<'_> {
        let section = |id: gimli::SectionId| -> Result<_, gimli::Error> {
            let bytes = self.data.get(id.name()).map_or(&[][..], Vec::as_slice);
            Ok(gimli::EndianSlice::new(bytes, gimli::LittleEndian))
        };
        let dwarf = gimli::Dwarf::load(section).ok();
        Lines { context: dwarf.and_then(|dwarf| addr2line::Context::from_dwarf(dwarf).ok()) }
    }
}

impl Lines<'_> {
    /// Path of the innermost function, inlined or not, that the instruction at an address belongs to.
    pub(super) fn innermost(&self, addr: LinkAddr) -> Option<String> {
        let context = self.context.as_ref()?;
        let mut frames = context.find_frames(addr.0).skip_all_loads().ok()?;
        let frame = frames.next().ok()??;
        let name = frame.function?;
        Some(guard::demangle(&name.raw_name().ok()?))
    }
}
