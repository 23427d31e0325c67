//! A program of `examples/` in a folder of its own: build it, ship it, change a line, make a patch.

use crate::tools::{self, Ran, exit};
use crate::{Failed, fail};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Appended to the manifest: how fast the dependencies are matters little here, the time to build them does.
const QUICK: &str = "\n[profile.release.package.\"*\"]\nopt-level = 0\n";

/// A copy of an example.
pub struct Example {
    dir: TempDir,
    name: &'static str,
}

impl Example {
    /// Copies `examples/NAME`. The paths in its manifest lead to this repository then.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn copy(name: &'static str) -> Result<Self, Failed> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let from = repository.join("examples").join(name);
        let example = Self { dir: crate::scratch::folder()?, name };
        fs::create_dir(example.path().join("src"))?;
        for entry in fs::read_dir(from.join("src"))? {
            let entry = entry?;
            fs::copy(entry.path(), example.path().join("src").join(entry.file_name()))?;
        }
        fs::copy(from.join("Cargo.lock"), example.path().join("Cargo.lock"))?;
        let manifest = fs::read_to_string(from.join("Cargo.toml"))?;
        let crates = repository.canonicalize()?.join("crates");
        let crates = crates.to_str().ok_or("a path that is no text")?;
        fs::write(example.path().join("Cargo.toml"), manifest.replace("../../crates", crates) + QUICK)?;
        Ok(example)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `cargo livepatch build --release`; returns the stripped program, copied out of the build tree.
    ///
    /// # Errors
    /// If it fails.
    pub fn ship(&self) -> Result<PathBuf, Failed> {
        let mut command = tools::cargo_livepatch(self.path());
        let report = Ran::of(command.args(["build", "--json", "--release"]))?.expect(exit::DONE, "build")?;
        let stripped = report.json["artifacts"][0]["stripped"].as_str().ok_or("no stripped file")?;
        let program = self.path().join(self.name);
        tools::place(stripped, &program)?;
        Ok(program)
    }

    /// Replaces text that occurs once in a source file, and makes a patch of it.
    ///
    /// # Errors
    /// If the text is not there or there is no patch.
    pub fn patch(&self, file: &str, from: &str, to: &str) -> Result<PathBuf, Failed> {
        let source = self.path().join("src").join(file);
        let text = fs::read_to_string(&source)?;
        if text.matches(from).count() != 1 {
            return fail(format!("`{from}` is not once in {file}"));
        }
        fs::write(&source, text.replace(from, to))?;
        let patch = self.path().join("fix.lpatch");
        let mut command = tools::cargo_livepatch(self.path());
        Ran::of(command.args(["create", "--json", "-o"]).arg(&patch))?.expect(exit::DONE, "create")?;
        Ok(patch)
    }
}
