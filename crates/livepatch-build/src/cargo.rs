//! `cargo livepatch build`: cargo's own build with the linker wrapper in it.

mod artifacts;
mod session;
mod strip;

pub use strip::strip;

use crate::baseline::{ArtifactKind, Baseline, LinkRecord, Manifest, now};
use crate::config::{BuildArgs, Environment, Setup};
use crate::error::{Error, Result};
use crate::linker::{Mode, read_records};
use crate::source::record::{Finished, Roots};
use crate::store::{BlobStore, Store};
pub(crate) use artifacts::{Linked, remove_output};
pub(crate) use session::{Candidate, Session, SessionPlan};
use std::path::{Path, PathBuf};

/// What to build and how.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Arguments for `cargo build`, without `build`.
    pub args: Vec<String>,
    /// Where cargo is started.
    pub cwd: PathBuf,
    /// The executable that serves as linker: one that calls [`as_wrapper`](crate::linker::as_wrapper) first,
    /// normally `std::env::current_exe()`.
    pub wrapper: PathBuf,
}

/// One artifact with its baseline.
#[derive(Clone, Debug)]
pub struct Built {
    /// The baseline.
    pub manifest: Manifest,
    /// cargo's output, with debug information.
    pub output: PathBuf,
    /// The copy to ship.
    pub stripped: PathBuf,
    /// Whether cargo found it up to date.
    pub fresh: bool,
}

/// Builds, records the baseline of every executable and shared object, and leaves a stripped copy beside each.
///
/// # Errors
/// cargo fails, or an output has no record.
pub fn build(store: &Store, options: &BuildOptions) -> Result<Vec<Built>> {
    let _lock = store.lock_shared()?;
    let args = BuildArgs::parse(&options.args);
    let env = Environment::default();
    let setup = Setup::find(&options.cwd, &args, &env)?;
    let plan =
        SessionPlan { store, setup: &setup, args: &args, wrapper: &options.wrapper, mode: Mode::Baseline };
    let session = Session::start(&plan, env.clone(), None)?;
    let mut linked = session.run(&plan, None)?;
    if linked.is_empty() {
        return Err(Error::NoArtifact);
    }
    let unrecorded: Vec<_> = without_baseline(store, &linked, &read_records(session.records())?)?;
    if !unrecorded.is_empty() {
        let (fresh, lost): (Vec<_>, Vec<_>) = unrecorded.into_iter().partition(|linked| linked.fresh);
        if let Some(lost) = lost.first() {
            return Err(not_recorded(&lost.output, &setup, &args));
        }
        for linked in &fresh {
            tracing::info!(output = %linked.output.display(), "linking again: up to date, but without a baseline");
            remove_output(&linked.output, &setup.target_dir, &setup.build_dir)?;
        }
        linked = session.run(&plan, None)?;
    }
    let records = read_records(session.records())?;
    linked.into_iter().map(|linked| finish(&plan, &session, &env, &records, linked)).collect()
}

fn without_baseline(store: &Store, linked: &[Linked], records: &[LinkRecord]) -> Result<Vec<Linked>> {
    let mut missing = Vec::new();
    for one in linked {
        let build_id = one.build_id()?;
        let known = build_id.as_ref().is_some_and(|id| {
            records.iter().any(|record| record.build_id == *id)
                || Baseline::find(store, id).is_ok_and(|b| b.is_whole())
        });
        if !known {
            missing.push(one.clone());
        }
    }
    Ok(missing)
}

fn finish(
    plan: &SessionPlan<'_>,
    session: &Session,
    env: &Environment,
    records: &[LinkRecord],
    linked: Linked,
) -> Result<Built> {
    let SessionPlan { store, setup, args, .. } = *plan;
    let lost = || not_recorded(&linked.output, setup, args);
    let id = linked.build_id()?.ok_or_else(lost)?;
    let manifest = match records.iter().find(|record| record.build_id == id) {
        Some(record) => {
            let mut manifest = manifest(setup, args, env, record, &linked);
            add_sources(&mut manifest, &Roots::new(setup), setup, session, &linked, &store.blobs())?;
            Baseline::save(store, &manifest)?;
            manifest
        }
        None => Baseline::find(store, &id).map_err(|_| lost())?.manifest,
    };
    let mut stripped = linked.output.clone().into_os_string();
    stripped.push(".stripped");
    let stripped = PathBuf::from(stripped);
    strip(&linked.output, &stripped)?;
    Ok(Built { manifest, output: linked.output, stripped, fresh: linked.fresh })
}

/// Puts the sources of the session's build and how they were compiled on record.
pub(crate) fn add_sources(
    manifest: &mut Manifest,
    roots: &Roots,
    setup: &Setup,
    session: &Session,
    linked: &Linked,
    into: &BlobStore,
) -> Result<()> {
    let notes = session.units(&manifest.link);
    manifest.raw = crate::raw::keep(&notes, &manifest.link, into)?;
    manifest.units = notes.into_iter().map(|(_, unit)| unit).collect();
    let scripts = session.scripts();
    let started = session.started();
    let finished = Finished { setup, roots, linked, link: &manifest.link, scripts: &scripts, started };
    if let Some(recorded) = crate::source::record::record(&finished, into)? {
        manifest.sources = recorded.sources;
        manifest.surroundings = Some(recorded.surroundings);
    }
    Ok(())
}

/// The manifest of a link whose artifact is known.
pub(crate) fn manifest(
    setup: &Setup,
    args: &BuildArgs,
    env: &Environment,
    record: &LinkRecord,
    linked: &Linked,
) -> Manifest {
    let lockfile = std::fs::read(setup.workspace_root.join("Cargo.lock")).ok();
    Manifest {
        version: crate::baseline::MANIFEST_VERSION,
        artifact: linked.artifact.clone(),
        invocation: setup.invocation(args, env),
        link: record.clone(),
        created: now(),
        lockfile: lockfile.map(|bytes| livepatch_patch::Digest::of(&bytes)),
        sources: Vec::new(),
        raw: Vec::new(),
        units: Vec::new(),
        surroundings: None,
    }
}

pub(crate) fn not_recorded(output: &Path, setup: &Setup, args: &BuildArgs) -> Error {
    let flags = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"];
    let from_flags =
        flags.iter().find(|name| std::env::var(name).is_ok_and(|value| value.contains("linker=")));
    let advice = match from_flags {
        Some(name) => {
            format!("{name} sets `-C linker=…`; set CARGO_TARGET_{}_LINKER instead", env_triple(setup))
        }
        None if args.config.iter().any(|config| config.contains("linker")) => {
            format!("`--config` sets it; set CARGO_TARGET_{}_LINKER instead", env_triple(setup))
        }
        None => "if rustflags in .cargo/config.toml, build.rs or a RUSTC_WRAPPER set `-C linker=…`, write \
                 `linker = \"…\"` under `[target.TRIPLE]` instead"
            .to_owned(),
    };
    Error::NotRecorded { output: output.to_path_buf(), advice }
}

fn env_triple(setup: &Setup) -> String {
    setup.triples.first().map_or_else(|| "TRIPLE".into(), |triple| crate::config::env_name(triple))
}

/// Whether an artifact of this kind is one that users ship.
pub fn is_shipped(kind: ArtifactKind) -> bool {
    matches!(kind, ArtifactKind::Bin | ArtifactKind::Cdylib | ArtifactKind::Dylib)
}
