//! What the caller of `apply` and `check` decides.

use crate::report::Policy;
use livepatch_patch::Selection;
use std::time::Duration;

/// How to apply a patch.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// How threads are treated that are inside of what is replaced.
    pub policy: Policy,
    /// How long to try.
    pub deadline: Duration,
    /// Check everything, including whether the process is quiescent at this moment, and change nothing.
    pub dry_run: bool,
    /// Which part of the patch is wanted; all of it if empty.
    pub selection: Selection,
    /// Functions (paths as in [`Selection::function`]) whose calls under way may finish in the old code while new calls run
    /// the new code, because they never end: `main`, an accept loop.
    pub leave_running: Vec<String>,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self {
            policy: Policy::Quiescent,
            deadline: Duration::from_secs(10),
            dry_run: false,
            selection: Selection::new(),
            leave_running: Vec::new(),
        }
    }
}
