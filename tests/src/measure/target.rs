//! A program with a patch for it, to be started as often as a benchmark likes.

use super::Failed;
use crate::child::Program;
use crate::fixture::{Fixture, Side};
use crate::profile::Profile;
use crate::project::{Project, command};
use crate::tools::{self, exit};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A built program and its patch.
pub struct Target {
    project: Project,
    shipped: PathBuf,
    patch: PathBuf,
}

impl Target {
    /// Builds the old source with `cargo livepatch build --release`, and the patch that makes it the new one.
    ///
    /// # Errors
    /// If that fails.
    pub fn build(name: &str, source: &str) -> Result<Self, Failed> {
        let project = Project::new(&Fixture::inline(name, source)?, Profile::Release)?;
        let shipped = project.ship()?;
        project.write(Side::New)?;
        let created = project.create("fix")?;
        created.ran.expect(exit::DONE, "create")?;
        Ok(Self { project, shipped, patch: created.file })
    }

    /// The project, with the new source in place.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// The stripped program of the old source.
    pub fn shipped(&self) -> &Path {
        &self.shipped
    }

    /// Starts the program.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(&self, arguments: &[String]) -> Result<Program, Failed> {
        let mut command = command(&self.shipped);
        command.args(arguments);
        Program::start(command)
    }

    /// `livepatch apply`; its report.
    ///
    /// # Errors
    /// If it was not done.
    pub fn apply(&self, program: &Program, arguments: &[&str]) -> Result<Value, Failed> {
        let pid = program.pid().to_string();
        let patch = self.patch.to_str().ok_or("a path that is no text")?;
        run(&[&["apply", &pid, patch], arguments].concat())
    }

    /// `livepatch rollback`; its report.
    ///
    /// # Errors
    /// If it was not done.
    pub fn rollback(&self, program: &Program, arguments: &[&str]) -> Result<Value, Failed> {
        let pid = program.pid().to_string();
        run(&[&["rollback", &pid], arguments].concat())
    }
}

fn run(arguments: &[&str]) -> Result<Value, Failed> {
    Ok(tools::livepatch(arguments)?.expect(exit::DONE, arguments[0])?.json)
}
