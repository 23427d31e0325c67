//! `livepatch status`: the patches in a process.

use super::process::{patch_text, pid};
use crate::exit::Failure;
use crate::output::Outcome;
use livepatch_apply::report::Status;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// The process.
    #[arg(value_parser = pid)]
    pid: i32,
}

/// Reads the registry in the process.
pub(crate) fn run(args: &StatusArgs) -> Result<Outcome, Failure> {
    let status = livepatch_apply::status(args.pid)?;
    Outcome::done(&status, text(&status))
}

pub(super) fn text(status: &Status) -> String {
    let mut lines =
        vec![format!("process {}: {} (build-id {})", status.pid, status.executable, status.build_id)];
    if status.patches.is_empty() {
        lines.push("  no patches".into());
    }
    lines.extend(status.patches.iter().map(patch_text));
    if status.interrupted {
        lines
            .push("  an interrupted run left something behind; the next apply or rollback repairs it".into());
    }
    lines.join("\n")
}
