//! Building the current source as the baseline was built.
//!
//! cargo runs with the recorded arguments and variables in a target folder of its own (`TARGET/livepatch`), so the
//! shipped output stays untouched and the next rebuild is incremental; the first starts from a copy of the user's. The
//! same linker wrapper keeps the last link of each output in `TARGET/livepatch/.livepatch` (the candidate); contents
//! that the store has anyway are not copied.
//!
//! Where the baseline's crates have other numbers, there is a second folder (`TARGET/livepatch-pinned`), because cargo does
//! not know that they were built otherwise.
//!
//! Paths that get into the program are mapped to what they were (see [`crate::linker`]).

mod seed;

use crate::baseline::{Artifact, Baseline, Invocation, LinkRecord, assemble};
use crate::build::Build;
use crate::cargo::{Candidate, Linked, Session, SessionPlan, add_sources, manifest, remove_output};
use crate::config::{BuildArgs, Environment, Setup};
use crate::error::{Error, IoContext, Result, utf8};
use crate::linker::{Mode, RustcWrapper, read_records};
use crate::source::record::Roots;
use crate::store::{BlobStore, Store};
use crate::timing::{measured, timed};
use crate::units::{self, Pins};
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How to rebuild.
#[derive(Clone, Debug)]
pub struct RebuildOptions {
    /// The executable that serves as wrapper, see [`BuildOptions`](crate::cargo::BuildOptions).
    pub wrapper: PathBuf,
    /// Root of the workspace that holds the changed source.
    pub workspace: PathBuf,
}

/// A finished rebuild.
#[derive(Debug)]
pub struct Rebuilt {
    /// What was built.
    pub build: Build,
    /// How long cargo took.
    pub cargo: Duration,
}

/// Builds the source in `options.workspace` as `baseline` was built.
///
/// Where cargo gives crates other numbers than in the baseline, as it does when a dependency is bumped, it builds a second
/// time with the baseline's (`units.rs`).
///
/// The contents that the result names stay until the next rebuild in the same target folder.
///
/// # Errors
/// Another compiler, a failing build, or a workspace without the baseline's artifact.
pub fn rebuild(store: &Store, baseline: &Baseline, options: &RebuildOptions) -> Result<Rebuilt> {
    let _store_lock = store.lock_shared()?;
    let recorded = &baseline.manifest.invocation;
    let args = BuildArgs::parse(&recorded.args);
    let env = Environment::of_baseline(recorded);
    let setup = Setup::find(&options.workspace.join(&recorded.cwd), &args, &env)?;
    same_compiler(recorded, &setup)?;
    let again = Again { store, baseline, wrapper: &options.wrapper, args: &args, env: &env, setup: &setup };
    let plain = Folder::open(recorded, &setup, PLAIN)?;
    let first = again.run(&plain, Pins::default())?;
    let pins = units::pins(&baseline.manifest.units, &first.build.manifest.units);
    if pins.is_empty() {
        return Ok(first);
    }
    tracing::info!("crates have other numbers than in the baseline; building again with the baseline's");
    let pinned = Folder::open(recorded, &setup, PINNED)?;
    let pins = pins.within(&setup.workspace_root, &recorded.workspace_root);
    let pins = pins.moved(&plain.target, &pinned.target);
    units::discard_unpinned(&pinned.target, &pins)?;
    let second = again.run(&pinned, pins)?;
    Ok(Rebuilt { cargo: first.cargo + second.cargo, ..second })
}

/// Names of the target folders of rebuilds, in the user's.
const PLAIN: &str = "livepatch";
const PINNED: &str = "livepatch-pinned";

/// A build like the baseline's.
struct Again<'a> {
    store: &'a Store,
    baseline: &'a Baseline,
    wrapper: &'a Path,
    args: &'a BuildArgs,
    env: &'a Environment,
    setup: &'a Setup,
}

impl Again<'_> {
    fn run(&self, folder: &Folder, pins: Pins) -> Result<Rebuilt> {
        let Self { store, setup, args, env, .. } = *self;
        let recorded = &self.baseline.manifest.invocation;
        let mode = Mode::Candidate { blobs: folder.blobs() };
        let plan = SessionPlan { store, setup, args, wrapper: self.wrapper, mode };
        let chained = setup.rustc_wrapper.clone();
        let candidate = Candidate {
            records: folder.records(),
            work: folder.tmp(),
            rustc: RustcWrapper { chained, remap: folder.remap(recorded, setup)?, pins },
        };
        let session = Session::start(&plan, env.clone(), Some(candidate))?;
        let mut cargo = Duration::ZERO;
        let mut again = |_| -> Result<Linked> {
            let (linked, took) = measured("cargo", || session.run(&plan, Some(&folder.target)));
            cargo += took;
            wanted(linked?, &self.baseline.manifest.artifact)
        };
        let stores = [store.blobs(), BlobStore::new(folder.blobs(), folder.tmp())];
        let mut linked = again(())?;
        let mut found = find(store, folder, &linked, &stores)?;
        if found.is_none() && linked.fresh {
            remove_output(&linked.output, &folder.target, &folder.target)?;
            linked = again(())?;
            found = find(store, folder, &linked, &stores)?;
        }
        folder.prune()?;
        let build = match found {
            Some(Found::Stored(baseline)) => baseline.build(),
            Some(Found::Candidate(record)) => {
                let mut manifest = manifest(setup, args, env, &record, &linked);
                let roots = Roots::new(setup)
                    .target(&folder.target)
                    .target(&recorded.build_dir)
                    .target(&recorded.target_dir)
                    .others(&recorded.workspace_root, &recorded.cargo_home);
                timed("record", || add_sources(&mut manifest, &roots, setup, &session, &linked, &stores[1]))?;
                timed("contents", || assemble(&manifest, &stores))
            }
            None => Err(crate::cargo::not_recorded(&linked.output, setup, args)),
        };
        Ok(Rebuilt { build: build?, cargo })
    }
}

fn same_compiler(recorded: &Invocation, setup: &Setup) -> Result<()> {
    if recorded.rustc == setup.rustc {
        return Ok(());
    }
    // The first line tells releases apart; builds of one release differ further down.
    let words = |text: &str| text.lines().collect::<Vec<_>>().join(", ");
    let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    let (baseline, current) = (first(&recorded.rustc), first(&setup.rustc));
    if baseline != current {
        return Err(Error::Toolchain { baseline, current });
    }
    Err(Error::Toolchain { baseline: words(&recorded.rustc), current: words(&setup.rustc) })
}

/// The artifact of the baseline among what was built.
fn wanted(linked: Vec<Linked>, artifact: &Artifact) -> Result<Linked> {
    let key = |a: &Artifact| (a.package.clone(), a.name.clone(), a.kind, a.test, a.triple.clone());
    linked
        .into_iter()
        .find(|linked| key(&linked.artifact) == key(artifact))
        .ok_or_else(|| Error::ArtifactGone { kind: artifact.kind.to_string(), name: artifact.name.clone() })
}

enum Found {
    /// The rebuild equals something in the store.
    Stored(Box<Baseline>),
    Candidate(Box<LinkRecord>),
}

/// The record of an output with all its contents.
fn find(store: &Store, folder: &Folder, linked: &Linked, stores: &[BlobStore]) -> Result<Option<Found>> {
    let Some(id) = linked.build_id()? else { return Ok(None) };
    let whole = |record: &LinkRecord| {
        let inputs = record.inputs.iter().map(|input| input.blob);
        inputs.chain([record.image, record.map]).all(|blob| stores.iter().any(|store| store.contains(&blob)))
    };
    let records = read_records(&folder.records())?;
    if let Some(record) = records.into_iter().find(|record| record.build_id == id && whole(record)) {
        return Ok(Some(Found::Candidate(Box::new(record))));
    }
    Ok(Baseline::find(store, &id)
        .ok()
        .filter(Baseline::is_whole)
        .map(|baseline| Found::Stored(Box::new(baseline))))
}

/// The target folder of rebuilds. One rebuild at a time uses it.
struct Folder {
    target: PathBuf,
    _lock: File,
}

impl Folder {
    fn open(recorded: &Invocation, setup: &Setup, name: &str) -> Result<Self> {
        // A baseline from here is rebuilt beside itself, also if it had a target folder of its own.
        let here = recorded.workspace_root == setup.workspace_root;
        let parent = if here { &recorded.target_dir } else { &setup.target_dir };
        let target = parent.join(name);
        let own = target.join(".livepatch");
        for folder in ["blobs", "records", "tmp"] {
            let path = own.join(folder);
            fs::create_dir_all(&path).at("create the folder", &path)?;
        }
        let path = own.join("lock");
        let lock = File::options().create(true).append(true).open(&path).at("open", &path)?;
        lock.lock().at("lock", &path)?;
        if here {
            seed::seed(recorded, &setup.triples, &target, &own.join("tmp"))?;
        }
        Ok(Self { target, _lock: lock })
    }

    fn own(&self) -> PathBuf {
        self.target.join(".livepatch")
    }

    fn blobs(&self) -> PathBuf {
        self.own().join("blobs")
    }

    fn records(&self) -> PathBuf {
        self.own().join("records")
    }

    fn tmp(&self) -> PathBuf {
        self.own().join("tmp")
    }

    /// Prefixes that differ from the baseline's build, the longer later because rustc takes the last that fits.
    fn remap(&self, recorded: &Invocation, setup: &Setup) -> Result<Vec<(String, String)>> {
        let pairs: [(&Path, &Path); 3] = [
            (&setup.workspace_root, &recorded.workspace_root),
            (&setup.cargo_home, &recorded.cargo_home),
            (&self.target, &recorded.build_dir),
        ];
        let mut remap = Vec::new();
        for (here, there) in pairs {
            if here != there {
                remap.push((utf8("the path", here)?, utf8("the path", there)?));
            }
        }
        remap.sort_by_key(|(here, _)| here.len());
        Ok(remap)
    }

    /// Removes contents that no record names any more.
    fn prune(&self) -> Result<()> {
        let mut keep = HashSet::new();
        for record in read_records(&self.records())? {
            keep.extend(record.inputs.iter().map(|input| input.blob.digest));
            keep.extend([record.image.digest, record.map.digest]);
        }
        for (digest, path) in BlobStore::new(self.blobs(), self.tmp()).all()? {
            if !keep.contains(&digest) {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        Ok(())
    }
}
