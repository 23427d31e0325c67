//! The helper process: reads the request, has the engine do it, reports, and ends.
//!
//! It runs before anything of the program but its allocator, with the descriptors 0 to 3 and no others: nothing, the report,
//! messages, the request.

mod caller;
mod collect;
mod operate;
mod watchdog;

use crate::answer::code;
use crate::request::Request;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};
use serde_json::{Value, json};
use std::fs::{File, metadata};
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// The request was not there: this is no helper of ours.
pub(crate) const NO_REQUEST: i32 = 2;

/// Runs in a process that was started as a helper. Returns what it exits with.
pub(crate) fn run(limit: Duration) -> i32 {
    if let Err(error) = watchdog::arm(limit) {
        return finish(&failure(code::ERROR, format!("cannot set the helper's time limit: {error}")));
    }
    no_traces();
    livepatch_apply::be_prompt();
    let Ok(bytes) = read_request() else { return NO_REQUEST };
    let Some((request, patch)) = Request::decode(&bytes) else { return NO_REQUEST };
    collect::start();
    let answer = match same_program(request.pid) {
        Ok(true) => {
            let done = std::panic::catch_unwind(|| operate::run(&request, patch));
            done.unwrap_or_else(|_| {
                failure(code::ERROR, "the helper panicked; this is a bug of livepatch".into())
            })
        }
        Ok(false) => failure(code::LOST, format!("process {} is another program", request.pid)),
        Err(error) => operate::refused(request.pid, &error),
    };
    finish(&with_log(answer, collect::lines()))
}

/// A failure in the form of the command line's JSON.
fn failure(exit: u64, error: String) -> Value {
    json!({"error": error, "exit_code": exit})
}

fn with_log(mut answer: Value, lines: Vec<String>) -> Value {
    if let Some(object) = answer.as_object_mut() {
        object.insert("log".into(), lines.into());
    }
    answer
}

/// Writes the report.
fn finish(answer: &Value) -> i32 {
    // SAFETY: descriptor 1 was made for this process, and nothing else here uses it by number.
    let mut report = unsafe { File::from_raw_fd(1) };
    // If the program is gone there is nobody to tell.
    i32::from(report.write_all(answer.to_string().as_bytes()).is_err())
}

/// A dying helper leaves no core file in the program's folder, and a program that ends does not take it along with SIGPIPE
/// in the middle of undoing something.
fn no_traces() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: setrlimit reads one struct.
    unsafe { libc::syscall(libc::SYS_setrlimit, libc::RLIMIT_CORE, &raw const none) };
    // SAFETY: ignoring a signal runs no handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    // SAFETY: as above. Messages are written to a file, whose size may be limited.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// The request: a sealed file in memory, which nobody has open at descriptor 3 by accident.
fn read_request() -> io::Result<Vec<u8>> {
    // SAFETY: descriptor 3 was made for this process; if it is not open, the first use says so.
    let mut file = unsafe { File::from_raw_fd(3) };
    let seals = SealFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(SealFlag::F_SEAL_WRITE) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a process runs this very executable file.
fn same_program(pid: i32) -> io::Result<bool> {
    let identity = |path: &str| metadata(path).map(|file| (file.dev(), file.ino()));
    Ok(identity(&format!("/proc/{pid}/exe"))? == identity("/proc/self/exe")?)
}
