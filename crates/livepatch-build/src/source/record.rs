//! Which files a build read, and what else their meaning depends on.
//!
//! cargo writes a Makefile rule (`app.d`) beside each output that names every local file it was made from: sources of
//! all workspace and path crates, included files, generated code. Sources of registry crates are not in it; `Cargo.lock`
//! stands for them. Paths are kept relative to the folder that they lie in, so that a rebuild in another target folder
//! or on another machine has the same.

use crate::baseline::{ArtifactKind, LinkRecord, SourceRecord};
use crate::cargo::Linked;
use crate::config::Setup;
use crate::error::Result;
use crate::store::BlobStore;
use livepatch_patch::Digest;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Stands for cargo's target folder in recorded paths.
pub(super) const TARGET: &str = "<target>";
const CARGO_HOME: &str = "<cargo-home>";
const WORKSPACE: &str = "<workspace>";

/// Folders whose place is no part of a build.
#[derive(Clone, Debug)]
pub(crate) struct Roots(Vec<(PathBuf, &'static str)>);

impl Roots {
    pub(crate) fn new(setup: &Setup) -> Self {
        Self::default()
            .target(&setup.build_dir)
            .target(&setup.target_dir)
            .others(&setup.workspace_root, &setup.cargo_home)
    }

    fn default() -> Self {
        Self(Vec::new())
    }

    /// Adds a target folder.
    #[must_use]
    pub(crate) fn target(self, folder: &Path) -> Self {
        self.with(folder, TARGET)
    }

    /// Adds a workspace and cargo's home.
    #[must_use]
    pub(crate) fn others(self, workspace: &Path, cargo_home: &Path) -> Self {
        self.with(workspace, WORKSPACE).with(cargo_home, CARGO_HOME)
    }

    fn with(mut self, folder: &Path, name: &'static str) -> Self {
        self.0.push((folder.to_path_buf(), name));
        // The innermost first: the target folder lies in the workspace, a rebuild's in the baseline's.
        self.0.sort_by_key(|(folder, _)| std::cmp::Reverse(folder.as_os_str().len()));
        self
    }

    fn name(&self, path: &Path) -> Option<String> {
        for (folder, name) in &self.0 {
            if let Ok(rest) = path.strip_prefix(folder) {
                let rest = rest.to_str()?;
                return Some(if *name == WORKSPACE { rest.to_owned() } else { format!("{name}/{rest}") });
            }
        }
        path.to_str().map(str::to_owned)
    }

    fn scrub(&self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |text, (folder, name)| text.replace(&*folder.to_string_lossy(), name))
    }

    fn is_generated(&self, path: &Path) -> bool {
        self.0.iter().any(|(folder, name)| *name == TARGET && path.starts_with(folder))
    }
}

/// What is recorded about a build's sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub sources: Vec<SourceRecord>,
    /// Digest of dependencies, settings and variables.
    pub surroundings: Digest,
}

/// The finished build whose sources are wanted.
pub(crate) struct Finished<'a> {
    pub setup: &'a Setup,
    pub roots: &'a Roots,
    pub linked: &'a Linked,
    pub link: &'a LinkRecord,
    /// What build scripts told cargo.
    pub scripts: &'a BTreeSet<String>,
    /// When cargo was started.
    pub started: SystemTime,
}

/// Copies the sources of a build to `into`.
///
/// `None` where they are not known for sure: no or another rule, a test harness, a file changed meanwhile.
///
/// # Errors
/// A copy cannot be written.
pub(crate) fn record(build: &Finished<'_>, into: &BlobStore) -> Result<Option<Recorded>> {
    let Some(paths) = files(build) else { return Ok(None) };
    let mut sources = Vec::with_capacity(paths.len());
    for path in paths {
        let Some(name) = build.roots.name(&path) else { return Ok(None) };
        let blob = into.put_file(&path)?;
        // Looked at after the copy: what was compiled is what lay there before cargo started.
        let changed =
            fs::metadata(&path).and_then(|meta| meta.modified()).is_ok_and(|time| time <= build.started);
        if !changed && !build.roots.is_generated(&path) {
            tracing::info!(path = %path.display(), "changed during the build, so its sources are not recorded");
            return Ok(None);
        }
        sources.push(SourceRecord { path: name, blob });
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Some(Recorded { sources, surroundings: surroundings(build) }))
}

/// Every local file that the output was made from, and the manifests of their packages.
fn files(build: &Finished<'_>) -> Option<BTreeSet<PathBuf>> {
    let artifact = &build.linked.artifact;
    // The rule beside a test harness is rustc's own, which does not have the crates that it depends on.
    if artifact.test || artifact.kind == ArtifactKind::Test {
        return None;
    }
    let rule = fs::read_to_string(build.linked.output.with_extension("d")).ok()?;
    let (output, sources) = dependencies(&rule)?;
    // cargo leaves a rule alone whose files are the same, and a seeded target folder has the rules of another one.
    if output.file_name() != build.linked.output.file_name() {
        return None;
    }
    let root = &build.setup.workspace_root;
    let mut all = BTreeSet::new();
    for source in sources {
        let path = root.join(source);
        // Of a folder that a build script watches, what the script made of it counts.
        if !path.is_file() {
            continue;
        }
        if !build.roots.is_generated(&path) {
            all.extend(manifests(&path, root));
        }
        all.insert(path);
    }
    all.iter().any(|path| path.extension() == Some(OsStr::new("rs"))).then_some(all)
}

/// `Cargo.toml` of the package and, inside the workspace, of every folder up to its root.
fn manifests(source: &Path, root: &Path) -> Vec<PathBuf> {
    let inside = source.starts_with(root);
    let mut found = Vec::new();
    for folder in source.ancestors().skip(1).take_while(|folder| !inside || folder.starts_with(root)) {
        let manifest = folder.join("Cargo.toml");
        if manifest.is_file() {
            found.push(manifest);
            if !inside {
                break;
            }
        }
    }
    found
}

/// Target and dependencies of a rule on one line; spaces in names are escaped.
fn dependencies(rule: &str) -> Option<(PathBuf, Vec<PathBuf>)> {
    let line = rule.lines().find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let mut words = vec![String::new()];
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek() == Some(&' ') => words.last_mut()?.extend(chars.next()),
            ' ' => words.push(String::new()),
            c => words.last_mut()?.push(c),
        }
    }
    let mut words = words.into_iter();
    let output = words.next()?.strip_suffix(':')?.into();
    Some((output, words.filter(|word| !word.is_empty()).map(PathBuf::from).collect()))
}

/// Everything beside the files: a difference in it can change anything.
fn surroundings(build: &Finished<'_>) -> Digest {
    let mut parts: Vec<String> = vec![digest_of(&build.setup.workspace_root.join("Cargo.lock"))];
    let folders = build.setup.cwd.ancestors().map(|folder| folder.join(".cargo"));
    for folder in folders.chain([build.setup.cargo_home.clone()]) {
        let configs = ["config", "config.toml"].map(|name| folder.join(name));
        parts.extend(configs.iter().filter(|path| path.is_file()).map(|path| digest_of(path)));
    }
    parts.extend(build.scripts.iter().map(|script| build.roots.scrub(script)));
    parts.extend(variables(build.link).iter().map(|line| build.roots.scrub(line)));
    Digest::of(parts.join("\n").as_bytes())
}

fn digest_of(path: &Path) -> String {
    fs::read(path).map_or_else(|_| "none".into(), |bytes| Digest::of(&bytes).to_string())
}

/// Environment variables that the linked crates read when they were compiled, from rustc's rules beside the inputs.
fn variables(link: &LinkRecord) -> BTreeSet<String> {
    let mut rules = BTreeSet::new();
    for input in &link.inputs {
        let path = Path::new(&link.cwd).join(&input.path);
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { continue };
        // `deps/app-HASH.UNIT.rcgu.o` and `deps/libname-HASH.rlib` both have `deps/name-HASH.d`.
        let stem = name.split('.').next().unwrap_or(name);
        let stem = if name.ends_with(".rlib") { stem.strip_prefix("lib").unwrap_or(stem) } else { stem };
        rules.insert((stem.to_owned(), path.with_file_name(format!("{stem}.d"))));
    }
    let mut lines = BTreeSet::new();
    for (stem, rule) in rules {
        let Ok(text) = fs::read_to_string(rule) else { continue };
        let read = text.lines().filter(|line| line.starts_with("# env-dep:"));
        lines.extend(read.map(|line| format!("{stem} {line}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_cargo() {
        let (output, sources) = dependencies("/a\\ b/t/app: /a\\ b/src/main.rs /c/x.rs\n").unwrap();
        assert_eq!(output, Path::new("/a b/t/app"));
        assert_eq!(sources, [Path::new("/a b/src/main.rs"), Path::new("/c/x.rs")]);
        assert!(dependencies("# only a comment\n").is_none());
        assert!(dependencies("/a/app\n").is_none());
    }

    #[test]
    fn names_of_files() {
        let roots = Roots::default()
            .target(Path::new("/w/target"))
            .others(Path::new("/w"), Path::new("/h/.cargo"))
            .target(Path::new("/w/target/livepatch"));
        let name = |path: &str| roots.name(Path::new(path)).unwrap();
        assert_eq!(name("/w/src/main.rs"), "src/main.rs");
        assert_eq!(name("/w/target/release/build/a-1/out/x.rs"), "<target>/release/build/a-1/out/x.rs");
        assert_eq!(
            name("/w/target/livepatch/release/build/a-1/out/x.rs"),
            "<target>/release/build/a-1/out/x.rs"
        );
        assert_eq!(name("/w2/src/lib.rs"), "/w2/src/lib.rs");
        assert_eq!(
            roots.scrub("OUT=/w/target/livepatch/release/x /w/a"),
            "OUT=<target>/release/x <workspace>/a"
        );
    }
}
