//! Contents under their digest.

use crate::baseline::BlobRef;
use crate::error::{Error, IoContext, Result};
use livepatch_patch::Digest;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A folder of files named by the BLAKE3 digest of their contents.
///
/// Contents are always copied, never linked: a compiler or archiver may write the original in place later.
#[derive(Clone, Debug)]
pub struct BlobStore {
    root: PathBuf,
    tmp: PathBuf,
}

impl BlobStore {
    pub(crate) fn new(root: PathBuf, tmp: PathBuf) -> Self {
        Self { root, tmp }
    }

    /// Where contents with this digest are, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join(&name[..2]).join(name)
    }

    /// Whether contents are here, whole as far as their size tells.
    pub fn contains(&self, blob: &BlobRef) -> bool {
        fs::metadata(self.path(&blob.digest)).is_ok_and(|meta| meta.is_file() && meta.len() == blob.size)
    }

    /// Copies a file in.
    ///
    /// # Errors
    /// The file cannot be read or the copy not written.
    pub fn put_file(&self, path: &Path) -> Result<BlobRef> {
        let mut file = File::open(path).at("read", path)?;
        self.put(&mut file, path)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// The copy cannot be written.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<BlobRef> {
        let blob = BlobRef { digest: Digest::of(bytes), size: bytes.len() as u64 };
        if !self.contains(&blob) {
            let mut file = NamedTempFile::new_in(&self.tmp).at("create a file in", &self.tmp)?;
            file.write_all(bytes).at("write", file.path())?;
            self.settle(file, &blob)?;
        }
        Ok(blob)
    }

    /// Copies what `source` gives in; the digest is of the bytes that were copied.
    ///
    /// # Errors
    /// Reading or writing fails; `path` stands in the message.
    pub(crate) fn put(&self, source: &mut impl Read, path: &Path) -> Result<BlobRef> {
        let mut file = NamedTempFile::new_in(&self.tmp).at("create a file in", &self.tmp)?;
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = source.read(&mut buffer).at("read", path)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            file.write_all(&buffer[..count]).at("write", file.path())?;
            size += count as u64;
        }
        let blob = BlobRef { digest: Digest(*hasher.finalize().as_bytes()), size };
        if !self.contains(&blob) {
            self.settle(file, &blob)?;
        }
        Ok(blob)
    }

    fn settle(&self, file: NamedTempFile, blob: &BlobRef) -> Result<()> {
        let path = self.path(&blob.digest);
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).at("create the folder", folder)?;
        file.persist(&path).map_err(|e| e.error).at("write", &path)?;
        Ok(())
    }

    /// Reads contents and checks them against their name.
    ///
    /// # Errors
    /// They cannot be read or are damaged.
    pub fn read(&self, blob: &BlobRef) -> Result<Vec<u8>> {
        let path = self.path(&blob.digest);
        let bytes = fs::read(&path).at("read", &path)?;
        if Digest::of(&bytes) != blob.digest {
            return Err(damaged(path));
        }
        Ok(bytes)
    }

    /// The path of contents that must be here.
    ///
    /// # Errors
    /// They are missing or have another size.
    pub fn require(&self, blob: &BlobRef) -> Result<PathBuf> {
        let path = self.path(&blob.digest);
        if self.contains(blob) { Ok(path) } else { Err(damaged(path)) }
    }

    /// Every blob here with its path. Other files are ignored.
    pub(crate) fn all(&self) -> Result<Vec<(Digest, PathBuf)>> {
        let mut found = Vec::new();
        for folder in fs::read_dir(&self.root).at("list", &self.root)? {
            let folder = folder.at("list", &self.root)?.path();
            if !folder.is_dir() {
                continue;
            }
            for file in fs::read_dir(&folder).at("list", &folder)? {
                let path = file.at("list", &folder)?.path();
                let digest = path.file_name().and_then(|name| name.to_str()?.parse().ok());
                found.extend(digest.map(|digest| (digest, path)));
            }
        }
        Ok(found)
    }
}

fn damaged(path: PathBuf) -> Error {
    Error::Damaged {
        path,
        what: "the contents are missing or damaged; remove this baseline and import or build it again".into(),
    }
}

/// Digest and size of a file, read in pieces.
pub(crate) fn digest_file(path: &Path) -> Result<BlobRef> {
    let file = File::open(path).at("read", path)?;
    let size = file.metadata().at("read", path)?.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).at("read", path)?;
    Ok(BlobRef { digest: Digest(*hasher.finalize().as_bytes()), size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_come_back_and_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::new(folder.path().join("blobs"), folder.path().to_path_buf());
        let original = folder.path().join("original");
        fs::write(&original, b"abc").unwrap();
        let blob = blobs.put_file(&original).unwrap();
        assert_eq!(blob, blobs.put_bytes(b"abc").unwrap());
        assert_eq!(blob, digest_file(&original).unwrap());
        fs::write(&original, b"abd").unwrap();
        assert_eq!(blobs.read(&blob).unwrap(), b"abc");
        fs::write(blobs.path(&blob.digest), b"abd").unwrap();
        assert!(matches!(blobs.read(&blob), Err(Error::Damaged { .. })));
        fs::write(blobs.path(&blob.digest), b"").unwrap();
        assert!(blobs.require(&blob).is_err());
    }
}
