//! The folder: each patch file that appears in it is applied, and renamed to say so.

use livepatch::Holds;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the folder is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

static APPLIED: AtomicU64 = AtomicU64::new(0);

/// Patches applied so far.
pub fn applied() -> u64 {
    APPLIED.load(Ordering::Relaxed)
}

/// Looks for `NAME.lpatch`, which becomes `NAME.applied` or `NAME.failed`, and for `rollback`, which takes all out and
/// disappears. Move files into the folder, do not write them there: a half-written file fails.
pub fn watch(folder: &Path) {
    loop {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "lpatch") {
                drop_in(&path);
            } else if path.file_name().is_some_and(|name| name == "rollback") {
                take_out(&path);
            }
        }
        std::thread::sleep(INTERVAL);
    }
}

fn drop_in(path: &Path) {
    let outcome = match livepatch::apply(path) {
        Ok(report) => {
            APPLIED.fetch_add(1, Ordering::Relaxed);
            let count = report.functions().count();
            eprintln!("{}: {count} functions, {}", path.display(), cost(report.holds));
            "applied"
        }
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            "failed"
        }
    };
    rename(path, outcome);
}

fn take_out(path: &Path) {
    match livepatch::rollback_all() {
        Ok(report) => eprintln!("{} patches taken out, {}", report.rolled_back.len(), cost(report.holds)),
        Err(error) => eprintln!("rollback: {error}"),
    }
    if let Err(error) = std::fs::remove_file(path) {
        eprintln!("{}: {error}", path.display());
    }
}

/// What the program's threads noticed.
fn cost(holds: Holds) -> String {
    let Holds { world_stopped_us, parked_us, .. } = holds;
    format!("threads held for {world_stopped_us} µs at most, at changed code for {parked_us} µs")
}

fn rename(path: &Path, outcome: &str) {
    if let Err(error) = std::fs::rename(path, path.with_extension(outcome)) {
        eprintln!("{}: {error}", path.display());
    }
}
