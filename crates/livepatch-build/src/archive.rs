//! One baseline as one file, so that CI can keep it and another machine can make a patch from it.
//!
//! A `.tar.zst` of `manifest.json`, which comes first, and `blobs/DIGEST` for everything that it refers to. Nothing in
//! an archive is believed: names are matched against the manifest and never used as paths, contents against their digest,
//! and the manifest is written last, so an import that fails leaves no baseline.

use crate::baseline::{Baseline, BlobRef, Manifest, blobs, parse_manifest};
use crate::error::{Error, IoContext, Result};
use crate::linker::build_id;
use crate::store::Store;
use livepatch_patch::Digest;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write as _};
use std::path::Path;

const MANIFEST: &str = "manifest.json";
const BLOBS: &str = "blobs/";
/// Objects and debug information shrink to a quarter at this level in a few seconds.
const LEVEL: i32 = 6;
/// Longest manifest that is read.
const MAX_MANIFEST: u64 = 256 << 20;

impl Baseline {
    /// Writes a baseline to an archive. The file appears whole or not at all.
    ///
    /// # Errors
    /// There is no such baseline, it is damaged, or the file cannot be written.
    pub fn export(store: &Store, id_or_prefix: &str, file: &Path) -> Result<Manifest> {
        let _lock = store.lock_shared()?;
        let baseline = Self::open(store, id_or_prefix)?;
        let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let tmp = tempfile::NamedTempFile::new_in(folder).at("create a file in", folder)?;
        let writer = BufWriter::new(tmp.as_file());
        let encoder = zstd::Encoder::new(writer, LEVEL).at("write", file)?;
        let mut tar = tar::Builder::new(encoder);
        let json = serde_json::to_vec_pretty(&baseline.manifest).unwrap_or_default();
        append(&mut tar, MANIFEST, &json).at("write", file)?;
        for blob in unique(&baseline.manifest).into_values() {
            let bytes = store.blobs().read(&blob)?;
            append(&mut tar, &format!("{BLOBS}{}", blob.digest), &bytes).at("write", file)?;
        }
        let mut writer = tar.into_inner().and_then(zstd::Encoder::finish).at("write", file)?;
        writer.flush().at("write", file)?;
        drop(writer);
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        tmp.as_file().set_permissions(readable).at("set the mode of", file)?;
        tmp.persist(file).map_err(|e| e.error).at("write", file)?;
        Ok(baseline.manifest)
    }

    /// Takes a baseline in from an archive. One that is already here is replaced.
    ///
    /// # Errors
    /// The file is not such an archive, is damaged, or the store cannot be written.
    pub fn import(store: &Store, file: &Path) -> Result<Manifest> {
        let _lock = store.lock_shared()?;
        let reader = BufReader::new(File::open(file).at("read", file)?);
        let decoder = zstd::Decoder::with_buffer(reader).map_err(|e| damaged(file, &e.to_string()))?;
        let mut tar = tar::Archive::new(decoder);
        let mut entries = tar.entries().map_err(|e| damaged(file, &e.to_string()))?;
        let first = entries.next().ok_or_else(|| damaged(file, "it is empty"))?;
        let manifest = read_manifest(file, first.map_err(|e| damaged(file, &e.to_string()))?)?;
        let mut wanted = unique(&manifest);
        for entry in entries {
            let entry = entry.map_err(|e| damaged(file, &e.to_string()))?;
            take_blob(store, file, entry, &mut wanted)?;
        }
        if let Some(missing) = wanted.keys().next() {
            return Err(damaged(file, &format!("contents {} are missing", missing.short())));
        }
        let image = store.blobs().require(&manifest.link.image)?;
        if build_id(&image)?.as_ref() != Some(manifest.build_id()) {
            return Err(damaged(file, "its image has another build-id than its manifest"));
        }
        Self::save(store, &manifest)?;
        Ok(manifest)
    }
}

fn append(tar: &mut tar::Builder<impl std::io::Write>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes)
}

fn unique(manifest: &Manifest) -> HashMap<Digest, BlobRef> {
    blobs(manifest).map(|blob| (blob.digest, blob)).collect()
}

fn read_manifest(file: &Path, entry: tar::Entry<'_, impl Read>) -> Result<Manifest> {
    if name(file, &entry)? != MANIFEST || !entry.header().entry_type().is_file() {
        return Err(damaged(file, "it does not start with a manifest"));
    }
    if entry.size() > MAX_MANIFEST {
        return Err(damaged(file, "its manifest is too large"));
    }
    let mut bytes = Vec::new();
    entry.take(MAX_MANIFEST).read_to_end(&mut bytes).map_err(|e| damaged(file, &e.to_string()))?;
    parse_manifest(file, &bytes)
}

fn take_blob(
    store: &Store,
    file: &Path,
    mut entry: tar::Entry<'_, impl Read>,
    wanted: &mut HashMap<Digest, BlobRef>,
) -> Result<()> {
    let name = name(file, &entry)?;
    let digest = name.strip_prefix(BLOBS).and_then(|digits| digits.parse::<Digest>().ok());
    let Some(blob) = digest.and_then(|digest| wanted.remove(&digest)) else {
        return Err(damaged(
            file,
            &format!("it holds `{}`, which its manifest does not name", name.escape_debug()),
        ));
    };
    if !entry.header().entry_type().is_file() || entry.size() != blob.size {
        return Err(damaged(file, &format!("contents {} have another size", blob.digest.short())));
    }
    let stored = store.blobs().put(&mut entry, file).map_err(|error| match error {
        Error::Io { action: "read", source, .. } => damaged(file, &source.to_string()),
        other => other,
    })?;
    if stored != blob {
        return Err(damaged(file, &format!("contents {} do not fit their digest", blob.digest.short())));
    }
    Ok(())
}

fn name(file: &Path, entry: &tar::Entry<'_, impl Read>) -> Result<String> {
    String::from_utf8(entry.path_bytes().into_owned())
        .map_err(|_| damaged(file, "it holds a name that is not UTF-8"))
}

fn damaged(file: &Path, what: &str) -> Error {
    Error::Damaged {
        path: file.to_path_buf(),
        what: format!("not a whole baseline archive: {what}; export it again"),
    }
}
