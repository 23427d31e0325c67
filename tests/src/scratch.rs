//! Folders for projects and programs, which are gone when the test program is, however it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// Waits until the test program's end closes the pipe. What is built once for all tests of a program is never dropped
/// and takes gigabytes.
const SWEEP: &str = "trap '' HUP INT TERM; cat; rm -rf \"$0\"";

struct Root {
    path: PathBuf,
    // Holds the other end of the pipe.
    _sweeper: Child,
}

impl Root {
    fn new() -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("livepatch-tests.").tempdir()?;
        // Programs in it are run by other users, too.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
        let sweeper = Command::new("sh")
            .args(["-c", SWEEP])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        Ok(Self { path: folder.keep(), _sweeper: sweeper })
    }

    fn get() -> &'static Path {
        static ROOT: OnceLock<Root> = OnceLock::new();
        &ROOT.get_or_init(|| Self::new().expect("a folder for the tests")).path
    }
}

/// A new folder. It goes when it is dropped, or with the test program.
///
/// # Errors
/// If it cannot be made.
///
/// # Panics
/// If the folder of the whole test program cannot be made: no test has a meaning then.
pub fn folder() -> std::io::Result<TempDir> {
    tempfile::tempdir_in(Root::get())
}
