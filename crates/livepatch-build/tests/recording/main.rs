//! Real cargo projects, built, recorded, moved and rebuilt.
//!
//! This executable is its own linker and its own command line: started by rustc it serves as wrapper, started with
//! [`tool::WORD`] it does what `cargo livepatch` does, otherwise it runs the tests. So every build runs in a process of
//! its own, with an environment of its own, as it does for users.

mod archives;
mod builds;
mod images;
mod linkers;
mod maps;
mod project;
mod rebuilds;
mod sources;
mod tool;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = livepatch_build::linker::as_wrapper() {
        return code;
    }
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|word| word == tool::WORD) {
        return tool::run(&args[2..]);
    }
    let modules = [
        builds::tests(),
        linkers::tests(),
        rebuilds::tests(),
        sources::tests(),
        archives::tests(),
        maps::tests(),
    ];
    libtest_mimic::run(&Arguments::from_args(), modules.into_iter().flatten().collect()).exit_code()
}

/// A test that fails by panicking.
fn test(name: &str, body: fn()) -> Trial {
    Trial::test(name, move || {
        body();
        Ok(())
    })
}
