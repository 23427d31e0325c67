//! Why a build, a baseline or a rebuild could not be had.

use livepatch_patch::BuildId;
use std::io;
use std::path::{Path, PathBuf};

/// Result of the recording and rebuilding side.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failures of recording, storing and rebuilding. What makes a *change* unfit for a patch is a finding, not an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be used.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried, as an infinitive: "read", "create".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("start `{program}`; is it installed and in PATH?")]
    Spawn {
        /// The program.
        program: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A program that must succeed did not.
    #[error("`{program}` ended with {status}: {message}")]
    Failed {
        /// The program with its arguments.
        program: String,
        /// Exit status in words.
        status: String,
        /// The end of its standard error.
        message: String,
    },
    /// `cargo build` failed; cargo has said why on standard error.
    #[error("cargo ended with exit code {code}; its messages are above")]
    Cargo {
        /// cargo's exit code (101 for a compile error).
        code: i32,
    },
    /// cargo's configuration could not be read.
    #[error("read cargo's configuration")]
    Config(#[source] cargo_config2::Error),
    /// A path or an argument is not UTF-8.
    #[error("{what} `{text}` is not valid UTF-8, which a baseline cannot record; use another name")]
    NotUtf8 {
        /// What is not.
        what: &'static str,
        /// The text with replacement characters.
        text: String,
    },
    /// No place for the store is known.
    #[error("no place for the baseline store: set LIVEPATCH_HOME to a folder")]
    NoHome,
    /// No baseline under this id.
    #[error("no baseline {wanted} in {}; see `cargo livepatch baseline list`, import one, or run `cargo livepatch build`", store.display())]
    NoBaseline {
        /// What was asked for: an id, a prefix, an artifact or a workspace, as a message names it.
        wanted: String,
        /// Root of the store.
        store: PathBuf,
    },
    /// A prefix fits several baselines.
    #[error("`{prefix}` fits several baselines ({}); give more digits", join(candidates))]
    Ambiguous {
        /// The prefix.
        prefix: String,
        /// Which it fits.
        candidates: Vec<BuildId>,
    },
    /// Several artifacts fit and the caller has to choose.
    #[error("several artifacts have a baseline here: {}; choose one by name (`--bin NAME`) or by build-id", names.join(", "))]
    SeveralArtifacts {
        /// Their names.
        names: Vec<String>,
    },
    /// The store, an archive or a candidate does not hold what its manifest says.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The damaged file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Written by another version of livepatch.
    #[error("{} has format version {found}, this livepatch reads version {expected}; use the livepatch that wrote it or record it again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Version that this code reads.
        expected: u32,
    },
    /// cargo linked something, but not through our wrapper.
    #[error(
        "nothing was recorded for {}: another linker setting outranks the wrapper; {advice}", output.display()
    )]
    NotRecorded {
        /// The output without a record.
        output: PathBuf,
        /// What to do.
        advice: String,
    },
    /// cargo built no executable and no shared object.
    #[error(
        "the build produced no executable and no shared object, so there is nothing that could be patched later"
    )]
    NoArtifact,
    /// The compiler differs from the baseline's.
    #[error(
        "the baseline was built with `{baseline}`, but this is `{current}`; switch toolchains (`cargo +TOOLCHAIN livepatch …`), so that only the source differs"
    )]
    Toolchain {
        /// Release of the baseline's compiler.
        baseline: String,
        /// Release of this machine's compiler.
        current: String,
    },
    /// The rebuild no longer produces the baseline's artifact.
    #[error("the rebuild produced no {kind} `{name}`, which the baseline is of; was it renamed or removed?")]
    ArtifactGone {
        /// Kind of the artifact.
        kind: String,
        /// Its target name.
        name: String,
    },
    /// A linker map could not be understood.
    #[error("the linker map {}: {what}", path.display())]
    Map {
        /// The map.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// An image could not be read or stripped.
    #[error("{}: {what}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A target that livepatch does not support.
    #[error("target `{0}` is not supported: livepatch patches x86-64 Linux programs")]
    Target(String),
}

fn join(ids: &[BuildId]) -> String {
    ids.iter().map(BuildId::to_string).collect::<Vec<_>>().join(", ")
}

/// Adds the action and the path to an I/O error.
pub(crate) trait IoContext<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.as_ref().to_path_buf(), source })
    }
}

/// The text of a path or argument that goes into a manifest.
pub(crate) fn utf8<S: AsRef<std::ffi::OsStr> + ?Sized>(what: &'static str, text: &S) -> Result<String> {
    let text = text.as_ref();
    text.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::NotUtf8 { what, text: text.to_string_lossy().into_owned() })
}
