//! Baselines: what was recorded about an artifact when it was linked.

mod manifest;

pub use manifest::{
    Artifact, ArtifactKind, BlobRef, InputKind, InputRecord, Invocation, LinkRecord, MANIFEST_VERSION,
    Manifest, SourceRecord,
};

use crate::build::{Build, Input};
use crate::error::{Error, IoContext, Result};
use crate::linkmap::LinkMap;
use crate::store::{BlobStore, Store, write_atomic};
use livepatch_patch::BuildId;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A baseline in a store.
#[derive(Clone, Debug)]
pub struct Baseline {
    /// What it says about itself.
    pub manifest: Manifest,
    store: Store,
}

/// What a removal did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Bytes that no other baseline needed.
    pub freed: u64,
}

impl Baseline {
    /// The baseline with this build-id, or the only one whose build-id starts so.
    ///
    /// # Errors
    /// There is none, several fit, or it is incomplete.
    pub fn open(store: &Store, id_or_prefix: &str) -> Result<Self> {
        let prefix = id_or_prefix.to_ascii_lowercase();
        let mut fitting: Vec<BuildId> = ids(store)?;
        fitting.retain(|id| id.to_string().starts_with(&prefix));
        match fitting.as_slice() {
            [id] if !prefix.is_empty() => Self::find(store, id)?.whole(),
            [] => Err(no_baseline(store, &format!("`{id_or_prefix}`"))),
            _ => match fitting.iter().find(|id| id.to_string() == prefix) {
                Some(id) => Self::find(store, id)?.whole(),
                None => Err(Error::Ambiguous { prefix, candidates: fitting }),
            },
        }
    }

    /// The newest baseline of a workspace, of the artifact with this name if one is given. Without a name the
    /// workspace must have baselines of one shipped artifact only.
    ///
    /// # Errors
    /// There is none, or the choice is not unique.
    pub fn latest_for(store: &Store, workspace: &Path, name: Option<&str>) -> Result<Self> {
        let mut all = Self::list(store)?;
        all.retain(|manifest| manifest.invocation.workspace_root == workspace);
        match name {
            Some(name) => all.retain(|m| m.artifact.name == name || m.artifact.file_name == name),
            None if all.iter().any(|m| crate::cargo::is_shipped(m.artifact.kind)) => {
                all.retain(|m| crate::cargo::is_shipped(m.artifact.kind));
            }
            None => {}
        }
        let mut names: Vec<String> = all.iter().map(|m| m.artifact.name.clone()).collect();
        names.sort();
        names.dedup();
        if names.len() > 1 {
            return Err(Error::SeveralArtifacts { names });
        }
        let newest = all.into_iter().max_by_key(|manifest| manifest.created);
        let manifest = newest.ok_or_else(|| {
            no_baseline(
                store,
                &name.map_or_else(|| "of this workspace".to_owned(), |name| format!("`{name}`")),
            )
        })?;
        Self { manifest, store: store.clone() }.whole()
    }

    /// Every manifest of the store, newest first.
    ///
    /// # Errors
    /// A manifest cannot be read.
    pub fn list(store: &Store) -> Result<Vec<Manifest>> {
        let all: Result<Vec<_>> = ids(store)?.iter().map(|id| Ok(Self::find(store, id)?.manifest)).collect();
        let mut all = all?;
        all.sort_by_key(|manifest| std::cmp::Reverse(manifest.created));
        Ok(all)
    }

    /// Removes a baseline and whatever no other needs. Waits for builds that are recording.
    ///
    /// # Errors
    /// There is no such baseline, or a file cannot be removed.
    pub fn remove(store: &Store, id_or_prefix: &str) -> Result<Removed> {
        let _lock = store.lock_exclusive()?;
        let id = match Self::open(store, id_or_prefix) {
            Ok(baseline) => baseline.manifest.build_id().clone(),
            // A damaged baseline can be removed as well, by its full id.
            Err(error @ Error::Damaged { .. }) => id_or_prefix.parse().map_err(|_| error)?,
            Err(error) => return Err(error),
        };
        let path = manifest_path(store, &id);
        fs::remove_file(&path).at("remove", &path)?;
        let mut keep = HashSet::new();
        for manifest in Self::list(store)? {
            keep.extend(blobs(&manifest).map(|blob| blob.digest));
        }
        Ok(Removed { freed: store.sweep(&keep)? })
    }

    /// The baseline as a finished link.
    ///
    /// # Errors
    /// Contents are missing or the map is damaged.
    pub fn build(&self) -> Result<Build> {
        assemble(&self.manifest, &[self.store.blobs()])
    }

    pub(crate) fn find(store: &Store, id: &BuildId) -> Result<Self> {
        let path = manifest_path(store, id);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(no_baseline(store, &format!("`{id}`")));
            }
            other => other.at("read", &path)?,
        };
        Ok(Self { manifest: parse_manifest(&path, &bytes)?, store: store.clone() })
    }

    pub(crate) fn save(store: &Store, manifest: &Manifest) -> Result<()> {
        let json = serde_json::to_vec_pretty(manifest).unwrap_or_default();
        write_atomic(&store.tmp(), &manifest_path(store, manifest.build_id()), &json)
    }

    /// Whether all contents are in the store.
    pub(crate) fn is_whole(&self) -> bool {
        let store = self.store.blobs();
        blobs(&self.manifest).all(|blob| store.contains(&blob))
    }

    fn whole(self) -> Result<Self> {
        let store = self.store.blobs();
        for blob in blobs(&self.manifest) {
            store.require(&blob)?;
        }
        Ok(self)
    }
}

/// Reads a manifest; the version is looked at before the rest.
pub(crate) fn parse_manifest(path: &Path, bytes: &[u8]) -> Result<Manifest> {
    let damaged = |e: serde_json::Error| Error::Damaged {
        path: path.to_path_buf(),
        what: format!("not a baseline's manifest ({e}); build or import the baseline again"),
    };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(damaged)?;
    let found = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0) as u32;
    if found != MANIFEST_VERSION {
        return Err(Error::Version { path: path.to_path_buf(), found, expected: MANIFEST_VERSION });
    }
    serde_json::from_value(value).map_err(damaged)
}

/// A link with its contents looked up in several places, the first that has them.
pub(crate) fn assemble(manifest: &Manifest, stores: &[BlobStore]) -> Result<Build> {
    let home = |blob: &BlobRef| stores.iter().find(|store| store.contains(blob)).unwrap_or(&stores[0]);
    let locate = |blob: &BlobRef| home(blob).require(blob);
    let map_path = locate(&manifest.link.map)?;
    let bad_map = |what: String| Error::Map { path: map_path.clone(), what };
    let text = zstd::stream::decode_all(fs::File::open(&map_path).at("read", &map_path)?)
        .map_err(|e| bad_map(e.to_string()))?;
    let map = LinkMap::parse(&String::from_utf8_lossy(&text)).map_err(|e| bad_map(e.to_string()))?;
    let mut inputs = Vec::with_capacity(manifest.link.inputs.len());
    for input in &manifest.link.inputs {
        let blob = locate(&input.blob)?;
        inputs.push(Input { path: input.path.clone(), kind: input.kind, digest: input.blob.digest, blob });
    }
    let locate_source = |source: &SourceRecord| Ok((source.path.clone(), locate(&source.blob)?));
    let sources = manifest.sources.iter().map(locate_source).collect::<Result<_>>()?;
    let raw = manifest.raw.iter().map(locate_source).collect::<Result<_>>()?;
    Ok(Build { image: locate(&manifest.link.image)?, map, inputs, sources, raw, manifest: manifest.clone() })
}

/// All contents that a manifest refers to.
pub(crate) fn blobs(manifest: &Manifest) -> impl Iterator<Item = BlobRef> {
    let link = &manifest.link;
    let sources = manifest.sources.iter().chain(&manifest.raw).map(|source| source.blob);
    link.inputs.iter().map(|input| input.blob).chain([link.image, link.map]).chain(sources)
}

fn ids(store: &Store) -> Result<Vec<BuildId>> {
    let folder = store.manifests();
    let mut ids = Vec::new();
    for entry in fs::read_dir(&folder).at("list", &folder)? {
        let name = entry.at("list", &folder)?.file_name();
        ids.extend(name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok()));
    }
    Ok(ids)
}

pub(crate) fn manifest_path(store: &Store, id: &BuildId) -> PathBuf {
    store.manifests().join(format!("{id}.json"))
}

fn no_baseline(store: &Store, wanted: &str) -> Error {
    Error::NoBaseline { wanted: wanted.to_owned(), store: store.root().to_path_buf() }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
