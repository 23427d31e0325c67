//! `cargo livepatch build`: cargo's build, the baseline kept, a stripped copy to ship.

use super::place::{self, Place};
use crate::exit::Failure;
use crate::output::Outcome;
use livepatch_build::cargo::{self, BuildOptions, Built};
use serde_json::{Value, json};
use std::path::Path;

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// Arguments for `cargo build`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CARGO ARGS")]
    args: Vec<String>,
}

impl BuildArgs {
    /// Whether `--json` stands among the arguments for cargo, which knows no such option.
    pub(crate) fn json(&self) -> bool {
        self.args.iter().any(|arg| arg == "--json")
    }
}

/// Builds in the current folder.
pub(crate) fn run(args: &BuildArgs) -> Result<Outcome, Failure> {
    let args: Vec<String> = args.args.iter().filter(|arg| *arg != "--json").cloned().collect();
    let built = build(&Place::current()?, args)?;
    let artifacts: Vec<Value> = built.iter().map(describe).collect();
    let human: Vec<String> = built.iter().map(text).collect();
    Outcome::done(&json!({"artifacts": artifacts}), human.join("\n"))
}

/// Builds in a folder.
pub(crate) fn build(place: &Place, args: Vec<String>) -> Result<Vec<Built>, Failure> {
    let options = BuildOptions { args, cwd: place.folder.clone(), wrapper: place::this_program()? };
    Ok(cargo::build(&place.store, &options)?)
}

fn describe(built: &Built) -> Value {
    let artifact = &built.manifest.artifact;
    json!({
        "package": artifact.package,
        "name": artifact.name,
        "kind": artifact.kind,
        "build_id": built.manifest.build_id(),
        "output": built.output,
        "stripped": built.stripped,
        "fresh": built.fresh,
    })
}

fn text(built: &Built) -> String {
    let artifact = &built.manifest.artifact;
    let id = built.manifest.build_id().to_string();
    format!(
        "{} `{}`: baseline {id}\n  ship {}",
        artifact.kind,
        artifact.name,
        relative(&built.stripped).display()
    )
}

/// The path as a person in the current folder would write it.
pub(super) fn relative(path: &Path) -> &Path {
    std::env::current_dir().ok().and_then(|folder| path.strip_prefix(folder).ok()).unwrap_or(path)
}
