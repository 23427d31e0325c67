//! The commands of `cargo livepatch`.

mod baseline;
pub(crate) mod build;
pub(crate) mod create;
pub(crate) mod place;

use crate::cmd::EXIT_CODES;
use crate::exit::{Exit, Failure};
use crate::output::{Outcome, finish};
use crate::{explain, inspect, logging, usage};
use clap::{Parser, Subcommand};
use std::ffi::OsString;

pub(crate) const TOOL: &str = "cargo livepatch";

/// Build Rust programs that can be patched while they run, and make the patches.
#[derive(Debug, Parser)]
#[command(name = TOOL, bin_name = TOOL, version, after_help = EXIT_CODES)]
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

#[derive(Debug, Subcommand)]
enum Command {
    /// `cargo build` that keeps what a patch needs and leaves a stripped copy to ship.
    Build(build::BuildArgs),
    /// Rebuild the changed source, compare, and write a patch.
    Create(create::CreateArgs),
    /// Show what a patch file holds.
    Inspect(inspect::InspectArgs),
    /// List, export, import or remove kept builds.
    #[command(subcommand)]
    Baseline(baseline::BaselineCommand),
    /// Explain a finding such as LP0001.
    Explain(explain::ExplainArgs),
}

/// Runs `cargo livepatch` with the words after the program's name. Cargo puts the subcommand's own name first.
pub fn main(words: &[OsString]) -> Exit {
    let words = if words.first().is_some_and(|word| word == "livepatch") { &words[1..] } else { words };
    let cli: Cli = match usage::parse(TOOL, words) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    logging::init(cli.verbose);
    let json = cli.json || matches!(&cli.command, Command::Build(args) if args.json());
    finish(TOOL, json, run(&cli.command))
}

fn run(command: &Command) -> Result<Outcome, Failure> {
    match command {
        Command::Build(args) => build::run(args),
        Command::Create(args) => create::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Baseline(command) => baseline::run(command),
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
