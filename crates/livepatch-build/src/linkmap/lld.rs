//! The table of LLD and mold.
//!
//! ```text
//!              VMA              LMA     Size Align Out     In      Symbol      (LLD; mold has no LMA column)
//!             4ee0             4ee0     2a10    16 .text                       output section: name at column "Out"
//!             4ee0             4ee0       30     4         FILE:(SECTION)      input section
//!             4ee0             4ee0       30     1                 main        symbol
//! ```
//!
//! LLD writes all numbers in hexadecimal without prefix; mold writes the address with `0x` and size and alignment in
//! decimal.

use super::{Interner, MapError, PlacedSection, bad_line, split_member};
use livepatch_patch::LinkAddr;

/// Where the columns of the heading are.
struct Columns {
    /// How many columns of numbers there are.
    numbers: usize,
    /// How far "In" stands behind "Out".
    input: usize,
}

/// Columns of numbers in mold's table.
const MOLD: usize = 3;

/// Whether the first line is the heading of such a table.
pub(super) fn is_map(text: &str) -> bool {
    columns(text.lines().next().unwrap_or("")).is_some()
}

fn columns(heading: &str) -> Option<Columns> {
    let words: Vec<&str> = heading.split_whitespace().collect();
    let numbers = match words.as_slice() {
        ["VMA", "LMA", "Size", "Align", "Out", "In", "Symbol"] => 4,
        ["VMA", "Size", "Align", "Out", "In", "Symbol"] => MOLD,
        _ => return None,
    };
    Some(Columns { numbers, input: heading.find(" In ")? - heading.find(" Out ")? })
}

pub(super) fn parse(text: &str) -> Result<Vec<PlacedSection>, MapError> {
    let heading = columns(text.lines().next().unwrap_or("")).ok_or(MapError::Unknown)?;
    let mut sections = Vec::new();
    let (mut files, mut members) = (Interner::default(), Interner::default());
    let mut loaded = false;
    for (number, line) in text.lines().enumerate().skip(1) {
        let Some(row) = Row::read(line, &heading) else {
            if line.trim().is_empty() {
                continue;
            }
            return Err(bad_line(number, line));
        };
        if row.indent == 0 {
            loaded = row.addr != 0;
        }
        let Some((file, section)) = row.input(&heading) else { continue };
        if !loaded || row.size == 0 {
            continue;
        }
        let (file, member) = split_member(file);
        sections.push(PlacedSection {
            file: files.get(file),
            member: member.map(|member| members.get(member)),
            section: section.to_owned(),
            addr: LinkAddr(row.addr),
            size: row.size,
        });
    }
    Ok(sections)
}

struct Row<'a> {
    addr: u64,
    size: u64,
    /// Blanks between the numbers and the name tell the level.
    indent: usize,
    name: &'a str,
}

impl<'a> Row<'a> {
    fn read(line: &'a str, columns: &Columns) -> Option<Self> {
        let mut rest = line;
        let mut numbers = [""; 4];
        for slot in &mut numbers[..columns.numbers] {
            rest = rest.trim_start_matches(' ');
            let end = rest.find(' ').unwrap_or(rest.len());
            (*slot, rest) = rest.split_at(end);
        }
        let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
        let size = match columns.numbers {
            MOLD => numbers[1].parse().ok()?,
            _ => hex(numbers[2])?,
        };
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        let name = rest.trim_start_matches(' ');
        Some(Self { addr: hex(numbers[0])?, size, indent: rest.len() - name.len(), name })
    }

    /// File and section, if the row is at the level of input sections and is one (LLD also lists assignments of the
    /// linker script there).
    fn input(&self, columns: &Columns) -> Option<(&'a str, &'a str)> {
        if self.indent != columns.input {
            return None;
        }
        let (file, section) = self.name.strip_suffix(')')?.rsplit_once(":(")?;
        (file != "<internal>" && !file.is_empty()).then_some((file, section))
    }
}

#[cfg(test)]
mod tests {
    use super::super::LinkMap;

    const LLD: &str = "             VMA              LMA     Size Align Out     In      Symbol
             2e0              2e0       1c     1 .interp
             2e0              2e0       1c     1         <internal>:(.interp)
            4ee0             4ee0       60     4 .gcc_except_table
            4ee0             4ee0       30     4         /a b/hello.0.rcgu.o:(.gcc_except_table._ZN5hello4mainE)
            4ee0             4ee0        0     1                 GCC_except_table0
            4f20             4f20       20     4         /x/libstd-d1.rlib(std-d1.0.rcgu.o):(.gcc_except_table.f)
            5000             5000        0     1         . = ALIGN(0x1000)
               0                0       99     1 .debug_str
               0                0       99     1         /a b/hello.0.rcgu.o:(.debug_str)
            4ee1             4ee1       99     1         /x/libstd-d1.rlib(std-d1.0.rcgu.o):(.debug_str)
";

    #[test]
    fn input_sections_only() {
        let map = LinkMap::parse(LLD).unwrap();
        let found: Vec<_> = map
            .sections()
            .iter()
            .map(|s| (&*s.file, s.member.as_deref(), s.section.as_str(), s.addr.0, s.size))
            .collect();
        assert_eq!(
            found,
            [
                ("/a b/hello.0.rcgu.o", None, ".gcc_except_table._ZN5hello4mainE", 0x4ee0, 0x30),
                ("/x/libstd-d1.rlib", Some("std-d1.0.rcgu.o"), ".gcc_except_table.f", 0x4f20, 0x20),
            ]
        );
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(LinkMap::parse("hello").is_err());
        assert!(LinkMap::parse(&format!("{LLD}what is this\n")).is_err());
    }
}
