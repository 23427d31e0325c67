//! `livepatch`: check, apply, roll back and list patches in running processes.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    livepatch_cli::start(livepatch_cli::cmd::main)
}
