//! Command line parsing that keeps the exit code and `--json` contract for wrong usage too.

use crate::exit::{Exit, Failure};
use crate::output::finish;
use clap::Parser;
use std::ffi::OsString;

/// Parses the words after the program's name, or says what to exit with after help or a usage error was printed.
pub(crate) fn parse<P: Parser>(tool: &str, words: &[OsString]) -> Result<P, Exit> {
    let all = std::iter::once(OsString::from(tool)).chain(words.iter().cloned());
    P::try_parse_from(all).map_err(|error| {
        if !error.use_stderr() {
            // Help and version are results. A closed standard output is nobody's loss here.
            let _ = error.print();
            return Exit::Done;
        }
        if words.iter().any(|word| word == "--json") {
            let message = error.render().to_string();
            return finish(tool, true, Err(Failure::new(Exit::Usage, message.trim_end())));
        }
        // Standard error may be closed; the exit code still tells.
        let _ = error.print();
        Exit::Usage
    })
}
