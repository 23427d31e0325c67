//! A running program patches itself.
//!
//! ```no_run
//! let report = livepatch::apply("/var/lib/app/fix.lpatch")?;
//! for function in report.functions() {
//!     println!("{} runs at {}", function.path, function.new_address);
//! }
//! # Ok::<(), livepatch::Error>(())
//! ```
//!
//! Calls block until the work is done or their deadline passes; from asynchronous code use the runtime's way to block, for
//! example `tokio::task::spawn_blocking(|| livepatch::apply(path))`. Everything the command line tool `livepatch` does
//! to another process is done here by the same engine, with the same checks, and nothing else is: no thread, no socket and
//! no memory is held between calls.
//!
//! # How
//!
//! A process cannot trace itself. So the program starts its own executable again as a helper, which leaves before `main` and
//! before every constructor of the program, attaches to the program, and reports over a pipe. The start-up hook for that
//! costs an ordinary start half a dozen instructions. What this trusts and what it leaves alone is in `docs/self-patching.md`
//! of the repository.
//!
//! Where the executable cannot be started again, [`Options::tool`] names the `livepatch` tool, which is started instead: in
//! a shared object loaded by a foreign program, under a `noexec` mount, with another C library than glibc. Link such a shared
//! object with `default-features = false`.
//!
//! # What is not guaranteed
//!
//! - A thread that calls this from within a function that the patch changes gets [`Error::CallerInside`]: it would have to leave
//!   the function and wait for the patch at the same time.
//! - Applying a patch runs its code in this process. Nothing checks who made a patch file.
//!
//! # The life of a patch
//!
//! ```
//! use livepatch::{Error, Options};
//! use std::time::Duration;
//!
//! // Nothing is in this process yet.
//! assert!(livepatch::status()?.patches.is_empty());
//! assert!(matches!(livepatch::rollback_all(), Err(Error::NothingToRollBack(_))));
//!
//! // What is no patch is refused, and nothing has changed.
//! let options = Options::new().deadline(Duration::from_secs(20));
//! assert!(matches!(options.apply_bytes(b"not a patch"), Err(Error::Mismatch(_))));
//! # Ok::<(), Error>(())
//! ```

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("livepatch works on Linux, x86-64");

mod answer;
mod client;
mod command;
mod entry;
mod error;
mod files;
mod frames;
mod gate;
#[cfg(all(feature = "helper", target_env = "gnu"))]
mod helper;
mod options;
mod report;
mod request;
mod spawn;

pub use error::{Error, HelperError, Holder, Missing, ThreadInside};
pub use livepatch_apply::{Part, Policy, Selection};
pub use livepatch_patch::{Note, RunAddr};
pub use options::Options;
pub use report::{
    Call, Function, Holds, Patch, PatchState, Report, RollbackReport, Stages, Status, StillInside,
};

use std::path::Path;

/// Applies a patch file to this process, with the default [`Options`].
///
/// # Errors
/// See [`Error`]. Unless the error says otherwise, nothing has changed.
///
/// ```
/// let error = livepatch::apply("/nowhere/fix.lpatch").unwrap_err();
/// assert!(matches!(error, livepatch::Error::Read { .. }));
/// ```
pub fn apply(path: impl AsRef<Path>) -> Result<Report, Error> {
    Options::new().apply(path)
}

/// Applies a patch that is in memory.
///
/// # Errors
/// As [`apply`].
///
/// ```
/// let error = livepatch::apply_bytes(&[0; 64]).unwrap_err();
/// assert!(matches!(error, livepatch::Error::Mismatch(_)), "{error}");
/// ```
pub fn apply_bytes(patch: &[u8]) -> Result<Report, Error> {
    Options::new().apply_bytes(patch)
}

/// Takes out the patch that was applied last: the functions of the executable run again.
///
/// # Errors
/// [`Error::NothingToRollBack`] if none is applied, else as [`apply`].
///
/// ```
/// let error = livepatch::rollback().unwrap_err();
/// assert!(matches!(error, livepatch::Error::NothingToRollBack(_)), "{error}");
/// ```
pub fn rollback() -> Result<RollbackReport, Error> {
    Options::new().rollback()
}

/// Takes out all patches of all modules.
///
/// # Errors
/// As [`rollback`].
///
/// ```no_run
/// let report = livepatch::rollback_all()?;
/// println!("{} patches taken out", report.rolled_back.len());
/// # Ok::<(), livepatch::Error>(())
/// ```
pub fn rollback_all() -> Result<RollbackReport, Error> {
    Options::new().rollback_all()
}

/// The patches in this process.
///
/// # Errors
/// As [`apply`].
///
/// ```
/// let status = livepatch::status()?;
/// assert_eq!(status.pid, std::process::id() as i32);
/// # Ok::<(), livepatch::Error>(())
/// ```
pub fn status() -> Result<Status, Error> {
    Options::new().status()
}
