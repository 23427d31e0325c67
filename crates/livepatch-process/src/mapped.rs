//! Reading what a process has mapped from files without making it resident there.
//!
//! A read of `/proc/PID/mem` brings every page that it touches into the process, where it counts as the process's memory until the
//! kernel wants it back. Unwind tables are large and rarely touched by the program, so they are read from the file where that
//! is the same: the mapping is private, not writable, of a file that can be opened and is the mapped one, and no page of it has
//! been replaced by a copy (`/proc/PID/pagemap`, see Documentation/admin-guide/mm/pagemap.rst of the kernel).

use crate::error::ProcessError;
use crate::maps::Mapping;
use crate::memory::PAGE_SIZE;
use crate::{Process, numbered, procfs};
use livepatch_patch::RunAddr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;

/// From this many bytes on it is worth a look whether a file has them.
const LARGE: usize = 4 * PAGE_SIZE as usize;

/// Bits of an entry of the pagemap: a page is there; it is in the swap (or is something else that is no page of a file); the page is
/// a page of a file or of shared memory, and no private copy.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

impl Process {
    /// As [`Self::read_vec`]. A large piece is read from the file that it is mapped from, where that holds the same bytes.
    pub fn read_mapped(&self, addr: RunAddr, len: usize) -> Result<Vec<u8>, ProcessError> {
        let from_file = || self.read_from_file(addr, len);
        match (len >= LARGE).then(from_file).flatten() {
            Some(bytes) => Ok(bytes),
            None => self.read_vec(addr, len),
        }
    }

    fn read_from_file(&self, addr: RunAddr, len: usize) -> Option<Vec<u8>> {
        let mapping = self.mapping_at(addr).ok()??;
        let end = addr.0.checked_add(len as u64)?;
        let private = mapping.perms.read && !mapping.perms.write && !mapping.perms.shared;
        if !private || end > mapping.range.end.0 || mapping.path().is_none() {
            return None;
        }
        let file = self.file_behind(&mapping)?;
        let mut bytes = vec![0; len];
        let offset = mapping.file_offset.checked_add(addr.0 - mapping.range.start.0)?;
        numbered::read_exact_at(&file, &mut bytes, offset).ok()?;
        // A page is copied only by a write; the mapping allows none to the program.
        self.is_as_in_file(addr, end)?.then_some(bytes)
    }

    /// The mapped file itself, if it is a regular one that can be opened.
    fn file_behind(&self, mapping: &Mapping) -> Option<File> {
        let file = self.open_mapped_file(mapping).ok().filter(|file| is_it(file, mapping));
        file.or_else(|| self.file_at_path(mapping))
    }

    /// As the process sees its path. Something else may lie there by now, so it is not opened before it is known to be the file.
    fn file_at_path(&self, mapping: &Mapping) -> Option<File> {
        let path = mapping.path().filter(|_| !mapping.deleted)?.strip_prefix("/").ok()?;
        let root = procfs::task_dir(self.pid(), self.live_thread().ok()?).join("root");
        let mut only_found = File::options();
        only_found.read(true).custom_flags(nix::libc::O_PATH);
        let found = only_found.open(root.join(path)).ok().filter(|found| is_it(found, mapping))?;
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()
    }

    /// Whether no page from `start` to `end` is a copy, or `None` if the kernel does not say.
    fn is_as_in_file(&self, start: RunAddr, end: u64) -> Option<bool> {
        let pagemap = procfs::task_dir(self.pid(), self.live_thread().ok()?).join("pagemap");
        let (first, last) = (start.0 / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        let mut entries = vec![0; usize::try_from(last - first).ok()? * 8];
        numbered::read_exact_at(&File::open(pagemap).ok()?, &mut entries, first * 8).ok()?;
        let (entries, _) = entries.as_chunks::<8>();
        Some(entries.iter().all(|entry| {
            let entry = u64::from_ne_bytes(*entry);
            entry & SWAPPED == 0 && (entry & PRESENT == 0 || entry & OF_FILE != 0)
        }))
    }
}

fn is_it(file: &File, mapping: &Mapping) -> bool {
    file.metadata().is_ok_and(|data| {
        let device = (nix::libc::major(data.st_dev()), nix::libc::minor(data.st_dev()));
        data.is_file() && (device, data.st_ino()) == (mapping.device, mapping.inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pid;
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};

    /// A program that waits for more input, with its largest mapping that may only be read.
    fn waiting() -> (Child, Process, Mapping) {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Once it has answered it loads and reads nothing of its own any more.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let process = Process::open(Pid(child.id() as i32)).unwrap();
        let only_read = |mapping: &Mapping| {
            let perms = mapping.perms;
            perms.read && !perms.write && !perms.execute && is_library(mapping)
        };
        let mapping = process.maps().unwrap().into_iter().filter(only_read).max_by_key(Mapping::len).unwrap();
        (child, process, mapping)
    }

    fn is_library(mapping: &Mapping) -> bool {
        mapping.path().is_some_and(|path| path.to_string_lossy().contains("/libc.so"))
    }

    fn resident(process: &Process, mapping: &Mapping) -> u64 {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", process.pid())).unwrap();
        let line = format!("{:x}-{:x} ", mapping.range.start.0, mapping.range.end.0);
        let of_mapping = smaps.split_once(&line).unwrap().1;
        let rss = of_mapping.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    #[test]
    fn a_file_is_read_without_becoming_resident() {
        let (mut child, process, mapping) = waiting();
        let (at, len) = (mapping.range.start, mapping.len() as usize);
        let before = resident(&process, &mapping);
        assert!(before < mapping.len() / 1024, "all of it is resident: {before} KiB");
        let bytes = process.read_mapped(at, len).unwrap();
        assert_eq!(resident(&process, &mapping), before);
        assert_eq!(process.read_vec(at, len).unwrap(), bytes);
        assert!(resident(&process, &mapping) > before);
        let path = process.file_at_path(&mapping).unwrap();
        let mut other = mapping.clone();
        other.inode += 1;
        assert_eq!(path.metadata().unwrap().st_ino(), mapping.inode);
        assert!(process.file_at_path(&other).is_none() && process.file_behind(&other).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
