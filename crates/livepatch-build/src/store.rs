//! The folder in which baselines live.
//!
//! ```text
//! lock                      flock: shared while something is recorded, exclusive while something is removed
//! blobs/ab/ab12…            contents, named by their BLAKE3 digest, never changed once there
//! baselines/BUILD-ID.json   manifests; each refers to blobs
//! hashes/…                  digests of files seen before, by path, size, times and inode
//! linker/…                  symlinks under which the wrapper is started (see [`crate::linker`])
//! tmp/                      files on their way to their place, sessions of running builds
//! ```
//!
//! Everything is written under `tmp` and renamed, so that a reader and several linkers at once see whole files only.

mod blobs;
mod gc;
mod hashes;

pub use blobs::BlobStore;
pub(crate) use hashes::HashCache;

use crate::error::{Error, IoContext, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The baseline store.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// Keeps removal away while something is recorded, or everybody away while something is removed. Ends when dropped.
#[derive(Debug)]
pub struct StoreLock(#[allow(dead_code)] File);

impl Store {
    /// The user's store: `$LIVEPATCH_HOME`, else `$XDG_DATA_HOME/livepatch`, else `~/.local/share/livepatch`.
    ///
    /// # Errors
    /// None of the variables is set, or the folder cannot be created.
    pub fn locate() -> Result<Self> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = var("LIVEPATCH_HOME")
            .or_else(|| {
                var("XDG_DATA_HOME").filter(|path| path.is_absolute()).map(|path| path.join("livepatch"))
            })
            .or_else(|| var("HOME").map(|home| home.join(".local/share/livepatch")))
            .ok_or(Error::NoHome)?;
        Self::at(root)
    }

    /// A store in `root`, which is created if it is not there.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn at(root: impl AsRef<Path>) -> Result<Self> {
        let root = std::path::absolute(root.as_ref()).at("resolve", root.as_ref())?;
        for folder in ["blobs", "baselines", "hashes", "linker", "tmp"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).at("create the folder", &path)?;
        }
        Ok(Self { root })
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its contents by digest.
    pub fn blobs(&self) -> BlobStore {
        BlobStore::new(self.root.join("blobs"), self.tmp())
    }

    pub(crate) fn hashes(&self) -> HashCache {
        HashCache::new(self.root.join("hashes"), self.tmp())
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.root.join("baselines")
    }

    /// Held by whoever records: blobs without a manifest are kept meanwhile.
    pub(crate) fn lock_shared(&self) -> Result<StoreLock> {
        let (file, path) = self.lock_file()?;
        file.lock_shared().at("lock", path)?;
        Ok(StoreLock(file))
    }

    /// Held by whoever removes. Waits until nobody records.
    pub(crate) fn lock_exclusive(&self) -> Result<StoreLock> {
        let (file, path) = self.lock_file()?;
        file.lock().at("lock", path)?;
        Ok(StoreLock(file))
    }

    fn lock_file(&self) -> Result<(File, PathBuf)> {
        let path = self.root.join("lock");
        let file = File::options().create(true).append(true).open(&path).at("open", &path)?;
        Ok((file, path))
    }
}

/// Writes a file so that readers see all of it or nothing.
pub(crate) fn write_atomic(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let mut file = tempfile::NamedTempFile::new_in(tmp).at("create a file in", tmp)?;
    file.write_all(bytes).at("write", file.path())?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).at("create the folder", parent)?;
    }
    file.persist(path).map_err(|e| e.error).at("write", path)?;
    Ok(())
}
