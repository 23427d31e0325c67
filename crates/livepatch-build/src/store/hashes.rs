//! Digests of files that were seen before.
//!
//! Most inputs of a link are the same 30 MB of standard library every time. A digest is reused if path, size, inode,
//! modification and change time are as they were, and if the file was already some seconds old when it was hashed:
//! a file written twice within one tick of the clock would look the same.

use super::{BlobStore, blobs, write_atomic};
use crate::baseline::BlobRef;
use crate::error::{IoContext, Result};
use livepatch_patch::Digest;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Coarser than the clock of any file system in use.
const TICK: Duration = Duration::from_secs(3);

/// The cache, one small file for each path.
#[derive(Clone, Debug)]
pub(crate) struct HashCache {
    root: PathBuf,
    tmp: PathBuf,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct Entry {
    stamp: Stamp,
    blob: BlobRef,
}

/// Changes whenever the contents do.
#[derive(PartialEq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl HashCache {
    pub(crate) fn new(root: PathBuf, tmp: PathBuf) -> Self {
        Self { root, tmp }
    }

    /// Digest of a file, and where its contents are kept: in `kept` if that has them, else copied to `into`.
    pub(crate) fn put(&self, path: &Path, kept: &BlobStore, into: &BlobStore) -> Result<BlobRef> {
        let meta = fs::metadata(path).at("read", path)?;
        let stamp = Stamp::of(&meta);
        let known = self.entry(path).filter(|entry| entry.stamp == stamp).map(|entry| entry.blob);
        if let Some(blob) = known
            && (kept.contains(&blob) || into.contains(&blob))
        {
            return Ok(blob);
        }
        let blob = blobs::digest_file(path)?;
        let blob = if kept.contains(&blob) || into.contains(&blob) { blob } else { into.put_file(path)? };
        let settled = meta
            .modified()
            .is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > TICK));
        let unchanged = fs::metadata(path).is_ok_and(|meta| Stamp::of(&meta) == stamp);
        if settled && unchanged && blob.size == stamp.size {
            let entry = serde_json::to_vec(&Entry { stamp, blob }).unwrap_or_default();
            write_atomic(&self.tmp, &self.file(path), &entry)?;
        }
        Ok(blob)
    }

    fn entry(&self, path: &Path) -> Option<Entry> {
        serde_json::from_slice(&fs::read(self.file(path)).ok()?).ok()
    }

    fn file(&self, path: &Path) -> PathBuf {
        let name = Digest::of(path.as_os_str().as_encoded_bytes()).to_string();
        self.root.join(&name[..2]).join(&name[2..])
    }
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            size: meta.len(),
            device: meta.dev(),
            inode: meta.ino(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewritten_file_gets_its_own_digest() {
        let folder = tempfile::tempdir().unwrap();
        let tmp = folder.path().to_path_buf();
        let cache = HashCache::new(tmp.join("hashes"), tmp.clone());
        let blobs = BlobStore::new(tmp.join("blobs"), tmp.clone());
        let path = tmp.join("input");
        let old = SystemTime::now() - Duration::from_secs(3600);
        let put = |contents: &str| {
            fs::write(&path, contents).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
            cache.put(&path, &blobs, &blobs).unwrap().digest
        };
        let first = put("one");
        assert!(cache.entry(&path).is_some(), "an old file is remembered");
        assert_eq!(cache.put(&path, &blobs, &blobs).unwrap().digest, first);
        // Same size and, set back on purpose, same modification time: the change time still differs.
        assert_ne!(put("two"), first);
        assert_eq!(put("one"), first);
    }
}
