//! What the program and its helper exchange, as open files.

use crate::command::Command;
use crate::error::HelperError;
use crate::request::Request;
use crate::spawn::FILES;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{FromRawFd, OwnedFd};

/// The files of one helper.
pub(crate) struct Files {
    /// Its own, in the order of their numbers there. No file has to be there for them: a program may have changed its root folder.
    pub theirs: [OwnedFd; FILES],
    /// Where its report arrives.
    pub report: File,
    /// What it writes to standard error.
    pub said: File,
}

impl Files {
    /// Files for a command that reads a request or only its patch.
    pub fn new(command: &Command, request: &Request, patch: &[u8]) -> Result<Self, HelperError> {
        let encoded = command.reads_request.then(|| request.encode(patch).map_err(io::Error::from));
        let encoded = named("request", encoded.transpose())?;
        // A pipe that nobody writes to ends at once.
        let (nothing, _) = named("input (a pipe)", pipe())?;
        let (report, theirs) = named("report (a pipe)", pipe())?;
        let said = named("messages (a file in memory)", memory(c"livepatch-messages"))?;
        let request = named("request (a file in memory)", sealed(encoded.as_deref().unwrap_or(patch)))?;
        let high = |file| named("descriptors", high(file));
        let theirs = [high(&nothing)?, high(&theirs)?, high(&said)?, high(&request)?];
        Ok(Self { theirs, report, said })
    }
}

fn named<T>(what: &'static str, made: io::Result<T>) -> Result<T, HelperError> {
    made.map_err(|source| HelperError::Prepare { what, source })
}

/// A pipe: its end to read from, and its end to write to.
fn pipe() -> io::Result<(File, File)> {
    let mut ends: [libc::c_int; 2] = [-1; 2];
    // SAFETY: the kernel writes two numbers to the array; on success they are descriptors that nobody else owns.
    unsafe {
        Errno::result(libc::syscall(libc::SYS_pipe2, ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])))
    }
}

fn memory(name: &std::ffi::CStr) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a string that ends with a zero, and on success a descriptor that nobody else owns.
    unsafe {
        let file = Errno::result(libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags))?;
        Ok(File::from_raw_fd(file as i32))
    }
}

/// A file in memory with these contents that nobody can change any more.
fn sealed(contents: &[u8]) -> io::Result<File> {
    // Whoever writes more gets SIGXFSZ, which ends the program.
    let limit = largest_file()?;
    if contents.len() as u64 > limit {
        let text = format!(
            "it has {} bytes, and files of this program may have {limit} (RLIMIT_FSIZE)",
            contents.len()
        );
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    let mut file = memory(c"livepatch-request")?;
    file.write_all(contents)?;
    file.rewind()?;
    let all =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(all))?;
    Ok(file)
}

/// The most bytes that this program may write to a file.
fn largest_file() -> io::Result<u64> {
    const THIS_PROCESS: libc::c_long = 0;
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let (resource, unchanged) = (libc::c_long::from(libc::RLIMIT_FSIZE), std::ptr::null::<libc::rlimit64>());
    // SAFETY: the kernel writes one rlimit64, and reads none by way of the null pointer.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_prlimit64, THIS_PROCESS, resource, unchanged, &raw mut limit)
    })?;
    Ok(limit.rlim_cur)
}

/// The same open file under a number that is none of the helper's own.
fn high(file: &File) -> io::Result<OwnedFd> {
    let number = match fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(FILES as i32)) {
        // So the kernel calls a limit below that number.
        Err(Errno::EINVAL) => Err(Errno::EMFILE),
        number => number,
    }?;
    // SAFETY: the kernel made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
