//! `cargo livepatch`: build patchable programs and make patches.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    livepatch_cli::start(livepatch_cli::cargo_cmd::main)
}
