//! The tools under test.

use crate::{Failed, fail};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Exit codes of the command line contract.
pub mod exit {
    /// Done.
    pub const DONE: i32 = 0;
    /// Internal or environment error.
    pub const ERROR: i32 = 1;
    /// Wrong usage.
    pub const USAGE: i32 = 2;
    /// Nothing to patch.
    pub const NOTHING: i32 = 3;
    /// Refused.
    pub const REFUSED: i32 = 4;
    /// Busy.
    pub const BUSY: i32 = 5;
    /// Mismatch.
    pub const MISMATCH: i32 = 6;
    /// No permission.
    pub const PERMISSION: i32 = 7;
    /// Process lost.
    pub const LOST: i32 = 8;
}

/// Copies a file that is going to be executed to where anybody may do so.
///
/// A process of its own writes it: a file that this process had open for writing would be so too in every child that another
/// thread is just about to start, and the kernel executes nothing that somebody may write to ("Text file busy").
///
/// # Errors
/// If it cannot be read or written.
pub fn place(from: impl AsRef<OsStr>, to: &Path) -> Result<(), Failed> {
    let (from, mut command) = (from.as_ref(), Command::new("install"));
    let output = command.args(["-m", "755", "--"]).arg(from).arg(to).output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            fail(format!("{} was not copied: {}", from.display(), String::from_utf8_lossy(&output.stderr)))
        }
    }
}

/// What a run of a tool gave.
#[derive(Debug)]
pub struct Ran {
    /// Exit code, -1 if a signal ended it.
    pub code: i32,
    /// The object on standard output, null if there was none.
    pub json: Value,
    /// Standard error and, if it was no JSON, standard output.
    pub text: String,
}

impl Ran {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn of(command: &mut Command) -> Result<Self, Failed> {
        let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
        let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            text.push_str(&String::from_utf8_lossy(&output.stdout));
            Value::Null
        });
        Ok(Self { code: output.status.code().unwrap_or(-1), json, text })
    }

    /// Insists on an exit code. An error report has to be complete: text and code in the object.
    ///
    /// # Errors
    /// If it was another one.
    pub fn expect(self, code: i32, what: &str) -> Result<Self, Failed> {
        if self.code != code {
            return fail(format!("{what}: exit {} and not {code}\n{}\n{}", self.code, self.json, self.text));
        }
        let complete = self.json["exit_code"] == code && self.json["error"].is_string();
        if code != exit::DONE && !complete && !self.json["findings"].is_array() && code != exit::NOTHING {
            return fail(format!("{what}: the report lacks error or exit_code: {}", self.json));
        }
        Ok(self)
    }
}

/// The folder with both tools, built from the sources as they are.
///
/// # Panics
/// If they do not build: no test has a meaning then.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| build(&["--bin", "livepatch", "--bin", "cargo-livepatch"]))
}

/// `livepatch` with fault injection: a program of its own name, so that it is in no other test's way.
///
/// # Panics
/// If it does not build.
pub fn with_faults() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let features = ["--no-default-features", "--features", "apply,fault-injection"];
        build(&[&["--bin", "livepatch-faults"][..], &features].concat()).join("livepatch-faults")
    })
}

/// Builds programs of the command line package; returns the folder that they are in.
fn build(arguments: &[&str]) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/test").to_owned();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "livepatch-cli", "--manifest-path"]);
    cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")).args(arguments);
    cargo.arg("--target-dir").arg(folder.parent().expect("target/PROFILE"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the tools do not build");
    folder
}

/// `livepatch --json ARGS`.
///
/// # Errors
/// If it cannot be started.
pub fn livepatch<S: AsRef<OsStr>>(args: &[S]) -> Result<Ran, Failed> {
    Ran::of(Command::new(folder().join("livepatch")).arg("--json").args(args))
}

/// `cargo build --release` in a project folder into a target folder of its own, with the debug information that
/// `cargo livepatch build` turns on: what our builds are compared with.
///
/// # Errors
/// If it fails.
pub fn plain_build(dir: &Path, target: &str) -> Result<(), Failed> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--quiet", "--target-dir", target]).current_dir(dir);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_") && name != "CARGO_HOME" {
            cargo.env_remove(name);
        }
    }
    match cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "2").status()?.success() {
        true => Ok(()),
        false => fail("cargo build failed"),
    }
}

/// A command for `cargo livepatch …` in a project folder, as cargo would start it, with a baseline store of the
/// project's own.
pub fn cargo_livepatch(dir: &Path) -> Command {
    let mut command = Command::new(folder().join("cargo-livepatch"));
    command.arg("livepatch").current_dir(dir).env("LIVEPATCH_HOME", dir.join("store"));
    // What cargo sets for tests must not reach the build under test.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_")
            || name.to_string_lossy().starts_with("CARGO_MANIFEST")
            || name == "CARGO_INCREMENTAL"
        {
            command.env_remove(name);
        }
    }
    command
}
