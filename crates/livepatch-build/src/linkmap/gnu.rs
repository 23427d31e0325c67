//! The listing of GNU ld and gold.
//!
//! ```text
//! Linker script and memory map            (gold: "Memory map")
//!
//! .text           0x0000000000005060    0x3d691                  output section
//!  *(.text.unlikely .text.*_unlikely)                            pattern of the linker script
//!  .init          0x0000000000005000       0x12 FILE             input section
//!                 0x0000000000005000                _init        symbol
//!  .text.unlikely.f                                              input section with a long name:
//!                 0x0000000000005060       0x3d FILE             the rest follows on the next line
//!  *fill*         0x000000000000509d        0x3                  padding
//! ```
//!
//! GNU ld attributes sections that it makes itself (`.plt`, `.got`) to the first input file.

use super::{Interner, MapError, PlacedSection, bad_line, split_member};
use livepatch_patch::LinkAddr;

const HEADINGS: [&str; 2] = ["Linker script and memory map", "Memory map"];

/// The part of the listing that tells addresses; what stands before it lists archive members and discarded sections.
fn memory_map(text: &str) -> Option<(usize, &str)> {
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        at += line.len();
        if HEADINGS.contains(&line.trim_end()) {
            return Some((number + 1, &text[at..]));
        }
    }
    None
}

/// Whether there is such a heading.
pub(super) fn is_map(text: &str) -> bool {
    memory_map(text).is_some()
}

pub(super) fn parse(text: &str) -> Result<Vec<PlacedSection>, MapError> {
    let (first, body) = memory_map(text).ok_or(MapError::Unknown)?;
    let mut sections = Vec::new();
    let (mut files, mut members) = (Interner::default(), Interner::default());
    let mut lines = body.lines().enumerate().peekable();
    let mut loaded = false;
    while let Some((number, line)) = lines.next() {
        if let Some(addr) = output_section(line, lines.peek().map(|(_, next)| *next)) {
            loaded = addr != 0;
        }
        let Some((section, rest)) = input_section(line) else { continue };
        let rest = if rest.is_empty() {
            match lines.next() {
                Some((_, next)) => next.trim_start(),
                None => return Err(bad_line(first + number, line)),
            }
        } else {
            rest
        };
        let Some((addr, size, file)) = place(rest) else { continue };
        if !loaded || size == 0 {
            continue;
        }
        let (file, member) = split_member(file);
        sections.push(PlacedSection {
            file: files.get(file),
            member: member.map(|member| members.get(member)),
            section: section.to_owned(),
            addr: LinkAddr(addr),
            size,
        });
    }
    Ok(sections)
}

/// The address of an output section, if the line is one; a long name has the rest on the next line.
fn output_section(line: &str, next: Option<&str>) -> Option<u64> {
    if line.is_empty() || line.starts_with(' ') {
        return None;
    }
    let (_, rest) = line.split_once(' ').unwrap_or((line, ""));
    let rest = if rest.trim().is_empty() { next.filter(|next| next.starts_with(' '))? } else { rest };
    u64::from_str_radix(rest.split_whitespace().next()?.strip_prefix("0x")?, 16).ok()
}

/// Name of the section and what follows it, if the line is at the level of input sections and not a pattern or fill.
fn input_section(line: &str) -> Option<(&str, &str)> {
    let name = line.strip_prefix(' ')?;
    if name.starts_with([' ', '*', '(']) || name.is_empty() {
        return None;
    }
    let end = name.find(' ').unwrap_or(name.len());
    Some((&name[..end], name[end..].trim_start()))
}

/// `0xADDR 0xSIZE FILE`; `None` for the other things that stand in this place (`EXCLUDE_FILE` patterns, symbols).
fn place(text: &str) -> Option<(u64, u64, &str)> {
    let (addr, rest) = text.split_once(' ')?;
    let (size, file) = rest.trim_start().split_once(' ')?;
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    Some((hex(addr)?, hex(size)?, file.trim()))
}

#[cfg(test)]
mod tests {
    use super::super::LinkMap;

    const BFD: &str = "Archive member included to satisfy reference by file (symbol)

Discarded input sections

 .text          0x0000000000000000        0x9 /x/gone.o

Linker script and memory map

LOAD /x/crti.o

.init           0x0000000000005000       0x17
 *(SORT_NONE(.init))
 .init          0x0000000000005000       0x12 /x y/crti.o
                0x0000000000005000                _init

.text           0x0000000000005060       0x3d
 .text.unlikely._RINvMNtNtCsgEmfK2I1SDS_4core4cell4once
                0x0000000000005060       0x3d /x/libstd.rlib(std.0.rcgu.o)
 *fill*         0x000000000000509d        0x3 

.debug_info     0x0000000000000000       0x99
 .debug_info    0x0000000000000000       0x44 /x/a.o
 .debug_info    0x0000000000005061       0x44 /x/b.o

.a_section_of_a_long_name
                0x0000000000006000       0x10
 .a_section_of_a_long_name
                0x0000000000006000       0x10 /x/a.o
OUTPUT(/x/out elf64-x86-64)
";

    #[test]
    fn input_sections_only() {
        let map = LinkMap::parse(BFD).unwrap();
        let found: Vec<_> = map
            .sections()
            .iter()
            .map(|s| (&*s.file, s.member.as_deref(), s.section.as_str(), s.addr.0, s.size))
            .collect();
        assert_eq!(
            found,
            [
                ("/x y/crti.o", None, ".init", 0x5000, 0x12),
                (
                    "/x/libstd.rlib",
                    Some("std.0.rcgu.o"),
                    ".text.unlikely._RINvMNtNtCsgEmfK2I1SDS_4core4cell4once",
                    0x5060,
                    0x3d
                ),
                ("/x/a.o", None, ".a_section_of_a_long_name", 0x6000, 0x10),
            ]
        );
    }
}
