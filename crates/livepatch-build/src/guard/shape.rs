//! What a type holds by value, and where.

use super::dwarf::DieId;
use super::types::{Types, number};
use gimli::constants as c;

/// Elements of an array that are looked at.
const MOST: u64 = 1024;

impl Types<'_, '_> {
    /// The size of a type in bytes, if it has one.
    pub(super) fn size(&self, id: DieId) -> gimli::Result<Option<u64>> {
        Ok(number(&self.debug.entry(id)?, c::DW_AT_byte_size))
    }

    /// What a type holds by value, each with its offset: of a type with variants what any of them holds.
    pub(super) fn parts(&self, id: DieId) -> gimli::Result<Vec<(DieId, u64)>> {
        if self.debug.entry(id)?.tag == c::DW_TAG_array_type {
            return self.elements(id);
        }
        let mut parts = Vec::new();
        let mut inside = vec![id];
        while let Some(id) = inside.pop() {
            for (child, tag) in self.debug.children(id)? {
                match tag {
                    c::DW_TAG_member => {
                        let entry = self.debug.entry(child)?;
                        let target = self.debug.target(child, &entry, c::DW_AT_type)?;
                        let offset = number(&entry, c::DW_AT_data_member_location).unwrap_or(0);
                        parts.extend(target.map(|target| (target, offset)));
                    }
                    c::DW_TAG_variant_part | c::DW_TAG_variant => inside.push(child),
                    _ => {}
                }
            }
        }
        Ok(parts)
    }

    fn elements(&self, id: DieId) -> gimli::Result<Vec<(DieId, u64)>> {
        let Some(element) = self.debug.type_of(id)? else { return Ok(Vec::new()) };
        let size = self.size(element)?.unwrap_or(0);
        let count: u64 = self.counts(id)?.iter().map(|count| count.parse().unwrap_or(0)).product();
        Ok((0..count.min(MOST)).map(|i| (element, i * size)).collect())
    }

    /// The type of the function that a function pointer points to.
    pub(super) fn pointed_function(&self, id: DieId) -> gimli::Result<Option<DieId>> {
        let entry = self.debug.entry(id)?;
        if entry.tag != c::DW_TAG_pointer_type {
            return Ok(None);
        }
        let Some(target) = self.debug.target(id, &entry, c::DW_AT_type)? else { return Ok(None) };
        Ok((self.debug.entry(target)?.tag == c::DW_TAG_subroutine_type).then_some(target))
    }
}
