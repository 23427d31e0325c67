//! Wrong patches, wrong processes, wrong users: the documented exit code, and an untouched process.

use livepatch_tests::child::Program;
use livepatch_tests::fixture::{Fixture, Side};
use livepatch_tests::profile::Profile;
use livepatch_tests::project::{Project, command};
use livepatch_tests::tools::{self, Ran, exit};
use livepatch_tests::{Failed, fail};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const SOURCE: &str = r#"
mod host;

#[inline(never)]
fn word() -> &'static str {
    std::hint::black_box("old") //-
    std::hint::black_box("new") //+
}

fn step() {
    println!("{}", word());
}

fn main() {
    host::serve(step);
}
"#;

struct Shipped {
    _project: Project,
    program: PathBuf,
    patch: PathBuf,
}

/// One program and one good patch for all tests here.
fn shipped() -> &'static Shipped {
    static SHIPPED: OnceLock<Shipped> = OnceLock::new();
    SHIPPED.get_or_init(|| ship("victim", SOURCE).expect("a program and its patch"))
}

fn ship(name: &str, source: &str) -> Result<Shipped, Failed> {
    let project = Project::new(&Fixture::inline(name, source)?, Profile::Release)?;
    let program = project.ship()?;
    project.write(Side::New)?;
    let created = project.create("fix")?;
    created.ran.expect(exit::DONE, "create")?;
    Ok(Shipped { _project: project, program, patch: created.file })
}

/// A running process that is compared with itself at the end.
struct Victim {
    program: Program,
    maps: String,
}

impl Victim {
    fn start() -> Result<Self, Failed> {
        let mut program = Program::start(command(&shipped().program))?;
        program.round()?;
        let maps = fs::read_to_string(format!("/proc/{}/maps", program.pid()))?;
        Ok(Self { program, maps })
    }

    fn pid(&self) -> String {
        self.program.pid().to_string()
    }

    fn run(&self, verb: &str, file: &Path) -> Result<Ran, Failed> {
        tools::livepatch(&[verb.as_ref(), self.pid().as_ref(), file.as_os_str()])
    }

    /// Its mappings are what they were, and it runs the old code.
    fn untouched(mut self) -> Result<(), Failed> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.program.pid()))?;
        if maps != self.maps {
            return fail(format!("the mappings changed:\n{}\n{maps}", self.maps));
        }
        let lines = self.program.round()?;
        if lines != ["old"] {
            return fail(format!("the process prints {lines:?}"));
        }
        self.program.finish()
    }
}

fn written(dir: &Path, bytes: &[u8]) -> Result<PathBuf, Failed> {
    let file = dir.join("bad.lpatch");
    fs::write(&file, bytes)?;
    Ok(file)
}

#[test]
fn no_such_process() -> Result<(), Failed> {
    let mut child = Command::new("true").spawn()?;
    let pid = child.id().to_string();
    child.wait()?;
    for verb in ["check", "apply"] {
        let args = [verb.as_ref(), pid.as_ref(), shipped().patch.as_os_str()];
        tools::livepatch(&args)?.expect(exit::LOST, verb)?;
    }
    for verb in ["status", "rollback"] {
        tools::livepatch(&[verb, &pid])?.expect(exit::LOST, verb)?;
    }
    Ok(())
}

#[test]
fn another_program() -> Result<(), Failed> {
    let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn()?;
    let pid = cat.id().to_string();
    let result = ["check", "apply"].into_iter().try_for_each(|verb| {
        let ran = tools::livepatch(&[verb.as_ref(), pid.as_ref(), shipped().patch.as_os_str()])?;
        ran.expect(exit::MISMATCH, verb).map(drop)
    });
    drop(cat.stdin.take());
    let status = cat.wait()?;
    result?;
    if status.success() { Ok(()) } else { fail(format!("cat ended with {status}")) }
}

#[test]
fn another_build_of_the_same_program() -> Result<(), Failed> {
    let other = ship("victim", &SOURCE.replace("println!(\"{}\", word())", "print!(\"{}\\n\", word())"))?;
    let victim = Victim::start()?;
    for verb in ["check", "apply"] {
        victim.run(verb, &other.patch)?.expect(exit::MISMATCH, verb)?;
    }
    victim.untouched()
}

#[test]
fn truncated_and_damaged_patches() -> Result<(), Failed> {
    let good = fs::read(&shipped().patch)?;
    let dir = livepatch_tests::scratch::folder()?;
    let victim = Victim::start()?;
    for length in (0..good.len()).step_by(good.len() / 12 + 1).chain([good.len() - 1]) {
        let file = written(dir.path(), &good[..length])?;
        victim.run("apply", &file)?.expect(exit::MISMATCH, &format!("the first {length} bytes"))?;
    }
    for at in (0..good.len()).step_by(good.len() / 24 + 1).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let file = written(dir.path(), &bad)?;
        victim.run("apply", &file)?.expect(exit::MISMATCH, &format!("byte {at} flipped"))?;
    }
    let file = written(dir.path(), &[&good[..], b"x"].concat())?;
    victim.run("apply", &file)?.expect(exit::MISMATCH, "one byte more")?;
    let inspected = tools::livepatch(&["inspect".as_ref(), file.as_os_str()])?;
    inspected.expect(exit::MISMATCH, "inspect")?;
    victim.untouched()
}

#[test]
fn a_patch_for_another_architecture() -> Result<(), Failed> {
    // Source: ELF gABI, `e_machine` at offset 18; 183 is AArch64.
    let mut foreign = fs::read(&shipped().patch)?;
    foreign[18..20].copy_from_slice(&183u16.to_le_bytes());
    let dir = livepatch_tests::scratch::folder()?;
    let file = written(dir.path(), &foreign)?;
    let victim = Victim::start()?;
    for verb in ["check", "apply"] {
        let ran = victim.run(verb, &file)?.expect(exit::MISMATCH, verb)?;
        if !ran.json["error"].as_str().is_some_and(|error| error.contains("architecture")) {
            return fail(format!("nothing says that it is the architecture: {}", ran.json));
        }
    }
    victim.untouched()
}

#[test]
fn files_that_are_no_patch() -> Result<(), Failed> {
    let victim = Victim::start()?;
    for file in ["/bin/cat", "/etc/passwd", "/dev/null"] {
        victim.run("apply", Path::new(file))?.expect(exit::MISMATCH, file)?;
    }
    victim.run("apply", Path::new("/does/not/exist"))?.expect(exit::ERROR, "no file")?;
    victim.untouched()
}

#[test]
fn applied_twice_and_rolled_back_twice() -> Result<(), Failed> {
    let mut victim = Victim::start()?;
    let patch = &shipped().patch;
    victim.run("apply", patch)?.expect(exit::DONE, "apply")?;
    let again = victim.run("apply", patch)?.expect(exit::DONE, "apply again")?;
    if again.json["already_applied"] != true {
        return fail(format!("nothing says that it was applied before: {}", again.json));
    }
    assert_eq!(victim.program.round()?, ["new"]);
    tools::livepatch(&["rollback", &victim.pid()])?.expect(exit::DONE, "rollback")?;
    tools::livepatch(&["rollback", &victim.pid()])?.expect(exit::USAGE, "rollback again")?;
    assert_eq!(victim.program.round()?, ["old"]);
    victim.program.finish()
}

/// What is said of it does not end the work in the middle: a full disk under the log, or a pager that was closed.
#[test]
fn nowhere_to_say_it() -> Result<(), Failed> {
    let mut victim = Victim::start()?;
    let full = || fs::File::options().write(true).open("/dev/full");
    let livepatch = |log: &str, words: &[&str]| -> Result<Option<i32>, Failed> {
        let mut command = Command::new(tools::folder().join("livepatch"));
        command.arg(log).args(words).stdout(Stdio::null()).stderr(full()?);
        Ok(command.status()?.code())
    };
    let patch = shipped().patch.to_str().ok_or("a path that is no text")?;
    assert_eq!(livepatch("-vvv", &["apply", &victim.pid(), patch])?, Some(exit::DONE));
    assert_eq!(victim.program.round()?, ["new"]);
    assert_eq!(livepatch("-vvv", &["rollback", &victim.pid(), "--json"])?, Some(exit::DONE));
    assert_eq!(livepatch("-v", &["rollback", &victim.pid()])?, Some(exit::USAGE));
    let mut command = Command::new(tools::folder().join("livepatch"));
    let ended = command.args(["apply", &victim.pid(), patch]).stdout(full()?).output()?;
    let text = String::from_utf8(ended.stderr)?;
    assert!(ended.status.code() == Some(1) && text.contains("is done (exit code 0)"), "{text}");
    assert_eq!(victim.program.round()?, ["new"]);
    victim.program.finish()
}

#[test]
fn rollback_of_nothing() -> Result<(), Failed> {
    let victim = Victim::start()?;
    tools::livepatch(&["rollback", &victim.pid()])?.expect(exit::USAGE, "rollback")?;
    tools::livepatch(&["rollback", &victim.pid(), "abcdef"])?.expect(exit::USAGE, "rollback of an id")?;
    let status = tools::livepatch(&["status", &victim.pid()])?.expect(exit::DONE, "status")?;
    assert_eq!(status.json["patches"], serde_json::json!([]));
    victim.untouched()
}

#[test]
fn another_user() -> Result<(), Failed> {
    const NOBODY: u32 = 65534;
    let root = fs::metadata("/proc/self")?.uid() == 0;
    let victim = Victim::start()?;
    // Root becomes nobody; an ordinary user has no permission on the first process anyway.
    let pid = if root { victim.pid() } else { "1".into() };
    let dir = livepatch_tests::scratch::folder()?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    let (tool, patch) = (dir.path().join("livepatch"), dir.path().join("fix.lpatch"));
    tools::place(tools::folder().join("livepatch"), &tool)?;
    fs::copy(&shipped().patch, &patch)?;
    fs::set_permissions(&patch, Permissions::from_mode(0o644))?;
    for verb in ["check", "apply", "rollback", "status"] {
        let mut command = Command::new(&tool);
        command.args(["--json", verb, &pid]).current_dir("/");
        if matches!(verb, "check" | "apply") {
            command.arg(&patch);
        }
        if root {
            command.uid(NOBODY).gid(NOBODY);
        }
        Ran::of(&mut command)?.expect(exit::PERMISSION, verb)?;
    }
    victim.untouched()
}
