//! What a baseline says about itself.

use crate::units::Unit;
use livepatch_patch::{BuildId, Digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Version of the manifest that this code writes, and the only one that it reads.
pub const MANIFEST_VERSION: u32 = 1;

/// Everything that is known about one linked artifact: how it was built, from what, and where the bytes are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// What cargo built.
    pub artifact: Artifact,
    /// How cargo was called.
    pub invocation: Invocation,
    /// The link that made it.
    pub link: LinkRecord,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// Digest of `Cargo.lock`, if there is one.
    pub lockfile: Option<Digest>,
    /// The local source files that it was made from; empty if they are not known for sure.
    #[serde(default)]
    pub sources: Vec<SourceRecord>,
    /// The raw code of its local crates, zstd-compressed, by the stem of their outputs' names.
    #[serde(default)]
    pub raw: Vec<SourceRecord>,
    /// How its crates were compiled, as far as that is known.
    #[serde(default)]
    pub units: Vec<Unit>,
    /// Digest of what else decides what the sources mean: dependencies, settings, variables read at compile time.
    #[serde(default)]
    pub surroundings: Option<Digest>,
}

impl Manifest {
    /// The build-id of the image.
    pub fn build_id(&self) -> &BuildId {
        &self.link.build_id
    }
}

/// One target of one package, as cargo names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Name of the package.
    pub package: String,
    /// Version of the package.
    pub package_version: String,
    /// Name of the target: of the binary, library, example, test.
    pub name: String,
    /// What kind of target it is.
    pub kind: ArtifactKind,
    /// Whether it is a test harness (`cargo build --tests`).
    pub test: bool,
    /// File name of the output.
    pub file_name: String,
    /// Target triple.
    pub triple: String,
}

/// Kinds of targets that are linked into an image of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactKind {
    /// A binary.
    Bin,
    /// An example binary.
    Example,
    /// A test or benchmark harness, or the harness of another target.
    Test,
    /// A C-compatible shared object.
    Cdylib,
    /// A Rust shared object.
    Dylib,
}

impl fmt::Display for ArtifactKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bin => "bin",
            Self::Example => "example",
            Self::Test => "test",
            Self::Cdylib => "cdylib",
            Self::Dylib => "dylib",
        })
    }
}

/// How cargo was called, so that it can be called so again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invocation {
    /// Arguments after `build`, without those that only say where and how to print.
    pub args: Vec<String>,
    /// Name of the cargo profile (`dev`, `release`, …).
    pub profile: String,
    /// Working folder, relative to the workspace root where it is inside it.
    pub cwd: PathBuf,
    /// Root of the workspace.
    pub workspace_root: PathBuf,
    /// cargo's target folder.
    pub target_dir: PathBuf,
    /// cargo's folder for intermediate artifacts; differs from `target_dir` if `build.build-dir` is set.
    pub build_dir: PathBuf,
    /// cargo's home, where registry sources live.
    pub cargo_home: PathBuf,
    /// Environment variables that influence what is built.
    pub env: BTreeMap<String, String>,
    /// `rustc -vV`.
    pub rustc: String,
    /// `cargo --version`.
    pub cargo: String,
}

/// What the linker wrapper knows about one link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// The build-id of the output.
    pub build_id: BuildId,
    /// Crate name as rustc has it.
    pub crate_name: String,
    /// The real linker that ran.
    pub linker: String,
    /// Its arguments, response files expanded, without what the wrapper added.
    pub args: Vec<String>,
    /// Folder in which it ran; relative paths in `args` and `inputs` start there.
    pub cwd: String,
    /// Where the output was written.
    pub output: String,
    /// The inputs in link order.
    pub inputs: Vec<InputRecord>,
    /// The unstripped output.
    pub image: BlobRef,
    /// The linker map, zstd-compressed.
    pub map: BlobRef,
}

/// One input of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    /// The path as the linker saw it and as its map names it.
    pub path: String,
    /// What it is.
    pub kind: InputKind,
    /// Its contents.
    #[serde(flatten)]
    pub blob: BlobRef,
}

/// One source file of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Its path: relative to the workspace root if it is inside, after `<target>/` if it is generated.
    pub path: String,
    /// Its contents.
    #[serde(flatten)]
    pub blob: BlobRef,
}

/// Contents in the blob store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// BLAKE3 digest of the contents, which is also their name.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// What an input of a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputKind {
    /// A relocatable object.
    Object,
    /// An archive: `.rlib` or `.a`.
    Archive,
    /// A shared object.
    Shared,
    /// Anything else the linker reads: version scripts, linker scripts, lists of exported symbols.
    Script,
}
