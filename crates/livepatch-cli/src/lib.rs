//! The command line tools `livepatch` and `cargo-livepatch`.
//!
//! | file | what it holds |
//! |---|---|
//! | `exit.rs` | exit codes, and which error ends with which |
//! | `output.rs` | how results and failures are printed, for people and as JSON |
//! | `cmd/` | one file for each command of `livepatch` |
//! | `cargo_cmd/` | one file for each command of `cargo livepatch` |
//! | `demo/` | `livepatch demo`: service, load, edit, patch, verdict |
#![forbid(unsafe_code)]

#[cfg(feature = "build")]
pub mod cargo_cmd;
pub mod cmd;
#[cfg(all(feature = "build", feature = "apply"))]
mod demo;
pub mod exit;
#[cfg(feature = "build")]
mod explain;
pub mod inspect;
mod logging;
pub mod output;
mod progress;
mod usage;

use exit::Exit;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs one of the tools with the words of the command line. During a build the same program is also called as linker
/// and compiler wrapper; then that is all it does.
pub fn start(tool: fn(&[OsString]) -> Exit) -> ExitCode {
    #[cfg(feature = "build")]
    if let Some(code) = livepatch_build::linker::as_wrapper() {
        return code;
    }
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    tool(&words).into()
}
