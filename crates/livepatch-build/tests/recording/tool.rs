//! The command line under test: `build` and `rebuild` in a process of their own.

use livepatch_build::Build;
use livepatch_build::baseline::{Baseline, Manifest};
use livepatch_build::cargo::{BuildOptions, build};
use livepatch_build::rebuild::{RebuildOptions, rebuild};
use livepatch_build::source::{Change, SourceDiff};
use livepatch_build::store::Store;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

/// First argument that asks for the tool.
pub const WORD: &str = "as-tool";
/// Starts the line with the answer.
const ANSWER: &str = "ANSWER ";

#[derive(Debug, Serialize, Deserialize)]
pub struct Built {
    pub manifest: Manifest,
    pub output: PathBuf,
    pub stripped: PathBuf,
    pub fresh: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Rebuilt {
    pub image: PathBuf,
    pub manifest: Manifest,
    /// Path, digest and place of the contents of each input.
    pub inputs: Vec<(String, String, PathBuf)>,
    pub sections: usize,
    /// What changed in the sources since the baseline.
    pub change: String,
}

impl Rebuilt {
    fn new(build: Build, change: &Change) -> Self {
        let inputs = build.inputs.into_iter().map(|i| (i.path, i.digest.to_string(), i.blob)).collect();
        let change = match change {
            Change::Nothing => "nothing".into(),
            Change::Everything { reason } => format!("everything: {reason}"),
            Change::Items(items) => items.iter().map(|item| item.path.as_str()).collect::<Vec<_>>().join(" "),
        };
        let sections = build.map.sections().len();
        Self { image: build.image, manifest: build.manifest, inputs, sections, change }
    }
}

/// The tool's side.
pub fn run(args: &[String]) -> ExitCode {
    match answer(args) {
        Ok(json) => {
            println!("{ANSWER}{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn answer(args: &[String]) -> Result<String, Box<dyn Error>> {
    let store = Store::locate()?;
    let (cwd, wrapper) = (std::env::current_dir()?, std::env::current_exe()?);
    match args {
        [word, rest @ ..] if word == "build" => {
            let built = build(&store, &BuildOptions { args: rest.to_vec(), cwd, wrapper })?;
            let built: Vec<_> = built
                .into_iter()
                .map(|b| Built {
                    manifest: b.manifest,
                    output: b.output,
                    stripped: b.stripped,
                    fresh: b.fresh,
                })
                .collect();
            Ok(serde_json::to_string(&built)?)
        }
        [word, id] if word == "rebuild" => {
            let baseline = Baseline::open(&store, id)?;
            let build = rebuild(&store, &baseline, &RebuildOptions { wrapper, workspace: cwd })?.build;
            let diff = SourceDiff::of_builds(&baseline.build()?, &build)?;
            Ok(serde_json::to_string(&Rebuilt::new(build, diff.change()))?)
        }
        _ => Err("unknown command".into()),
    }
}

/// A run of the tool.
pub struct Run {
    pub output: Output,
}

/// Prepares the tool in a folder, with a store.
pub fn command(store: &Path, cwd: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(WORD).args(args).current_dir(cwd).env("LIVEPATCH_HOME", store);
    for name in
        ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"]
    {
        command.env_remove(name);
    }
    command
}

/// Runs the tool.
pub fn start(mut command: Command) -> Run {
    Run { output: command.output().unwrap() }
}

impl Run {
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// The answer of a run that must succeed.
    pub fn answer<T: for<'de> Deserialize<'de>>(&self) -> T {
        assert!(self.output.status.success(), "{}", self.stderr());
        let stdout = self.stdout();
        let line = stdout.lines().find_map(|line| line.strip_prefix(ANSWER)).expect("an answer");
        serde_json::from_str(line).unwrap()
    }

    /// The standard error of a run that must fail.
    pub fn failure(&self) -> String {
        assert!(!self.output.status.success(), "succeeded: {}", self.stdout());
        self.stderr()
    }
}
