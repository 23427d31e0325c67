//! The commands of `livepatch`.

#[cfg(feature = "apply")]
mod apply;
#[cfg(feature = "apply")]
mod check;
#[cfg(feature = "apply")]
mod process;
#[cfg(feature = "apply")]
mod ps;
#[cfg(feature = "apply")]
mod rollback;
#[cfg(feature = "apply")]
mod status;
#[cfg(feature = "apply")]
mod symbols;

use crate::exit::{Exit, Failure};
#[cfg(feature = "build")]
use crate::explain;
use crate::output::{Outcome, finish};
use crate::{inspect, logging, usage};
use clap::{Parser, Subcommand};
use std::ffi::OsString;

pub(crate) const TOOL: &str = "livepatch";

/// Fix bugs in running Rust processes without a restart.
#[derive(Debug, Parser)]
#[command(name = TOOL, version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object to standard output.
    #[arg(long, global = true)]
    json: bool,
    /// Say what is being done on standard error (-vv, -vvv: more).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

pub(crate) const EXIT_CODES: &str = "Exit codes: 0 done, 1 internal or environment error, 2 wrong usage, \
    3 nothing to patch, 4 refused as not provably safe, 5 busy, 6 mismatch, 7 no permission, 8 process lost";

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether a patch could be applied to a process now, without changing anything.
    #[cfg(feature = "apply")]
    Check(check::CheckArgs),
    /// Apply a patch to a running process.
    #[cfg(feature = "apply")]
    Apply(apply::ApplyArgs),
    /// Make a process run its original functions again.
    #[cfg(feature = "apply")]
    Rollback(rollback::RollbackArgs),
    /// List the patches in a process.
    #[cfg(feature = "apply")]
    Status(status::StatusArgs),
    /// Name the functions of the patches in a process or in a core dump, for gdb, perf and backtraces.
    #[cfg(feature = "apply")]
    Symbols(symbols::SymbolsArgs),
    /// List the processes that have patches.
    #[cfg(feature = "apply")]
    Ps,
    /// Show what a patch file holds.
    Inspect(inspect::InspectArgs),
    /// Build a web service, put it under load, patch it, roll back, and report.
    #[cfg(all(feature = "build", feature = "apply"))]
    Demo(crate::demo::DemoArgs),
    /// Explain a finding such as LP0001.
    #[cfg(feature = "build")]
    Explain(explain::ExplainArgs),
}

/// Runs `livepatch` with the words after the program's name.
pub fn main(words: &[OsString]) -> Exit {
    let cli: Cli = match usage::parse(TOOL, words) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    logging::init(cli.verbose);
    finish(TOOL, cli.json, run(&cli.command))
}

fn run(command: &Command) -> Result<Outcome, Failure> {
    match command {
        #[cfg(feature = "apply")]
        Command::Check(args) => check::run(args),
        #[cfg(feature = "apply")]
        Command::Apply(args) => apply::run(args),
        #[cfg(feature = "apply")]
        Command::Rollback(args) => rollback::run(args),
        #[cfg(feature = "apply")]
        Command::Status(args) => status::run(args),
        #[cfg(feature = "apply")]
        Command::Symbols(args) => symbols::run(args),
        #[cfg(feature = "apply")]
        Command::Ps => ps::run(),
        Command::Inspect(args) => inspect::run(args),
        #[cfg(all(feature = "build", feature = "apply"))]
        Command::Demo(args) => crate::demo::run(args),
        #[cfg(feature = "build")]
        Command::Explain(args) => explain::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
