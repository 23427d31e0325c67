//! Removal of what no baseline refers to.

use super::Store;
use crate::error::{IoContext, Result};
use livepatch_patch::Digest;
use std::collections::HashSet;
use std::fs;

impl Store {
    /// Removes every blob that is not in `keep` and leftovers of killed builds, and says how many bytes that freed.
    /// The caller holds the exclusive lock, so nobody is recording.
    pub(crate) fn sweep(&self, keep: &HashSet<Digest>) -> Result<u64> {
        let mut freed = 0;
        for (digest, path) in self.blobs().all()? {
            if !keep.contains(&digest) {
                freed += fs::metadata(&path).at("read", &path)?.len();
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        let tmp = self.tmp();
        for entry in fs::read_dir(&tmp).at("list", &tmp)? {
            let path = entry.at("list", &tmp)?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.at("remove", &path)?;
        }
        Ok(freed)
    }
}
