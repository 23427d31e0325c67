//! One run of cargo with our wrappers in its environment.

use super::Linked;
use super::artifacts;
use crate::baseline::LinkRecord;
use crate::config::{BuildArgs, Environment, Setup, env_name};
use crate::error::{Error, IoContext, Result};
use crate::linker::{Entry, Mode, RustcWrapper, STATE_VAR, State};
use crate::store::Store;
use crate::units::{self, Pins, Unit};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;
use tempfile::TempDir;

/// What a session is for.
pub(crate) struct SessionPlan<'a> {
    pub store: &'a Store,
    pub setup: &'a Setup,
    pub args: &'a BuildArgs,
    /// The executable that serves as wrapper.
    pub wrapper: &'a Path,
    pub mode: Mode,
}

/// Where a rebuild keeps its records and builds.
pub(crate) struct Candidate {
    /// Records that outlive the session: the last link of each output.
    pub records: PathBuf,
    /// Temporary files, on the file system of the candidate's blobs.
    pub work: PathBuf,
    pub rustc: RustcWrapper,
}

/// A prepared environment with the folder that its wrappers use.
pub(crate) struct Session {
    env: Environment,
    records: PathBuf,
    scripts: RefCell<BTreeSet<String>>,
    outputs: RefCell<BTreeSet<PathBuf>>,
    started: SystemTime,
    _folder: TempDir,
}

impl Session {
    pub(crate) fn start(
        plan: &SessionPlan<'_>,
        mut env: Environment,
        candidate: Option<Candidate>,
    ) -> Result<Self> {
        let tmp = plan.store.tmp();
        let folder =
            tempfile::Builder::new().prefix("session-").tempdir_in(&tmp).at("create a folder in", &tmp)?;
        let entry = Entry::new(plan.store, plan.wrapper);
        for (triple, linker) in &plan.setup.linkers {
            env.set(format!("CARGO_TARGET_{}_LINKER", env_name(triple)), entry.linker(triple, linker)?);
        }
        let profile = env_name(&plan.args.profile);
        // Nothing else of the profile: cargo hashes it, and every symbol name would differ from a plain build's. A
        // profile that strips is met by the linker wrapper.
        env.set(format!("CARGO_PROFILE_{profile}_DEBUG"), "2");
        if plan.setup.splits_debuginfo {
            env.set(format!("CARGO_PROFILE_{profile}_SPLIT_DEBUGINFO"), "off");
        }
        let (records, work, rustc) = match candidate {
            Some(Candidate { records, work, rustc }) => (records, work, rustc),
            None => {
                let chained = plan.setup.rustc_wrapper.clone();
                let rustc = RustcWrapper { chained, remap: Vec::new(), pins: Pins::default() };
                (folder.path().join("records"), folder.path().to_path_buf(), rustc)
            }
        };
        std::fs::create_dir_all(&records).at("create the folder", &records)?;
        env.set("RUSTC_WRAPPER", entry.rustc()?);
        let mode = match &plan.mode {
            Mode::Baseline => Mode::Baseline,
            Mode::Candidate { blobs } => Mode::Candidate { blobs: blobs.clone() },
        };
        let state = State {
            store: plan.store.root().to_path_buf(),
            linkers: plan.setup.linkers.clone(),
            work,
            records: records.clone(),
            mode,
            rustc,
        };
        let path = folder.path().join("state.json");
        state.write(&path)?;
        env.set(STATE_VAR, path);
        Ok(Self {
            env,
            records,
            scripts: RefCell::default(),
            outputs: RefCell::default(),
            started: SystemTime::now(),
            _folder: folder,
        })
    }

    /// Where the wrappers write link records.
    pub(crate) fn records(&self) -> &Path {
        &self.records
    }

    /// What the build scripts of the last run told cargo that gets into code.
    pub(crate) fn scripts(&self) -> BTreeSet<String> {
        self.scripts.borrow().clone()
    }

    /// How the crates of the last run were compiled, that of `link` among them, each with the file that says so.
    pub(crate) fn units(&self, link: &LinkRecord) -> Vec<(PathBuf, Unit)> {
        let outputs = self.outputs.borrow();
        let linked = Path::new(&link.output);
        units::read(outputs.iter().map(PathBuf::as_path).chain([linked]))
    }

    /// A time before the first run.
    pub(crate) fn started(&self) -> SystemTime {
        self.started
    }

    /// Runs cargo and returns what it linked or found up to date. `target_dir` replaces the user's.
    pub(crate) fn run(&self, plan: &SessionPlan<'_>, target_dir: Option<&Path>) -> Result<Vec<Linked>> {
        let mut command = self.env.command(&plan.setup.cargo, &plan.setup.cwd);
        command.arg("build").arg(format!("--message-format={}", plan.args.message_format()));
        if let Some(folder) = target_dir {
            command.arg("--target-dir").arg(folder).env("CARGO_BUILD_BUILD_DIR", folder);
        } else if let Some(folder) = &plan.args.target_dir {
            command.arg("--target-dir").arg(folder);
        }
        command.args(&plan.args.what).stdout(Stdio::piped());
        let spawn = |source| Error::Spawn { program: "cargo".into(), source };
        let mut child = command.spawn().map_err(spawn)?;
        let mut linked = Vec::new();
        self.scripts.borrow_mut().clear();
        self.outputs.borrow_mut().clear();
        if let Some(stdout) = child.stdout.take() {
            let mut user = std::io::stdout().lock();
            for line in BufReader::new(stdout).lines() {
                let line = line.map_err(spawn)?;
                let message = serde_json::from_str(&line).ok();
                // A reader that has gone away must not stop the build.
                if message.is_none() || plan.args.wants_json() {
                    let _ = writeln!(user, "{line}");
                }
                match message {
                    Some(cargo_metadata::Message::CompilerArtifact(artifact)) => {
                        let outputs = artifact.filenames.iter().map(|path| path.clone().into_std_path_buf());
                        self.outputs.borrow_mut().extend(outputs);
                        linked.extend(artifacts::linked(artifact, plan.setup)?);
                    }
                    Some(cargo_metadata::Message::BuildScriptExecuted(script)) => {
                        // Not the id, which holds the place.
                        let package = artifacts::name_and_version(&script.package_id.repr);
                        let told = format!("{package:?} {:?} {:?}", script.cfgs, script.env);
                        self.scripts.borrow_mut().insert(told);
                    }
                    _ => {}
                }
            }
        }
        let status = child.wait().map_err(spawn)?;
        if !status.success() {
            return Err(Error::Cargo { code: status.code().unwrap_or(1) });
        }
        Ok(linked)
    }
}
