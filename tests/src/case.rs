//! A running program and the patch for it, for tests that write their source in their own file.

use crate::child::Program;
use crate::fixture::{Fixture, Side};
use crate::profile::Profile;
use crate::project::{Project, command};
use crate::tools::{self, Ran, exit};
use crate::{Failed, fail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// For what happens at once but for the load of the machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A program that runs, stripped, and the patch for it.
pub struct Case {
    /// The program.
    pub program: Program,
    /// What runs of the tool are about.
    pub target: Target,
    project: Project,
    name: String,
    shipped: PathBuf,
}

/// What runs of the tool need, in any thread.
#[derive(Clone)]
pub struct Target {
    /// Process id.
    pub pid: String,
    /// The patch file.
    pub patch: PathBuf,
}

impl Target {
    /// `apply` with these further arguments.
    ///
    /// # Errors
    /// If the tool cannot be started.
    pub fn apply(&self, arguments: &[&str]) -> Result<Ran, String> {
        self.run("apply", self.patch.to_str(), arguments)
    }

    /// `rollback` with these further arguments.
    ///
    /// # Errors
    /// If the tool cannot be started.
    pub fn rollback(&self, arguments: &[&str]) -> Result<Ran, String> {
        self.run("rollback", None, arguments)
    }

    fn run(&self, verb: &str, file: Option<&str>, arguments: &[&str]) -> Result<Ran, String> {
        let words = [verb, &self.pid].into_iter().chain(file).chain(arguments.iter().copied());
        tools::livepatch(&words.collect::<Vec<_>>()).map_err(|error| error.to_string())
    }
}

impl Case {
    /// Builds the old source, makes a patch of the new one, and starts the program.
    ///
    /// # Errors
    /// If one of that fails.
    pub fn start(name: &str, source: &str) -> Result<Self, Failed> {
        let fixture = Fixture::inline(name, source)?;
        let project = Project::new(&fixture, Profile::Release)?;
        let shipped = project.ship()?;
        project.write(Side::New)?;
        let created = project.create("fix")?;
        created.ran.expect(exit::DONE, "create")?;
        let program = Program::start(command(&shipped))?;
        let target = Target { pid: program.pid().to_string(), patch: created.file };
        Ok(Self { program, target, project, name: name.to_owned(), shipped })
    }

    /// The stripped program.
    pub fn shipped(&self) -> &Path {
        &self.shipped
    }

    /// The program with symbols, as the build left it.
    pub fn output(&self) -> PathBuf {
        self.project.path().join("target/release").join(&self.name)
    }

    /// Process id.
    pub fn pid(&self) -> String {
        self.target.pid.clone()
    }

    /// As [`Target::apply`].
    ///
    /// # Errors
    /// If the tool cannot be started.
    pub fn apply(&self, arguments: &[&str]) -> Result<Ran, Failed> {
        Ok(self.target.apply(arguments)?)
    }

    /// As [`Target::rollback`].
    ///
    /// # Errors
    /// If the tool cannot be started.
    pub fn rollback(&self, arguments: &[&str]) -> Result<Ran, Failed> {
        Ok(self.target.rollback(arguments)?)
    }

    /// Applies the patch and rolls it back; the rounds after either have to print these.
    ///
    /// # Errors
    /// If one of the operations does not succeed, or the program prints something else.
    pub fn there_and_back(&mut self, new: &str, old: &str) -> Result<(), Failed> {
        const PATIENT: [&str; 2] = ["--timeout", "50"];
        self.apply(&PATIENT)?.expect(exit::DONE, "apply")?;
        self.says(new)?;
        self.rollback(&PATIENT)?.expect(exit::DONE, "rollback")?;
        self.says(old)
    }

    /// Runs a round, which has to print this.
    ///
    /// # Errors
    /// If it prints something else, or does not answer.
    pub fn says(&mut self, expected: &str) -> Result<(), Failed> {
        let said = self.program.round()?.join("\n");
        if said == expected { Ok(()) } else { fail(format!("the program says `{said}`, not `{expected}`")) }
    }

    /// A field of the process's `/proc/PID/status`.
    ///
    /// # Errors
    /// If there is none.
    pub fn status(&self, field: &str) -> Result<String, Failed> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(value.ok_or("no such field")?.trim().to_owned())
    }

    /// Waits until something is so.
    ///
    /// # Errors
    /// If it does not come to be.
    pub fn wait_for(&self, what: &str, met: impl Fn(&Self) -> Result<bool, Failed>) -> Result<(), Failed> {
        let started = Instant::now();
        while !met(self)? {
            if started.elapsed() > LIMIT {
                return fail(format!("waited in vain for {what}"));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Sends the program a signal.
    ///
    /// # Errors
    /// If that fails.
    pub fn signal(&self, name: &str) -> Result<(), Failed> {
        let sent = Command::new("kill").args(["-s", name, &self.pid()]).status()?;
        if sent.success() { Ok(()) } else { fail(format!("kill -s {name}: {sent}")) }
    }
}
