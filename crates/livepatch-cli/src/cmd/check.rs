//! `livepatch check`: everything that `apply` does before its first write.

use super::process::{PartArgs, SwitchArgs, failed, pid};
use crate::exit::Failure;
use crate::inspect;
use crate::output::Outcome;
use crate::progress::Progress;
use std::path::PathBuf;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The process.
    #[arg(value_parser = pid)]
    pid: i32,
    /// The patch file.
    file: PathBuf,
    #[command(flatten)]
    part: PartArgs,
    #[command(flatten)]
    switch: SwitchArgs,
}

/// Checks the patch against the process.
pub(crate) fn run(args: &CheckArgs) -> Result<Outcome, Failure> {
    args.switch.be_prompt();
    let file = inspect::load(&args.file)?;
    let _progress = Progress::start(format!("checking process {}", args.pid));
    let options = args.switch.apply_options(&args.part);
    let report = livepatch_apply::check(args.pid, &file.data, &options)
        .map_err(|error| failed(error, args.switch.policy()))?;
    Outcome::done(&report, super::apply::text(&report))
}
