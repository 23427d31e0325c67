//! The files that a build read.

use crate::build::Build;
use crate::error::{IoContext as _, Result};
use livepatch_patch::Digest;
use std::fs;

/// The source files of one build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceSet {
    pub(super) files: Vec<SourceFile>,
    /// Whether code for tests is part of the build.
    pub(super) test: bool,
    /// Digest of what else decides what the files mean.
    surroundings: Option<Digest>,
}

/// One source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Path that is the same on both sides: relative to the workspace root where it is inside.
    pub path: String,
    /// Contents.
    pub bytes: Vec<u8>,
}

impl SourceSet {
    /// A set of files, in any order.
    pub fn new(files: impl IntoIterator<Item = SourceFile>) -> Self {
        let mut files: Vec<_> = files.into_iter().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self { files, test: false, surroundings: None }
    }

    /// The same files as part of a build of tests, if `test`.
    #[must_use]
    pub fn for_tests(self, test: bool) -> Self {
        Self { test, ..self }
    }

    /// The same files in these surroundings: dependencies, settings, environment variables read at compile time.
    #[must_use]
    pub fn within(self, surroundings: Digest) -> Self {
        Self { surroundings: Some(surroundings), ..self }
    }

    /// What makes a comparison of files pointless.
    pub(super) fn unlike(&self, other: &Self) -> Option<String> {
        if self.test != other.test {
            return Some("one of the builds is one of tests".into());
        }
        let differ = self.surroundings != other.surroundings;
        differ.then(|| "dependencies, settings or environment variables of the build differ".into())
    }

    /// The sources of a baseline or a rebuild, if they are known for sure.
    ///
    /// # Errors
    /// Contents cannot be read.
    pub fn of_build(build: &Build) -> Result<Option<Self>> {
        let Some(surroundings) = build.manifest.surroundings else { return Ok(None) };
        if build.sources.is_empty() {
            return Ok(None);
        }
        let mut files = Vec::with_capacity(build.sources.len());
        for (path, blob) in &build.sources {
            files.push(SourceFile::new(path, fs::read(blob).at("read", blob)?));
        }
        Ok(Some(Self::new(files).for_tests(build.manifest.artifact.test).within(surroundings)))
    }

    /// The Rust files that another set has not, or has with other contents.
    pub(super) fn rust_files_unlike<'s>(&'s self, other: &'s Self) -> impl Iterator<Item = &'s SourceFile> {
        let is_same = |file: &SourceFile| {
            let at = other.files.binary_search_by(|other| other.path.cmp(&file.path));
            at.is_ok_and(|at| other.files[at].bytes == file.bytes)
        };
        self.files.iter().filter(move |file| file.is_rust() && !is_same(file))
    }

    /// The files, sorted by path.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }
}

impl SourceFile {
    /// A file with this path and these contents.
    pub fn new(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), bytes: bytes.into() }
    }

    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}
