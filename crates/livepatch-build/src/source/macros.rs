//! Which packages run in the compiler: procedural macros and what they are made of.
//!
//! A changed function of such a package can change the code of any other. The packages are told apart by their
//! manifests, which are among the sources; what one depends on is read from it as text, so that a name that it mentions
//! for another reason costs precision only.

use super::set::{SourceFile, SourceSet};
use std::collections::BTreeSet;

/// The packages of the compared sources.
pub(super) struct Packages<'s> {
    manifests: Vec<Manifest<'s>>,
}

struct Manifest<'s> {
    /// Relative to the workspace, without a slash at its end; empty for the root.
    folder: &'s str,
    words: BTreeSet<&'s str>,
    text: &'s str,
}

impl<'s> Packages<'s> {
    pub(super) fn of(set: &'s SourceSet) -> Self {
        let manifest = |file: &'s SourceFile| {
            let folder = file.path.strip_suffix("Cargo.toml")?;
            let folder = match folder.strip_suffix('/') {
                None if !folder.is_empty() => return None,
                folder => folder.unwrap_or_default(),
            };
            let text = std::str::from_utf8(&file.bytes).ok()?;
            Some(Manifest { folder, words: words(text).collect(), text })
        };
        Self { manifests: set.files().iter().filter_map(manifest).collect() }
    }

    /// The package that a file belongs to.
    fn of_file(&self, path: &str) -> Option<usize> {
        let holds = |manifest: &Manifest<'_>| {
            path.strip_prefix(manifest.folder)
                .is_some_and(|rest| manifest.folder.is_empty() || rest.starts_with('/'))
        };
        let found = self.manifests.iter().enumerate().filter(|(_, manifest)| holds(manifest));
        // Generated files lie in the target folder, whoever generated them.
        let found = found.max_by_key(|(_, manifest)| manifest.folder.len());
        found.map(|(at, _)| at).filter(|_| !path.starts_with(super::record::TARGET))
    }

    /// Whether a file of the package at `path` may be part of a procedural macro, of which `macros` are files.
    pub(super) fn may_be_in_macro(&self, path: &str, macros: &[&str]) -> bool {
        let Some(package) = self.of_file(path) else { return true };
        let mut parts = BTreeSet::new();
        for file in macros {
            let Some(package) = self.of_file(file) else { return true };
            parts.insert(package);
        }
        loop {
            let more: Vec<usize> = (0..self.manifests.len())
                .filter(|at| !parts.contains(at))
                .filter(|at| parts.iter().any(|part| self.depends(*part, *at)))
                .collect();
            if more.is_empty() {
                return parts.contains(&package);
            }
            parts.extend(more);
        }
    }

    /// Whether one package may depend on another: its manifest has a word that stands for it.
    fn depends(&self, one: usize, other: usize) -> bool {
        let manifest = &self.manifests[other];
        let folder = manifest.folder.rsplit('/').next().unwrap_or_default();
        let name = manifest.text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == "name").then(|| value.trim().trim_matches(['"', '\'']))
        });
        let own: Vec<&str> =
            [Some(folder), name].into_iter().flatten().filter(|word| !word.is_empty()).collect();
        // Another name that a manifest gives it, perhaps for the whole workspace.
        let others = self.manifests.iter().enumerate().filter(|(at, _)| *at != other);
        let lines = others.flat_map(|(_, manifest)| manifest.text.lines());
        let naming = lines.filter(|line| words(line).any(|word| own.contains(&word)));
        let aliases = naming.filter_map(|line| words(line).next());
        aliases.chain(own.iter().copied()).any(|alias| self.manifests[one].words.contains(alias))
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> SourceSet {
        let file = |path: &str, text: &str| SourceFile::new(path, text);
        SourceSet::new(vec![
            file(
                "Cargo.toml",
                "[workspace]\nmembers = [\"*\"]\n[workspace.dependencies]\nt = { path = \"text\" }",
            ),
            file(
                "app/Cargo.toml",
                "[package]\nname = \"app\"\n[dependencies]\nderive = { path = \"../derive\" }",
            ),
            file(
                "derive/Cargo.toml",
                "[package]\nname = \"derive\"\n[dependencies]\nt = { workspace = true }",
            ),
            file("text/Cargo.toml", "[package]\nname = \"text\"\n[dependencies]\n"),
        ])
    }

    #[test]
    fn macros_are_what_they_depend_on() {
        let set = set();
        let packages = Packages::of(&set);
        let is_part = |path: &str| packages.may_be_in_macro(path, &["derive/src/lib.rs"]);
        assert!(is_part("derive/src/lib.rs") && is_part("derive/src/more/x.rs"));
        assert!(is_part("text/src/lib.rs"), "through a name that the workspace gives it");
        assert!(!is_part("app/src/main.rs"));
        assert!(is_part("<target>/release/build/x/out/y.rs"), "nobody knows whose it is");
    }
}
