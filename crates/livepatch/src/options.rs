//! How an operation is to go.

use crate::client;
use crate::error::Error;
use crate::report::{Report, RollbackReport, Status};
use crate::request::{Operation, Which};
use livepatch_apply::{Policy, Selection};
use nix::libc;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How an operation is to go.
///
/// ```no_run
/// use livepatch::{Options, Selection};
/// use std::time::Duration;
///
/// let options = Options::new()
///     .deadline(Duration::from_secs(3))
///     .selection(Selection::new().module("webapp::router"));
/// options.clone().dry_run(true).apply("fix.lpatch")?;
/// options.apply("fix.lpatch")?;
/// # Ok::<(), livepatch::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) policy: Policy,
    pub(crate) deadline: Duration,
    pub(crate) dry_run: bool,
    pub(crate) selection: Selection,
    pub(crate) leave_running: Vec<String>,
    pub(crate) tool: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            deadline: Duration::from_secs(10),
            dry_run: false,
            selection: Selection::new(),
            leave_running: Vec::new(),
            tool: None,
        }
    }
}

impl Options {
    /// Policy `quiescent`, ten seconds, the whole patch, the program's own executable as helper.
    pub fn new() -> Self {
        Self::default()
    }

    /// How threads are treated that are inside of what is replaced.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// After how long a call returns in any case. Waiting for calls of other threads counts; a part at the end (a fifth, at most two
    /// seconds) is left for undoing, so the switch is tried a little shorter.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Check everything, including whether the program is quiescent at this moment, and change nothing.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Apply a part of the patch only.
    #[must_use]
    pub fn selection(mut self, selection: Selection) -> Self {
        self.selection = selection;
        self
    }

    /// Functions whose calls under way may finish in the old code while new calls run the new code, because they never end:
    /// `main`, an accept loop.
    #[must_use]
    pub fn leave_running(mut self, functions: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.leave_running.extend(functions.into_iter().map(Into::into));
        self
    }

    /// Start this `livepatch` tool instead of the program's own executable. It is not told where the calling thread is:
    /// [`Error::CallerInside`] comes only when its time is over.
    #[must_use]
    pub fn tool(mut self, path: impl Into<PathBuf>) -> Self {
        self.tool = Some(path.into());
        self
    }

    /// Applies a patch file to this process.
    ///
    /// # Errors
    /// See [`Error`]. The path has to lead to a regular file of at most 256 MiB; reading it counts towards the deadline.
    pub fn apply(&self, path: impl AsRef<Path>) -> Result<Report, Error> {
        let (path, started) = (path.as_ref(), Instant::now());
        let patch = read_patch(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let left = self.deadline.saturating_sub(started.elapsed());
        self.clone().deadline(left).apply_bytes(&patch)
    }

    /// Applies a patch that is in memory.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn apply_bytes(&self, patch: &[u8]) -> Result<Report, Error> {
        client::run(self, Operation::Apply, patch)?.apply()
    }

    /// Takes out the patch that was applied last.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn rollback(&self) -> Result<RollbackReport, Error> {
        client::run(self, Operation::Rollback(Which::Last), &[])?.rollback()
    }

    /// Takes out the patch whose id begins with these hexadecimal digits.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn rollback_patch(&self, id: &str) -> Result<RollbackReport, Error> {
        client::run(self, Operation::Rollback(Which::Id(id.to_owned())), &[])?.rollback()
    }

    /// Takes out all patches of all modules.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn rollback_all(&self) -> Result<RollbackReport, Error> {
        client::run(self, Operation::Rollback(Which::All), &[])?.rollback()
    }

    /// The patches in this process.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn status(&self) -> Result<Status, Error> {
        client::run(self, Operation::Status, &[])?.status()
    }
}

/// Largest patch file that is read.
const MOST: u64 = 256 << 20;

/// Reads a file that nobody can make wait or go on for ever: no pipe, no device, and only so much of it.
fn read_patch(path: &Path) -> io::Result<Vec<u8>> {
    // An open without this waits for the other end of a pipe.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    if about.len() <= MOST {
        file.take(MOST + 1).read_to_end(&mut bytes)?;
    }
    if about.len() > MOST || bytes.len() as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a patch has at most 256 MiB"));
    }
    Ok(bytes)
}
