//! The demo's use of the tools: the same code as the commands run.

use crate::cargo_cmd::create::{CreateArgs, make};
use crate::cargo_cmd::{build, place::Place};
use crate::exit::{Exit, Failure};
use crate::inspect::PatchFile;
use livepatch_apply::{ApplyOptions, ApplyReport, RollbackOptions, RollbackReport, Selector};
use std::path::{Path, PathBuf};

/// `cargo livepatch build --release` in the folder, and a copy of the stripped program as if on another host.
pub(super) fn build(dir: &Path) -> Result<PathBuf, Failure> {
    let built = build::build(&Place::at(dir)?, vec!["--release".into()])?;
    let missing = || Failure::new(Exit::Error, "the build made no program");
    let program = built.first().ok_or_else(missing)?;
    let host = dir.join("host");
    let shipped = host.join("webapp");
    std::fs::create_dir_all(&host)
        .and_then(|()| std::fs::copy(&program.stripped, &shipped))
        .map_err(|error| Failure::new(Exit::Error, format!("cannot ship the program: {error}")))?;
    Ok(shipped)
}

/// `cargo livepatch create` in the folder.
pub(super) fn create(dir: &Path) -> Result<PathBuf, Failure> {
    let args = CreateArgs { name: Some("vat-rounding".into()), ..CreateArgs::default() };
    let made = make(&Place::at(dir)?, &args)?;
    made.file.ok_or_else(|| Failure::new(Exit::Error, "the fix gave nothing to patch"))
}

/// `livepatch apply`.
pub(super) fn apply(pid: i32, file: &PatchFile) -> Result<ApplyReport, Failure> {
    Ok(livepatch_apply::apply(pid, &file.data, &ApplyOptions::default())?)
}

/// `livepatch rollback`.
pub(super) fn rollback(pid: i32) -> Result<RollbackReport, Failure> {
    Ok(livepatch_apply::rollback(pid, &Selector::Last, &RollbackOptions::default())?)
}
