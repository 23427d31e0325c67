//! `livepatch` for the fault-injection tests, see `livepatch-process/src/fault.rs`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    livepatch_cli::start(livepatch_cli::cmd::main)
}
