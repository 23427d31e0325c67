//! Where a command works: a folder of the user's and the baseline store.

use crate::exit::{Exit, Failure};
use livepatch_build::store::Store;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder in a cargo workspace, with the store.
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    pub(crate) store: Store,
}

impl Place {
    pub(crate) fn current() -> Result<Self, Failure> {
        let folder = std::env::current_dir()
            .map_err(|error| Failure::new(Exit::Error, format!("cannot find the current folder: {error}")))?;
        Self::at(&folder)
    }

    pub(crate) fn at(folder: &Path) -> Result<Self, Failure> {
        Ok(Self { folder: folder.to_owned(), store: Store::locate()? })
    }

    /// The root of the workspace that the folder is in.
    pub(crate) fn workspace(&self) -> Result<PathBuf, Failure> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["locate-project", "--workspace", "--message-format=plain"])
            .current_dir(&self.folder)
            .output()
            .map_err(|error| Failure::new(Exit::Error, format!("cannot start cargo: {error}")))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(Exit::Error, message.trim().to_owned()));
        }
        let manifest = String::from_utf8_lossy(&output.stdout);
        Ok(Path::new(manifest.trim()).parent().unwrap_or(&self.folder).to_owned())
    }
}

/// This program: as linker wrapper it is called again by cargo.
pub(crate) fn this_program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Error, format!("cannot find this program's own file: {error}")))
}
