//! `livepatch apply`: the patch goes in.

use super::process::{PartArgs, SwitchArgs, failed, holds_text, patch_text, pid};
use crate::exit::Failure;
use crate::inspect;
use crate::output::{Outcome, count};
use crate::progress::Progress;
use livepatch_apply::registry::PatchState;
use livepatch_apply::report::ApplyReport;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
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

/// Applies the patch.
pub(crate) fn run(args: &ApplyArgs) -> Result<Outcome, Failure> {
    args.switch.be_prompt();
    let file = inspect::load(&args.file)?;
    let _progress = Progress::start(format!("waiting for process {} to leave the changed code", args.pid));
    let options = args.switch.apply_options(&args.part);
    let report = livepatch_apply::apply(args.pid, &file.data, &options)
        .map_err(|error| failed(error, args.switch.policy()))?;
    Outcome::done(&report, text(&report))
}

/// Who goes on in old code, function by function.
fn still_inside(report: &ApplyReport) -> Vec<String> {
    let mut functions: BTreeMap<&str, usize> = BTreeMap::new();
    report.still_inside.iter().for_each(|thread| *functions.entry(&thread.function).or_default() += 1);
    let line = |(function, threads): (&str, usize)| {
        let (go, that) =
            if threads == 1 { ("goes", "that call returns") } else { ("go", "those calls return") };
        format!(
            "{} {go} on in the old code of `{function}` until {that}; what changed there takes effect with the next call",
            count(threads, "thread")
        )
    };
    functions.into_iter().map(line).collect()
}

/// The report for people. `check` prints the same with other verbs.
pub(crate) fn text(report: &ApplyReport) -> String {
    let pid = report.pid;
    let mut lines = Vec::new();
    if let Some(repaired) = &report.repaired {
        lines.push(format!("repaired what an interrupted run had left: {repaired}"));
    }
    lines.push(match (report.already_applied, report.dry_run) {
        (true, _) => format!("process {pid} runs this patch already; nothing was done"),
        (false, true) => format!("the patch can be applied to process {pid}; nothing was changed"),
        (false, false) => {
            format!("applied to process {pid} in {:.1} ms; {}", report.total_ms, holds_text(&report.holds))
        }
    });
    lines.extend(still_inside(report));
    if !report.replaced.is_empty() {
        lines.push(format!("replaces {}", report.replaced.join(", ")));
    }
    if !report.libraries.is_empty() {
        let verb = if report.dry_run { "needs" } else { "brought" };
        lines.push(format!("{verb} {}", report.libraries.join(", ")));
    }
    lines.extend(inspect::notes_text(&report.notes));
    if report.only_initialises {
        lines.push(inspect::ONLY_INITIALISES.to_owned());
    }
    let applied = report.patches.iter().filter(|patch| patch.state == PatchState::Applied);
    lines.extend(applied.map(patch_text));
    lines.join("\n")
}
