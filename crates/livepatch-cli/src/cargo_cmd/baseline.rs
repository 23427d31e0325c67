//! `cargo livepatch baseline`: the kept builds.

use crate::exit::{Exit, Failure};
use crate::output::{Outcome, bytes};
use livepatch_build::baseline::{Baseline, Manifest};
use livepatch_build::store::Store;
use serde_json::{Value, json};
use std::path::PathBuf;

/// What to do with baselines.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BaselineCommand {
    /// List them, newest first.
    List,
    /// Write one into an archive, so that another machine can make patches from it.
    Export {
        /// Build-id, or its beginning.
        id: String,
        /// The archive to write (default: NAME-BUILDID.tar.zst).
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Take one from an archive.
    Import {
        /// The archive.
        file: PathBuf,
    },
    /// Remove one and everything that only it needs.
    Remove {
        /// Build-id, or its beginning.
        id: String,
    },
}

/// Does it.
pub(crate) fn run(command: &BaselineCommand) -> Result<Outcome, Failure> {
    let store = Store::locate()?;
    match command {
        BaselineCommand::List => list(&store),
        BaselineCommand::Export { id, output } => export(&store, id, output.clone()),
        BaselineCommand::Import { file } => {
            let manifest = Baseline::import(&store, file)?;
            Outcome::done(
                &json!({"baselines": [describe(&manifest)]}),
                format!("imported {}", text(&manifest)),
            )
        }
        BaselineCommand::Remove { id } => {
            let removed = Baseline::remove(&store, id)?;
            Outcome::done(
                &json!({"removed": id, "freed_bytes": removed.freed}),
                format!("freed {}", bytes(removed.freed)),
            )
        }
    }
}

fn list(store: &Store) -> Result<Outcome, Failure> {
    let all = Baseline::list(store)?;
    let human = if all.is_empty() {
        format!("no baselines in {}", store.root().display())
    } else {
        all.iter().map(text).collect::<Vec<_>>().join("\n")
    };
    let list: Vec<Value> = all.iter().map(describe).collect();
    Outcome::done(&json!({"store": store.root(), "baselines": list}), human)
}

fn export(store: &Store, id: &str, output: Option<PathBuf>) -> Result<Outcome, Failure> {
    let manifest = Baseline::open(store, id)?.manifest;
    let file = output.unwrap_or_else(|| {
        let short: String = manifest.build_id().to_string().chars().take(12).collect();
        format!("{}-{short}.tar.zst", manifest.artifact.name).into()
    });
    Baseline::export(store, id, &file)?;
    let size = std::fs::metadata(&file)
        .map_err(|error| Failure::new(Exit::Error, format!("cannot read {}: {error}", file.display())))?
        .len();
    let report = json!({"file": file, "bytes": size, "baselines": [describe(&manifest)]});
    Outcome::done(&report, format!("wrote {} ({})", file.display(), bytes(size)))
}

fn describe(manifest: &Manifest) -> Value {
    let artifact = &manifest.artifact;
    json!({
        "build_id": manifest.build_id(),
        "package": artifact.package,
        "version": artifact.package_version,
        "name": artifact.name,
        "kind": artifact.kind,
        "triple": artifact.triple,
        "profile": manifest.invocation.profile,
        "workspace": manifest.invocation.workspace_root,
        "created": manifest.created,
    })
}

fn text(manifest: &Manifest) -> String {
    let (artifact, invocation) = (&manifest.artifact, &manifest.invocation);
    format!(
        "{}  {} {} ({}, {}) in {}",
        manifest.build_id(),
        artifact.name,
        artifact.package_version,
        artifact.kind,
        invocation.profile,
        invocation.workspace_root.display()
    )
}
