//! `cargo livepatch create`: rebuild, compare, judge, write the patch.

use super::build::relative;
use super::place::{self, Place};
use crate::exit::{Exit, Failure, Rendered};
use crate::output::{Outcome, bytes, count};
use crate::progress::Progress;
use livepatch_build::baseline::Baseline;
use livepatch_build::create::{self, CreateOptions, CreateReport, Outcome as Answer};
use livepatch_build::findings::{self, Finding, Severity};
use livepatch_build::rebuild::{self, RebuildOptions, Rebuilt};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Arguments of `create`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct CreateArgs {
    /// The patch file to write (default: NAME.lpatch).
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Patch this artifact of the workspace, if there are several.
    #[arg(long, value_name = "NAME", conflicts_with = "baseline")]
    pub(crate) bin: Option<String>,
    /// Patch the build with this build-id (or its beginning) instead of the newest one.
    #[arg(long, value_name = "ID")]
    pub(crate) baseline: Option<String>,
    /// Name of the patch (default: the artifact's).
    #[arg(long)]
    pub(crate) name: Option<String>,
}

/// Makes a patch from the current folder's source.
pub(crate) fn run(args: &CreateArgs) -> Result<Outcome, Failure> {
    let started = Instant::now();
    let made = make(&Place::current()?, args)?;
    let mut object = json!(made.report);
    object["file"] = json!(made.file);
    object["build_id"] = json!(made.build_id);
    object["cargo_ms"] = json!(made.cargo.as_millis() as u64);
    object["total_ms"] = json!(started.elapsed().as_millis() as u64);
    let exit = if made.file.is_some() { Exit::Done } else { Exit::Nothing };
    Ok(Outcome { exit, json: object, human: text(&made) })
}

/// A patch, or the message that none is needed.
pub(crate) struct Made {
    pub(crate) report: CreateReport,
    /// Where the patch is; `None` if there is nothing to patch.
    pub(crate) file: Option<PathBuf>,
    build_id: String,
    /// How long cargo took for the rebuild.
    cargo: Duration,
}

/// Rebuilds, compares and writes.
pub(crate) fn make(place: &Place, args: &CreateArgs) -> Result<Made, Failure> {
    let workspace = place.workspace()?;
    let baseline = match &args.baseline {
        Some(id) => Baseline::open(&place.store, id)?,
        None => Baseline::latest_for(&place.store, &workspace, args.bin.as_deref())?,
    };
    let build_id = baseline.manifest.build_id().to_string();
    let old = baseline.build()?;
    let Rebuilt { build: new, cargo } = rebuild::rebuild(
        &place.store,
        &baseline,
        &RebuildOptions { wrapper: place::this_program()?, workspace },
    )?;
    let answer = {
        let _progress = Progress::start("comparing the builds");
        create::create(&old, &new, &CreateOptions { name: args.name.clone() })?
    };
    match answer {
        Answer::Nothing(report) => Ok(Made { report, file: None, build_id, cargo }),
        Answer::Refused(report) => Err(refused(&report, &build_id)),
        Answer::Patch(report, data) => {
            let default = || PathBuf::from(format!("{}.lpatch", baseline.manifest.artifact.name));
            let file = place.folder.join(args.output.clone().unwrap_or_else(default));
            write(&file, &data)?;
            Ok(Made { report, file: Some(file), build_id, cargo })
        }
    }
}

/// Writes beside the file first, so that a name never stands for half a patch.
fn write(file: &Path, data: &[u8]) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new(Exit::Error, format!("cannot write {}: {error}", file.display()))
    };
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut part = tempfile::NamedTempFile::new_in(folder).map_err(cannot)?;
    std::io::Write::write_all(&mut part, data).map_err(cannot)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    part.as_file().set_permissions(mode).map_err(cannot)?;
    part.persist(file).map_err(|error| cannot(error.error))?;
    Ok(())
}

fn refused(report: &CreateReport, build_id: &str) -> Failure {
    let number = report.findings.iter().filter(|finding| finding.severity == Severity::Refusal).count();
    let mut failure = Failure::new(Exit::Refused, format!("no patch was made: {}", count(number, "finding")));
    if let Some(first) = report.findings.first() {
        failure = failure.help(format!("`cargo livepatch explain {}` says more", first.code));
    }
    failure.findings = report.findings.iter().map(rendered).collect();
    failure.extra = json!({"build_id": build_id, "functions": report.functions, "ignored": report.ignored, "patch_bytes": 0});
    failure
}

fn rendered(finding: &Finding) -> Rendered {
    Rendered { json: json!(finding), human: findings::render(finding) }
}

fn text(made: &Made) -> String {
    let report = &made.report;
    let mut lines: Vec<String> = report.findings.iter().map(findings::render).collect();
    let ignored = left_out(report);
    let Some(file) = &made.file else {
        lines.push(format!("nothing to patch: the rebuild equals the baseline{ignored}"));
        lines
            .push("  if an applied patch is to be taken back, `livepatch rollback PID` does that".to_owned());
        return lines.join("\n");
    };
    let size = bytes(report.patch_bytes as u64);
    let functions = count(report.functions.len(), "function");
    lines.push(format!("{}: {size}, {functions}{ignored}", relative(file).display()));
    for function in &report.functions {
        let place = function.place.as_ref().map_or_else(String::new, |place| format!(" at {place}"));
        lines.push(format!("  {} ({}){place}", function.path, function.reason));
    }
    if report.only_initialises {
        lines.push(crate::inspect::ONLY_INITIALISES.to_owned());
    }
    lines.join("\n")
}

/// What differs and needs no patch, by kind.
fn left_out(report: &CreateReport) -> String {
    let kinds = [
        ("line-only", "only in line numbers"),
        ("re-partitioned", "only in what the compiler inlined where"),
    ];
    let parts: Vec<_> = kinds
        .iter()
        .filter_map(|(kind, words)| {
            let number = report.ignored.iter().filter(|ignored| ignored.kind == *kind).count();
            let verb = if number == 1 { "differs" } else { "differ" };
            (number > 0).then(|| format!("{} {verb} {words}", count(number, "function")))
        })
        .collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_file_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.lpatch");
        write(&file, b"one").unwrap();
        write(&file, b"two").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(&dir.path().join("no/such/folder"), b"x").is_err());
    }
}
