//! One finished link, ready to be compared.

use crate::baseline::{InputKind, Manifest};
use crate::linkmap::LinkMap;
use livepatch_patch::Digest;
use std::path::PathBuf;

/// A linked artifact with everything that went into it: the baseline's, or a rebuild's.
#[derive(Clone, Debug)]
pub struct Build {
    /// The unstripped linked output.
    pub image: PathBuf,
    /// Where each input section went.
    pub map: LinkMap,
    /// The inputs in link order.
    pub inputs: Vec<Input>,
    /// The local source files by path, and where their bytes are; empty if they are not known for sure.
    pub sources: Vec<(String, PathBuf)>,
    /// The raw code of its local crates (see `raw.rs`), and where the compressed objects are.
    pub raw: Vec<(String, PathBuf)>,
    /// How it was made.
    pub manifest: Manifest,
}

/// One input of the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The path as the linker saw it and as [`PlacedSection::file`](crate::linkmap::PlacedSection::file) names it.
    pub path: String,
    /// What it is.
    pub kind: InputKind,
    /// Digest of its contents: equal digests need no comparison.
    pub digest: Digest,
    /// Where the bytes are.
    pub blob: PathBuf,
}
