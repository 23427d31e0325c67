//! A program that patches itself, built once for each way to build, run in many surroundings.

use crate::child::Program;
use crate::fixture::{Fixture, Side};
use crate::profile::Profile;
use crate::project::{Project, command};
use crate::tools::{self, exit};
use crate::{Failed, fail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A shipped program and a patch for it.
pub struct Built {
    _project: Project,
    program: PathBuf,
    /// The patch.
    pub patch: PathBuf,
}

/// Builds the program and the patch.
///
/// # Errors
/// If one of them does not come to be.
pub fn build(profile: Profile) -> Result<Built, Failed> {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/self_patching");
    let project = Project::new(&Fixture::read(&case)?, profile)?;
    let program = project.ship()?;
    project.write(Side::New)?;
    let created = project.create("fix")?;
    created.ran.expect(exit::DONE, "create")?;
    // Any user may run it.
    fs::set_permissions(project.path(), fs::Permissions::from_mode(0o755))?;
    Ok(Built { program, patch: created.file, _project: project })
}

/// The release build, made once.
///
/// # Panics
/// If it fails: no test has a meaning then.
pub fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| build(Profile::Release).expect("the program is built"))
}

/// A running copy of the program in a folder of its own.
pub struct Case {
    /// The folder.
    pub folder: tempfile::TempDir,
    /// The program's file.
    pub file: PathBuf,
    /// The patch.
    pub patch: String,
    /// The process.
    pub program: Program,
}

impl Case {
    /// The release build.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start() -> Result<Self, Failed> {
        Self::of(built(), |_| {})
    }

    /// Any build; `prepare` adds to the command that starts it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn of(built: &Built, prepare: impl FnOnce(&mut Command)) -> Result<Self, Failed> {
        Self::placed(built, prepare, |_| Ok(()))
    }

    /// The release build, started by another program with these words and the program's file behind them.
    ///
    /// # Errors
    /// If it does not start.
    pub fn by(starter: &str, words: &[&str]) -> Result<Self, Failed> {
        Self::of(built(), |command| {
            let program = command.get_program().to_owned();
            let folder = command.get_current_dir().map(Path::to_owned);
            *command = crate::project::command(Path::new(starter));
            command.args(words).arg(program);
            command.current_dir(folder.unwrap_or_default());
        })
    }

    /// Any build, whose file is changed before it is started.
    ///
    /// # Errors
    /// If it does not start.
    pub fn placed(
        built: &Built,
        prepare: impl FnOnce(&mut Command),
        change: impl FnOnce(&Path) -> Result<(), Failed>,
    ) -> Result<Self, Failed> {
        let folder = crate::scratch::folder()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
        let file = folder.path().join("program");
        tools::place(&built.program, &file)?;
        change(&file)?;
        let mut command = command(&file);
        command.current_dir(folder.path());
        prepare(&mut command);
        let patch = built.patch.to_str().ok_or("a path that is no text")?.to_owned();
        Ok(Self { program: Program::start(command)?, folder, file, patch })
    }

    /// One command, one answer. `FIX` stands for the patch.
    ///
    /// # Errors
    /// If the program ended or does not answer.
    pub fn ask(&mut self, command: &str) -> Result<String, Failed> {
        self.program.send(&command.replace("FIX", &self.patch))?;
        self.program.line()
    }

    /// Insists on how the answer begins, and that the call was in time.
    ///
    /// # Errors
    /// If it is another one.
    pub fn expect(&mut self, command: &str, start: &str) -> Result<(), Failed> {
        let answer = self.ask(command)?;
        if answer.starts_with(start) && !answer.contains("LATE") {
            Ok(())
        } else {
            fail(format!("{command}: `{answer}` and not `{start}…`"))
        }
    }

    /// The whole life of a patch, under load.
    ///
    /// # Errors
    /// If anything is wrong.
    pub fn live(&mut self) -> Result<(), Failed> {
        self.expect("say", "old")?;
        self.expect("load 4", "loaded")?;
        for _ in 0..3 {
            self.expect("check FIX", "dry_run true")?;
            self.expect("say", "old")?;
            self.expect("apply FIX", "applied self_patching::")?;
            self.expect("say", "new")?;
            self.expect("apply FIX", "error already")?;
            self.expect("status", "1 Applied")?;
            self.expect("rollback", "took out 1")?;
            self.expect("say", "old")?;
        }
        self.expect("all", "error nothing")?;
        self.expect("unload", "0 wrong")
    }

    /// The constructor ran at the start and never again.
    ///
    /// # Errors
    /// If that is not so or the program failed.
    pub fn finish(self) -> Result<(), Failed> {
        let constructed = fs::read(self.file.with_extension("constructed"))?;
        self.program.finish()?;
        let others: Vec<_> =
            fs::read_dir(self.folder.path())?.flatten().map(|entry| entry.file_name()).collect();
        if constructed != b"x" || others.len() > 2 {
            return fail(format!("the constructor ran {} times; files: {others:?}", constructed.len()));
        }
        Ok(())
    }

    /// Waits until the program has made a process of its file, that another one, and so on, so many in all.
    ///
    /// # Errors
    /// If they do not come.
    pub fn clones(&self, count: usize) -> Result<Vec<i32>, Failed> {
        let limit = Instant::now() + Duration::from_secs(20);
        while Instant::now() < limit {
            let found = descendants(self.program.pid() as i32, &self.file)?;
            if found.len() == count {
                return Ok(found);
            }
            std::thread::yield_now();
        }
        fail(format!("{count} clones did not come"))
    }

    /// The helper that works for the program, once there is one.
    ///
    /// # Errors
    /// If none is started.
    pub fn helper(&self) -> Result<i32, Failed> {
        let name = format!("livepatch-helper for {}", self.program.pid());
        let limit = Instant::now() + Duration::from_secs(20);
        while Instant::now() < limit {
            for entry in fs::read_dir("/proc")?.flatten() {
                let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                if words.starts_with(name.as_bytes()) {
                    return Ok(entry.file_name().to_str().ok_or("a process without a number")?.parse()?);
                }
            }
            std::thread::yield_now();
        }
        fail("no helper was started")
    }
}

/// Processes that run this file and that a process made, each made by the one before.
fn descendants(of: i32, file: &Path) -> Result<Vec<i32>, Failed> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may be gone.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<i32>().ok());
        if fs::read_link(entry.path().join("exe")).is_ok_and(|link| link == file) {
            parents.push((pid, parent));
        }
    }
    let mut chain = Vec::new();
    let mut last = of;
    while let Some((pid, _)) = parents.iter().find(|(_, parent)| *parent == Some(last)) {
        chain.push(*pid);
        last = *pid;
    }
    Ok(chain)
}

/// Sends a signal.
///
/// # Errors
/// If it cannot be sent.
pub fn signal(name: &str, pid: i32) -> Result<(), Failed> {
    let status = Command::new("kill").args([name, &pid.to_string()]).status()?;
    if status.success() { Ok(()) } else { fail(format!("kill {name} {pid} failed")) }
}

fn is_root() -> Result<bool, Failed> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

/// A user without any rights; as such a user already the tests run as themselves.
pub fn unprivileged(command: &mut Command) {
    if is_root().unwrap_or(false) {
        command.uid(65534).gid(65534);
    }
}
