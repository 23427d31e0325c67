//! The listing of GNU ld and gold.

use super::{MapError, PlacedSection};

pub(super) fn is_map(text: &str) -> bool {
    text.contains("\nMemory map\n") || text.contains("Linker script and memory map")
}

pub(super) fn parse(_text: &str) -> Result<Vec<PlacedSection>, MapError> {
    Err(MapError::Unknown)
}
