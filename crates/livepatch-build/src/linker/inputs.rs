//! The input files of a link.

use crate::baseline::InputKind;
use crate::error::{IoContext, Result};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// What the first bytes of a file say that it is.
pub(super) enum Content {
    Known(InputKind),
    /// LLVM bitcode: the linker itself will compile it.
    Bitcode,
}

/// Tells the kind of an input by its contents; names mean little (`libfoo.so` may be a linker script).
pub(super) fn content(path: &Path) -> Result<Content> {
    let mut head = [0; 18];
    let mut file = File::open(path).at("read", path)?;
    let mut len = 0;
    while len < head.len() {
        match file.read(&mut head[len..]).at("read", path)? {
            0 => break,
            count => len += count,
        }
    }
    Ok(kind(&head[..len]))
}

/// `ET_REL` and `ET_DYN` of the ELF header's `e_type`.
const RELOCATABLE: u16 = 1;
const DYNAMIC: u16 = 3;

fn kind(head: &[u8]) -> Content {
    let elf_type = || Some(u16::from_le_bytes([*head.get(16)?, *head.get(17)?]));
    Content::Known(match head {
        [b'!', b'<', b'a' | b't', ..] if head.starts_with(b"!<arch>\n") || head.starts_with(b"!<thin>\n") => {
            InputKind::Archive
        }
        [0x7f, b'E', b'L', b'F', ..] => match elf_type() {
            Some(RELOCATABLE) => InputKind::Object,
            Some(DYNAMIC) => InputKind::Shared,
            _ => InputKind::Script,
        },
        [b'B', b'C', 0xc0, 0xde, ..] => return Content::Bitcode,
        _ => InputKind::Script,
    })
}
