//! A case on disk.

use crate::fixture::{Fixture, Side};
use crate::profile::Profile;
use crate::tools::{self, Ran, exit};
use crate::{Failed, fail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Modules that programs may have: what they are driven by, and what several of them need.
const MODULES: [(&str, &str); 3] = [
    ("host", include_str!("host.rs.txt")),
    ("turn", include_str!("turn.rs.txt")),
    ("call_site", include_str!("call_site.rs.txt")),
];

/// What `@livepatch` stands for in manifests: the library.
const LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/livepatch");

/// A project folder with a kept build.
pub struct Project {
    dir: TempDir,
    fixture: Fixture,
    profile: Profile,
}

/// What `create` came to.
pub struct Created {
    /// Exit code and report.
    pub ran: Ran,
    /// Where the patch is, if one was made.
    pub file: PathBuf,
}

impl Project {
    /// Writes the old source to a folder of its own.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn new(fixture: &Fixture, profile: Profile) -> Result<Self, Failed> {
        let project = Self { dir: crate::scratch::folder()?, fixture: fixture.clone(), profile };
        if !fixture.has_manifest() {
            let manifest = format!(
                "[package]\nname = \"{}\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n{}",
                fixture.name,
                profile.manifest()
            );
            project.file("Cargo.toml", &manifest)?;
        }
        // They stand beside each program's `main.rs`.
        for (path, text) in fixture.sources(Side::Old).filter(|(path, _)| path.ends_with("main.rs")) {
            for (name, module) in MODULES {
                if text.lines().any(|line| line == format!("mod {name};")) {
                    project.file(path.with_file_name(format!("{name}.rs")), module)?;
                }
            }
        }
        if !profile.config().is_empty() {
            project.file(".cargo/config.toml", profile.config())?;
        }
        project.write(Side::Old)?;
        Ok(project)
    }

    /// The project folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes the sources of one side.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, side: Side) -> Result<(), Failed> {
        for (path, mut text) in self.fixture.sources(side) {
            if path == Path::new("Cargo.toml") {
                text = text.replace("@livepatch", LIBRARY);
                text.push_str(self.profile.manifest());
            }
            self.file(path, &text)?;
        }
        Ok(())
    }

    /// Writes one file. A file that is as it should be is not touched.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn file(&self, path: impl AsRef<Path>, text: &str) -> Result<(), Failed> {
        let path = self.path().join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        if fs::read_to_string(&path).ok().as_deref() != Some(text) {
            fs::write(path, text)?;
        }
        Ok(())
    }

    /// `cargo livepatch build` in the case's profile; returns the report.
    ///
    /// # Errors
    /// If it fails.
    pub fn build(&self) -> Result<Ran, Failed> {
        let mut command = tools::cargo_livepatch(self.path());
        command.args(["build", "--json"]).args(self.profile.cargo_args());
        Ran::of(&mut command)?.expect(exit::DONE, "cargo livepatch build")
    }

    /// Builds, and copies the stripped file out of the build tree, as to a host that has nothing else.
    ///
    /// # Errors
    /// If the build fails or keeps more than a stripped program.
    pub fn ship(&self) -> Result<PathBuf, Failed> {
        let report = self.build()?;
        let stripped =
            report.json["artifacts"][0]["stripped"].as_str().ok_or("no stripped file in the report")?;
        let host = self.path().join("host");
        fs::create_dir_all(&host)?;
        let program = host.join(Path::new(stripped).file_name().ok_or("a stripped file without a name")?);
        tools::place(stripped, &program)?;
        Ok(program)
    }

    /// `cargo livepatch create`.
    ///
    /// # Errors
    /// If the tool cannot be started.
    pub fn create(&self, name: &str) -> Result<Created, Failed> {
        let file = self.path().join(format!("{name}.lpatch"));
        let mut command = tools::cargo_livepatch(self.path());
        command.args(["create", "--json", "-o"]).arg(&file);
        let ran = Ran::of(&mut command)?;
        if file.exists() != (ran.code == exit::DONE) {
            return fail(format!(
                "create ended with {} but the file's existence says otherwise\n{}",
                ran.code, ran.text
            ));
        }
        Ok(Created { ran, file })
    }
}

/// A command for a shipped program, with nothing of the build environment.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command
}
