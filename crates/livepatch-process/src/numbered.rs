//! System calls that are made by number though the standard library has a function for them.
//!
//! A program that patches itself holds this code, and its loader looks up each function that it imports from the C library at every
//! start, by name, in all its objects. Few programs use these.

use crate::{Pid, Tid};
use nix::errno::Errno;
use nix::libc::{self, c_long};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

/// Offsets in `struct linux_dirent64` of `<linux/dirent.h>`.
const LENGTH_AT: usize = 16;
const NAME_AT: usize = 19;

/// This process.
pub fn own_pid() -> Pid {
    // SAFETY: no arguments.
    Pid(unsafe { libc::syscall(libc::SYS_getpid) } as i32)
}

/// The calling thread.
pub(crate) fn own_tid() -> Tid {
    // SAFETY: no arguments.
    Tid(unsafe { libc::syscall(libc::SYS_gettid) } as i32)
}

/// Offers the processor to another thread.
pub fn yield_now() {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_sched_yield) };
}

/// Waits for a time, whatever signals come.
pub fn sleep(time: Duration) {
    let seconds = time.as_secs().min(i64::MAX as u64).cast_signed();
    let mut left = libc::timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() };
    let left = &raw mut left;
    // SAFETY: both pointers lead to the one struct: the kernel reads it first, and writes what is left of the time to it when a
    // signal interrupts the call.
    while unsafe { libc::syscall(libc::SYS_nanosleep, left, left) } != 0 && Errno::last() == Errno::EINTR {}
}

/// Reads bytes at an offset, with one system call unless a signal interrupts it; how many there were.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        // SAFETY: the kernel writes at most the buffer's length to the buffer.
        let read = unsafe {
            libc::syscall(
                libc::SYS_pread64,
                c_long::from(file.as_raw_fd()),
                buffer.as_mut_ptr(),
                buffer.len(),
                offset,
            )
        };
        match Errno::result(read) {
            Ok(read) => return Ok(read as usize),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reads as many bytes at an offset as there is room for.
pub(crate) fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match read_at(file, buffer, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}

/// Writes all bytes at an offset.
pub(crate) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel only reads the bytes, as many as there are.
        let written = unsafe {
            libc::syscall(
                libc::SYS_pwrite64,
                c_long::from(file.as_raw_fd()),
                bytes.as_ptr(),
                bytes.len(),
                offset,
            )
        };
        match Errno::result(written) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written as usize..];
                offset += written as u64;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The names in a folder, in the kernel's order, without `.` and `..`.
pub(crate) fn names_in(folder: impl AsRef<Path>) -> io::Result<Vec<OsString>> {
    let folder = File::open(folder)?;
    let mut names = Vec::new();
    let mut buffer = vec![0_u8; 32 << 10];
    loop {
        // SAFETY: the kernel writes at most the buffer's length to the buffer.
        let read = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                c_long::from(folder.as_raw_fd()),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        let mut entries = &buffer[..Errno::result(read)? as usize];
        if entries.is_empty() {
            return Ok(names);
        }
        while let Some(length) = entries.get(LENGTH_AT..NAME_AT - 1) {
            let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
            let Some(name) = entries.get(NAME_AT..length) else { break };
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            if !matches!(name, b"." | b"..") {
                names.push(OsString::from_vec(name.to_owned()));
            }
            entries = &entries[length..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::io::Write;

    #[test]
    fn names_are_those_of_the_standard_library() {
        let folder = tempfile::tempdir().unwrap();
        // More than one buffer holds.
        for number in 0..2000 {
            File::create(folder.path().join(format!("a rather long name for a file {number}"))).unwrap();
        }
        let names = names_in(folder.path()).unwrap();
        let known: BTreeSet<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), known.len());
        assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), known);
        assert_eq!(names_in("/nowhere").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn bytes_are_read_and_written_in_their_place() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        write_all_at(&file, b"ab", 4).unwrap();
        let mut bytes = [0; 4];
        read_exact_at(&file, &mut bytes, 3).unwrap();
        assert_eq!(&bytes, b"3ab6");
        assert_eq!(read_at(&file, &mut bytes, 8).unwrap(), 2);
        let beyond = read_exact_at(&file, &mut bytes, 8).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(own_pid().0 as u32, std::process::id());
    }
}
