//! What the wrappers are told by the command that started the build, and where they are started from.

use crate::error::{Error, IoContext, Result, utf8};
use crate::store::Store;
use crate::units::Pins;
use livepatch_patch::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Written by the build, read by every wrapper of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// Root of the store.
    pub store: PathBuf,
    /// The real linker for each target triple.
    pub linkers: BTreeMap<String, String>,
    /// A folder for temporary files.
    pub work: PathBuf,
    /// Where link records are written.
    pub records: PathBuf,
    /// Where contents are written.
    pub mode: Mode,
    /// How rustc is wrapped.
    pub rustc: RustcWrapper,
}

/// Where the contents of a link are kept.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// In the store.
    Baseline,
    /// In a folder of the rebuild, except what the store has anyway.
    Candidate {
        /// That folder.
        blobs: PathBuf,
    },
}

/// How rustc is run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RustcWrapper {
    /// The user's own wrapper.
    pub chained: Option<String>,
    /// Path prefixes as they are here and as they were in the baseline's build, the more specific later.
    pub remap: Vec<(String, String)>,
    /// What stands for units that the baseline had under other numbers.
    pub pins: Pins,
}

impl State {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).at("read", path)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Damaged {
            path: path.to_path_buf(),
            what: format!("not the state of a build: {e}"),
        })
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        fs::write(path, bytes).at("write", path)
    }
}

/// As what the executable was started.
pub(super) enum Role {
    Linker { triple: String },
    Rustc,
}

/// The folder of symlinks to one executable: `linker/HASH/TRIPLE/NAME` and `linker/HASH/rustc/livepatch-rustc`.
pub(crate) struct Entry {
    folder: PathBuf,
    executable: PathBuf,
}

const RUSTC: &str = "livepatch-rustc";
const MARK: &str = "livepatch-entry-";

impl Entry {
    /// The entries for an executable. Their paths depend on the executable's path only.
    pub(crate) fn new(store: &Store, executable: &Path) -> Self {
        let hash = Digest::of(executable.as_os_str().as_encoded_bytes()).short();
        Self {
            folder: store.root().join("linker").join(format!("{MARK}{hash}")),
            executable: executable.to_path_buf(),
        }
    }

    /// A path that starts the executable as linker for `triple`, with the file name of the real one.
    pub(crate) fn linker(&self, triple: &str, linker: &str) -> Result<String> {
        let name = Path::new(linker).file_name().unwrap_or(linker.as_ref());
        self.link(&self.folder.join(triple).join(name))
    }

    /// A path that starts the executable as compiler wrapper.
    pub(crate) fn rustc(&self) -> Result<String> {
        self.link(&self.folder.join("rustc").join(RUSTC))
    }

    fn link(&self, path: &Path) -> Result<String> {
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).at("create the folder", folder)?;
        if fs::read_link(path).is_ok_and(|target| target == self.executable) {
            return utf8("the path of the store", path);
        }
        // Renamed into place, so that a build running at the same time never finds it missing.
        let tmp = tempfile::tempdir_in(folder).at("create a folder in", folder)?;
        let fresh = tmp.path().join("link");
        std::os::unix::fs::symlink(&self.executable, &fresh).at("create the link", &fresh)?;
        fs::rename(&fresh, path).at("create the link", path)?;
        utf8("the path of the store", path)
    }

    /// The role that a path of [`Entry::linker`] or [`Entry::rustc`] stands for.
    pub(super) fn role(called: &Path) -> Option<Role> {
        let folder = called.parent()?;
        folder.parent()?.file_name()?.to_str()?.strip_prefix(MARK)?;
        if called.file_name()? == RUSTC {
            return Some(Role::Rustc);
        }
        Some(Role::Linker { triple: folder.file_name()?.to_str()?.to_owned() })
    }
}
