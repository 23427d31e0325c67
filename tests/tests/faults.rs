//! A fault at every operation of the tool on a process: it is killed there, or the operation fails.
//!
//! The target has three functions that must agree, and threads that call them all the time and count every answer that is
//! neither wholly of one version nor wholly of another. For each operation of `apply` and `rollback`, in order, until a run
//! ends without reaching it:
//!
//! | fault | what must hold afterwards |
//! |---|---|
//! | SIGKILL right before an operation that writes, or lets threads run or stop | the target lives, all answers are of one version, the next run does its work |
//! | SIGKILL right after one that lets threads run or stop | the same |
//! | an operation fails with `EIO` | the same; and if the run said so (exit code 1, 4 to 8), the version is the one before |
//!
//! Covered are ptrace requests, `process_vm_readv`, and writes to memory and descriptors of the target. Not covered are failing operations of a
//! first `apply` (the load of a patch, that is), what is read from `/proc`, waiting, and SIGKILL inside of a system call of the tool. Runs do not make quite the same operations
//! each time, because the target's threads do not: that a number was reached says nothing about which operation it was.

use livepatch_tests::child::Program;
use livepatch_tests::fixture::{Fixture, Side};
use livepatch_tests::profile::Profile;
use livepatch_tests::project::{Project, command};
use livepatch_tests::tools::{self, Ran, exit};
use livepatch_tests::{Failed, fail};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Version 1 is the program's. Version 2 brings a thread-local (hence a carrier to load) and a function to look up by the
/// program's loader; version 3 is version 2 with another number.
const SOURCE: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const THREADS: usize = 3;
static CALLS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
static SEEN: AtomicU64 = AtomicU64::new(0);
static MIXED: AtomicU64 = AtomicU64::new(0);

thread_local! { //+
    static MINE: std::cell::Cell<u64> = const { std::cell::Cell::new(7) }; //+
} //+

#[inline(never)]
fn left(n: u64) -> u64 {
    n.wrapping_add(1) //-
    MINE.set(MINE.get() + 1); //+
    n.wrapping_add(VERSION + black_box(MINE.get()) / u64::MAX) //+
}

#[inline(never)]
fn right(n: u64) -> u64 {
    n ^ 1 //-
    let text = unsafe { std::ffi::CStr::from_ptr(black_box(c"seven77".as_ptr())) }; //+
    n ^ (VERSION + text.to_bytes().len() as u64 - 7) //+
}

#[inline(never)]
fn answer(n: u64) -> [u64; 3] {
    [1, left(n).wrapping_sub(n), right(n) ^ n] //-
    [VERSION, left(n).wrapping_sub(n), right(n) ^ n] //+
}

fn work(thread: usize) {
    for n in 0_u64.. {
        let [version, left, right] = black_box(answer as fn(u64) -> [u64; 3])(black_box(n));
        match version == left && version == right {
            true => SEEN.fetch_or(1 << version, SeqCst),
            false => MIXED.fetch_add(1, SeqCst),
        };
        CALLS[thread].fetch_add(1, SeqCst);
        if n % 64 == 63 {
            std::thread::sleep(Duration::from_micros(500 << thread));
        }
    }
}

/// Waits until every thread has given some more answers.
fn more(answers: u64) {
    let before: Vec<u64> = CALLS.iter().map(|calls| calls.load(SeqCst)).collect();
    for (calls, before) in CALLS.iter().zip(before) {
        while calls.load(SeqCst) < before + answers {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn step() {
    more(1);
    SEEN.store(0, SeqCst);
    more(2);
    println!("{} {}", SEEN.load(SeqCst), MIXED.load(SeqCst));
}

fn main() {
    for thread in 0..THREADS {
        std::thread::spawn(move || work(thread));
    }
    host::serve(step);
}
"#;

const OLD: u64 = 1;
const SECOND: u64 = 2;
const THIRD: u64 = 3;

struct Case {
    _project: Project,
    program: PathBuf,
    second: PathBuf,
    third: PathBuf,
}

fn case() -> &'static Case {
    static CASE: OnceLock<Case> = OnceLock::new();
    CASE.get_or_init(|| prepare().expect("the case builds"))
}

fn prepare() -> Result<Case, Failed> {
    let fixture = Fixture::inline("faults", SOURCE)?;
    let source: String = fixture.sources(Side::New).map(|(_, text)| text).collect();
    let project = Project::new(&fixture, Profile::Release)?;
    let program = project.ship()?;
    let create = |version: u64| -> Result<PathBuf, Failed> {
        project.file("src/main.rs", &source.replace("VERSION", &version.to_string()))?;
        let created = project.create(&format!("version-{version}"))?;
        created.ran.expect(exit::DONE, "create")?;
        Ok(created.file)
    };
    let (second, third) = (create(SECOND)?, create(THIRD)?);
    Ok(Case { _project: project, program, second, third })
}

/// A run of the tool.
#[derive(Clone, Copy, Debug)]
enum Act {
    Apply(u64),
    Rollback,
}

struct Target(Program);

impl Target {
    fn start() -> Result<Self, Failed> {
        Ok(Self(Program::start(command(&case().program))?))
    }

    fn run(&self, act: Act, fault: Option<&str>) -> Result<Ran, Failed> {
        let pid = self.0.pid().to_string();
        let mut arguments: Vec<&OsStr> = vec!["--json".as_ref()];
        match act {
            Act::Apply(version) => {
                let file = if version == SECOND { &case().second } else { &case().third };
                arguments.extend(["apply".as_ref(), pid.as_ref(), file.as_os_str()]);
            }
            Act::Rollback => arguments.extend(["rollback", &pid].map(OsStr::new)),
        }
        let mut tool = Command::new(tools::with_faults());
        tool.args(arguments).env_remove("LIVEPATCH_FAULT");
        if fault.is_some_and(|fault| fault.starts_with("fail")) {
            // A thread that the tool cannot send on is in the way until the end.
            tool.args(["--timeout", "1"]);
        }
        Ran::of(tool.envs(fault.map(|fault| ("LIVEPATCH_FAULT", fault))))
    }

    /// Without a fault it has to work, and leaves the version that it is for.
    fn succeed(&mut self, act: Act) -> Result<Ran, Failed> {
        let ran = self.run(act, None)?.expect(exit::DONE, &format!("{act:?}"))?;
        let wanted = match act {
            Act::Apply(version) => version,
            Act::Rollback => OLD,
        };
        match self.version()? {
            version if version == wanted => Ok(ran),
            version => fail(format!("after {act:?} the answers are of version {version}: {}", ran.json)),
        }
    }

    /// The version of all answers.
    fn version(&mut self) -> Result<u64, Failed> {
        let lines = self.0.round()?;
        let words: Vec<u64> = lines[0].split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [seen, mixed] = words[..] else { return fail(format!("unexpected line {lines:?}")) };
        if mixed != 0 {
            return fail(format!("{mixed} answers were mixed of two versions"));
        }
        match [OLD, SECOND, THIRD].into_iter().find(|version| seen == 1 << version) {
            Some(version) => Ok(version),
            None => fail(format!("answers of several versions at the same time: {seen:#b}")),
        }
    }
}

/// One fault, and what followed from it. False if the run ended before it came to that operation.
fn inject(target: &mut Target, act: Act, before: u64, mode: &str, number: u64) -> Result<bool, Failed> {
    let fault = format!("{mode}:{number}");
    let ran = target.run(act, Some(&fault))?;
    let Some((_, operation)) = ran.text.split_once("fault injection: ") else {
        ran.expect(exit::DONE, "a run without a fault")?;
        return Ok(false);
    };
    let told = format!("{act:?}, {}", operation.lines().next().unwrap_or_default());
    let after = match act {
        Act::Apply(version) => version,
        Act::Rollback => OLD,
    };
    let version = target.version().map_err(|error| format!("{told}: {error}\n{}", ran.text))?;
    let allowed: &[u64] = match (mode, ran.code) {
        ("fail", exit::DONE) => &[after],
        ("fail", exit::ERROR | exit::REFUSED..=exit::LOST) => &[before],
        // A registry that cannot be read is none.
        ("fail", exit::USAGE) if matches!(act, Act::Rollback) => &[before],
        ("kill-before" | "kill-after", -1) => &[before, after],
        (_, code) => return fail(format!("{told}: exit {code}\n{}", ran.text)),
    };
    if !allowed.contains(&version) {
        let Ran { code, json, text } = ran;
        return fail(format!("{told}: exit {code} with version {version}\n{json}\n{text}"));
    }
    let repaired = match act {
        Act::Rollback if version == OLD => target.succeed_or_nothing(),
        act => target.succeed(act).map(drop),
    };
    repaired.map_err(|error| format!("after {told}: {error}"))?;
    Ok(true)
}

impl Target {
    /// A rollback that may have been done already.
    fn succeed_or_nothing(&mut self) -> Result<(), Failed> {
        let ran = self.run(Act::Rollback, None)?;
        match (ran.code, self.version()?) {
            (exit::DONE | exit::USAGE, OLD) => Ok(()),
            (code, version) => fail(format!("rollback: exit {code} with version {version}\n{}", ran.text)),
        }
    }
}

/// Injects a fault of one kind at every operation. `ready` brings the target to where `act` starts from.
fn at_every_operation(
    mode: &str,
    act: Act,
    before: u64,
    fresh: bool,
    ready: impl Fn(&mut Target) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let started = std::time::Instant::now();
    let mut target = Target::start()?;
    let mut failures = Vec::new();
    for number in 1.. {
        ready(&mut target)?;
        match inject(&mut target, act, before, mode, number) {
            Ok(true) => {}
            Ok(false) => {
                println!("{mode}, {act:?}: {} operations, {:?}", number - 1, started.elapsed());
                break;
            }
            Err(error) => {
                failures.push(error.to_string());
                target = Target::start()?;
            }
        }
        if fresh {
            target = Target::start()?;
        }
    }
    match failures.is_empty() {
        true => target.0.finish(),
        false => fail(format!("{} faults were not survived:\n{}", failures.len(), failures.join("\n"))),
    }
}

fn first_apply(mode: &str) -> Result<(), Failed> {
    at_every_operation(mode, Act::Apply(SECOND), OLD, true, |_| Ok(()))
}

fn replace(mode: &str) -> Result<(), Failed> {
    at_every_operation(mode, Act::Apply(THIRD), SECOND, false, |target| {
        target.succeed(Act::Apply(SECOND)).map(drop)
    })
}

fn rollback(mode: &str) -> Result<(), Failed> {
    at_every_operation(mode, Act::Rollback, SECOND, false, |target| {
        target.succeed(Act::Apply(SECOND)).map(drop)
    })
}

#[test]
fn killed_before_each_operation_of_a_first_apply() -> Result<(), Failed> {
    first_apply("kill-before")
}

#[test]
fn killed_after_each_operation_of_a_first_apply() -> Result<(), Failed> {
    first_apply("kill-after")
}

#[test]
fn killed_before_each_operation_of_a_replacement() -> Result<(), Failed> {
    replace("kill-before")
}

#[test]
fn killed_after_each_operation_of_a_replacement() -> Result<(), Failed> {
    replace("kill-after")
}

#[test]
fn each_operation_of_a_replacement_fails() -> Result<(), Failed> {
    replace("fail")
}

#[test]
fn killed_before_each_operation_of_a_rollback() -> Result<(), Failed> {
    rollback("kill-before")
}

#[test]
fn killed_after_each_operation_of_a_rollback() -> Result<(), Failed> {
    rollback("kill-after")
}

#[test]
fn each_operation_of_a_rollback_fails() -> Result<(), Failed> {
    rollback("fail")
}
