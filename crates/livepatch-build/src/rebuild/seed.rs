//! The first rebuild starts from a copy of what the baseline's build left.
//!
//! cargo tells by times and digests that are relative to the target folder whether something is up to date, so a copy
//! with the same times is: only what changed is compiled, and everything else is bit for bit what the baseline was
//! linked from.

use crate::baseline::Invocation;
use crate::error::{IoContext, Result};
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};

/// Above this, compiling anew is taken to be the lesser evil: old target folders hold mostly what nobody needs.
const MAX_BYTES: u64 = 4 << 30;
/// Large, and of use only to crates that changed.
const LEFT_OUT: &str = "incremental";
/// cargo holds a lock on this file of the folder while it builds.
const CARGO_LOCK: &str = ".cargo-lock";

/// Copies the folders of the profile from the baseline's build folder to `target`, unless they are there already.
pub(super) fn seed(recorded: &Invocation, triples: &[String], target: &Path, tmp: &Path) -> Result<()> {
    let profile = match recorded.profile.as_str() {
        "dev" | "test" => "debug",
        "bench" => "release",
        name => name,
    };
    let explicit = triples.iter().map(|triple| Path::new(triple).join(profile));
    for folder in explicit.chain([PathBuf::from(profile)]) {
        let (from, to) = (recorded.build_dir.join(&folder), target.join(&folder));
        if from.is_dir() && !to.exists() {
            seed_folder(&from, &to, tmp)?;
        }
    }
    Ok(())
}

fn seed_folder(from: &Path, to: &Path, tmp: &Path) -> Result<()> {
    let Ok(lock) = File::open(from.join(CARGO_LOCK)) else { return Ok(()) };
    lock.lock_shared().at("lock", from)?;
    if size(from)? > MAX_BYTES {
        tracing::info!(folder = %from.display(), "too large to start from; compiling anew");
        return Ok(());
    }
    // Renamed when complete: cargo must never find half of it.
    let copy = tempfile::tempdir_in(tmp).at("create a folder in", tmp)?;
    let whole = copy.path().join("seed");
    copy_tree(from, &whole)?;
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).at("create the folder", parent)?;
    fs::rename(&whole, to).at("create", to)
}

fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    let list: std::io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
    let mut list = list.at("list", folder)?;
    list.retain(|entry| entry.file_name() != LEFT_OUT);
    Ok(list)
}

fn size(folder: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in entries(folder)? {
        let meta = entry.metadata().at("read", entry.path())?;
        total += if meta.is_dir() { size(&entry.path())? } else { meta.len() };
    }
    Ok(total)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).at("create the folder", to)?;
    for entry in entries(from)? {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let meta = entry.metadata().at("read", &from)?;
        if meta.is_dir() {
            copy_tree(&from, &to)?;
        } else if meta.is_symlink() {
            let aim = fs::read_link(&from).at("read", &from)?;
            std::os::unix::fs::symlink(aim, &to).at("create the link", &to)?;
        } else if meta.is_file() {
            fs::copy(&from, &to).at("copy", &from)?;
            let modified = meta.modified().at("read the time of", &from)?;
            let copy = File::open(&to).at("open", &to)?;
            copy.set_times(FileTimes::new().set_modified(modified)).at("set the time of", &to)?;
        }
    }
    Ok(())
}
