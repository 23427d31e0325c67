//! The memory map of a process: `/proc/PID/maps`, parsed from bytes.

use crate::sys::MapQuery;
use livepatch_patch::RunAddr;
use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Perms {
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
    /// Shared with other mappings of the same file (`s`), not copied on write (`p`).
    pub shared: bool,
}

/// What stands behind a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// A file, `memfd` or shared memory. The path is as the kernel prints it, for the target's mount namespace, without
    /// the mark ` (deleted)`.
    File(PathBuf),
    /// A region that the kernel names: `[heap]`, `[stack]`, `[vdso]`, `[anon:NAME]`, …, brackets included.
    Special(String),
    /// Private memory without a name.
    Anonymous,
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// The addresses, page aligned.
    pub range: Range<RunAddr>,
    /// What is allowed.
    pub perms: Perms,
    /// Offset of the first byte in the file; 0 without a file.
    pub file_offset: u64,
    /// Device of the file, as (major, minor); (0, 0) without a file.
    pub device: (u32, u32),
    /// Inode of the file; 0 without a file.
    pub inode: u64,
    /// What stands behind it.
    pub backing: Backing,
    /// Whether the file's path no longer leads to it.
    pub deleted: bool,
}

impl Mapping {
    /// Whether the address lies in the mapping.
    pub fn contains(&self, addr: RunAddr) -> bool {
        self.range.contains(&addr)
    }

    /// The size in bytes.
    pub fn len(&self) -> u64 {
        self.range.end.0 - self.range.start.0
    }

    /// Never true for a line of `/proc/PID/maps`.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The file's path, if there is a file.
    pub fn path(&self) -> Option<&std::path::Path> {
        match &self.backing {
            Backing::File(path) => Some(path),
            _ => None,
        }
    }

    /// Whether the kernel names the region so, brackets included (`[heap]`).
    pub fn is_special(&self, name: &str) -> bool {
        matches!(&self.backing, Backing::Special(own) if own == name)
    }

    /// Whether both lines show the same file (device and inode).
    pub fn same_file(&self, other: &Mapping) -> bool {
        self.inode != 0 && (self.device, self.inode) == (other.device, other.inode)
    }
}

/// All mappings in address order, or `None` if a line is not in the kernel's format.
pub(crate) fn parse(text: &[u8]) -> Option<Vec<Mapping>> {
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = text()?.split_once('-')?;
    let perms = text()?.as_bytes();
    let file_offset = hex(text()?)?;
    let (major, minor) = text()?.split_once(':')?;
    let inode = text()?.parse().ok()?;
    let name = fields.next().unwrap_or_default().trim_ascii_start();
    let (backing, deleted) = parse_backing(name);
    Some(Mapping {
        range: RunAddr(hex(start)?)..RunAddr(hex(end)?),
        perms: Perms {
            read: *perms.first()? == b'r',
            write: *perms.get(1)? == b'w',
            execute: *perms.get(2)? == b'x',
            shared: *perms.get(3)? == b's',
        },
        file_offset,
        device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode,
        backing,
        deleted,
    })
}

impl Mapping {
    /// What the kernel tells of a single mapping.
    pub(crate) fn queried(query: &MapQuery, name: &[u8]) -> Self {
        let (backing, deleted) = parse_backing(name);
        let allowed = |bit| query.allowed & bit != 0;
        Self {
            range: RunAddr(query.start)..RunAddr(query.end),
            perms: Perms { read: allowed(1), write: allowed(2), execute: allowed(4), shared: allowed(8) },
            file_offset: query.offset,
            device: query.device,
            inode: query.inode,
            backing,
            deleted,
        }
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn parse_backing(name: &[u8]) -> (Backing, bool) {
    if name.is_empty() {
        return (Backing::Anonymous, false);
    }
    if name.starts_with(b"[") {
        return (Backing::Special(String::from_utf8_lossy(name).into_owned()), false);
    }
    let (path, deleted) = match name.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (name, false),
    };
    (Backing::File(PathBuf::from(OsString::from_vec(unescape(path)))), deleted)
}

/// The kernel writes a newline in a path as `\012` and leaves every other byte as it is.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        match tail.strip_prefix(b"012") {
            Some(after) if first == b'\\' => {
                out.push(b'\n');
                rest = after;
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn lines_of_every_kind() {
        let text = b"00400000-00401000 r-xp 00001000 fe:0a 131 /a b/c\\012d (deleted)\n\
            7ffff000-80000000 rw-s 00000000 00:01 7                  /memfd:x\xff\n\
            7f0000000000-7f0000002000 ---p 00000000 00:00 0 \n\
            7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]\n";
        let maps = parse(text).unwrap();
        assert_eq!(maps.len(), 4);
        assert_eq!(maps[0].range, RunAddr(0x400000)..RunAddr(0x401000));
        assert_eq!(maps[0].perms, Perms { read: true, execute: true, ..Perms::default() });
        assert_eq!((maps[0].file_offset, maps[0].device, maps[0].inode), (0x1000, (0xfe, 0xa), 131));
        assert_eq!(maps[0].path().unwrap().as_os_str().as_bytes(), b"/a b/c\nd");
        assert!(maps[0].deleted);
        assert!(maps[1].perms.shared && maps[1].perms.write && !maps[1].deleted);
        assert_eq!(maps[1].path().unwrap().as_os_str().as_bytes(), b"/memfd:x\xff");
        assert_eq!((&maps[2].backing, maps[2].len()), (&Backing::Anonymous, 0x2000));
        assert!(maps[3].is_special("[stack]"));
    }

    #[test]
    fn a_line_in_another_format_is_an_error() {
        assert_eq!(parse(b"nonsense\n"), None);
        assert_eq!(parse(b"00400000-00401000 r-"), None);
    }

    #[test]
    fn own_map_holds_own_code() {
        let maps = parse(&std::fs::read("/proc/self/maps").unwrap()).unwrap();
        let here = RunAddr(own_map_holds_own_code as fn() as usize as u64);
        let own = maps.iter().find(|mapping| mapping.contains(here)).unwrap();
        assert!(own.perms.execute && own.path() == std::env::current_exe().ok().as_deref());
    }
}
