//! `livepatch rollback`: the original functions run again.

use super::process::{SwitchArgs, failed, holds_text, pid};
use crate::exit::Failure;
use crate::output::Outcome;
use crate::progress::Progress;
use livepatch_apply::{RollbackReport, Selector};

/// Arguments of `rollback`.
#[derive(Debug, clap::Args)]
pub(crate) struct RollbackArgs {
    /// The process.
    #[arg(value_parser = pid)]
    pid: i32,
    /// Only the patch whose id begins like this.
    #[arg(conflicts_with = "all")]
    id: Option<String>,
    /// All patches of all modules.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    switch: SwitchArgs,
}

/// Rolls back.
pub(crate) fn run(args: &RollbackArgs) -> Result<Outcome, Failure> {
    args.switch.be_prompt();
    let _progress = Progress::start(format!("waiting for process {} to leave the patched code", args.pid));
    let selector = match &args.id {
        Some(id) => Selector::Id(id.clone()),
        None if args.all => Selector::All,
        None => Selector::Last,
    };
    let report = livepatch_apply::rollback(args.pid, &selector, &args.switch.rollback_options())
        .map_err(|error| failed(error, args.switch.policy()))?;
    Outcome::done(&report, text(&report))
}

fn text(report: &RollbackReport) -> String {
    let mut lines = Vec::new();
    if let Some(repaired) = &report.repaired {
        lines.push(format!("repaired what an interrupted run had left: {repaired}"));
    }
    lines.push(format!(
        "process {} runs its original code again after {:.1} ms; {}",
        report.pid,
        report.total_ms,
        holds_text(&report.holds)
    ));
    lines.extend(report.rolled_back.iter().map(|id| format!("  rolled back {}", id.get(..16).unwrap_or(id))));
    lines.join("\n")
}
