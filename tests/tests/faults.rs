//! A fault at every operation of the tool on a process: it is killed there, the process is killed there, or the operation fails.
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
//! | SIGKILL of the target right before an operation | the run ends with exit code 8, or 0 if it was done |
//!
//! So it is under the default policy. Under `immediate`, answers under way at the switch may be mixed, and only later ones count; a
//! tool that is killed under `snapshot` may leave some functions of either version until the next run. The
//! *busy* target besides forks children that give answers, and answers in a signal handler, all the time. A child whose `fork`
//! was under way since before the tool put its signal handler in place has the breakpoints without the handler, and dies of them
//! if the tool is killed before it has put them in order: one for each kill at most.
//!
//! Covered are ptrace requests, `process_vm_readv`, and writes to memory and descriptors of the target. Not covered are what is
//! read from `/proc`, waiting, and SIGKILL inside of a system call of the tool. Runs do not make quite the same operations each
//! time, because the target's threads do not: that a number was reached says nothing about which operation it was.
//!
//! Where a run takes long, only every few operations have their fault; with `LIVEPATCH_EVERY_FAULT=1` in the environment all have.

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
/// program's loader, and a function whose address the program keeps; version 3 is version 2 with another number.
const SOURCE: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const THREADS: usize = 3;
static CALLS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
static SEEN: AtomicU64 = AtomicU64::new(0);
static MIXED: AtomicU64 = AtomicU64::new(0);
static FORKS: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);
static CAUGHT: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(code: i32) -> !;
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn setitimer(which: i32, new: *const [i64; 4], old: *mut [i64; 4]) -> i32;
}

const SIGTRAP: i32 = 5;
const SIGALRM: i32 = 14;

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
    if KEPT.load(SeqCst) == 0 { //+
        KEPT.store(brought as fn(u64) -> u64 as usize, SeqCst); //+
    } //+
    let kept: fn(u64) -> u64 = unsafe { std::mem::transmute(KEPT.load(SeqCst)) }; //+
    count(kept(n).wrapping_sub(n)); //+
    [VERSION, left(n).wrapping_sub(n), right(n) ^ n] //+
}

/// The address of the one that version 2 brings is kept, and has to lead to that of version 3. //+
static KEPT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0); //+

#[inline(never)] //+
fn brought(n: u64) -> u64 { //+
    n.wrapping_add(VERSION) //+
} //+

/// The version, from a depth at which a thread that is inside has passed entries many times.
#[inline(never)]
fn deep(n: u64) -> u64 {
    if n == 10 {
        std::thread::sleep(Duration::from_micros(300));
    }
    if n > 0 {
        return black_box(deep(black_box(n - 1)));
    }
    1 //-
    VERSION //+
}

/// The version, 0 if the answer is mixed of two.
fn ask(n: u64) -> u64 {
    let [version, left, right] = black_box(answer as fn(u64) -> [u64; 3])(black_box(n));
    if version == left && version == right { version } else { 0 }
}

fn count(version: u64) -> u64 {
    match version {
        0 => MIXED.fetch_add(1, SeqCst),
        version => SEEN.fetch_or(1 << version, SeqCst),
    }
}

extern "C" fn on_tick(_: i32) {
    count(ask(7));
    TICKS.fetch_add(1, SeqCst);
}

/// A child gives many answers, all of them of one version.
fn fork_on() {
    loop {
        let child = unsafe { fork() };
        if child == 0 {
            let version = ask(0);
            let same = (0..100).all(|n| ask(n) == version);
            unsafe { _exit(if same { version as i32 } else { 0 }) }
        }
        let mut status = 0;
        let ended = unsafe { waitpid(child, &mut status, 0) } == child;
        match status {
            SIGTRAP => CAUGHT.fetch_add(1, SeqCst),
            _ if ended && status & 0x7f == 0 => count((status >> 8) as u64),
            _ => count(0),
        };
        FORKS.fetch_add(1, SeqCst);
    }
}

fn work(thread: usize) {
    for n in 0_u64.. {
        count(ask(n));
        if thread == 0 && n % 64 == 0 {
            count(deep(black_box(20)));
        }
        CALLS[thread].fetch_add(1, SeqCst);
        if n % 64 == 63 {
            std::thread::sleep(Duration::from_micros(500 << thread));
        }
    }
}

/// Waits until every thread has given some more answers.
fn more(answers: u64) {
    let all = || CALLS.iter().chain(is_busy().then_some([&FORKS, &TICKS]).into_iter().flatten());
    let before: Vec<u64> = all().map(|calls| calls.load(SeqCst)).collect();
    for (calls, before) in all().zip(before) {
        while calls.load(SeqCst) < before + answers {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn is_busy() -> bool {
    std::env::args().len() > 1
}

/// Prints which versions were seen, the mixed answers of all time, those of this round, and how many children died at a breakpoint.
fn step() {
    // Answers under way end first.
    more(1);
    let mixed = MIXED.load(SeqCst);
    SEEN.store(0, SeqCst);
    more(2);
    let all = MIXED.load(SeqCst);
    println!("{} {} {} {}", SEEN.load(SeqCst), all, all - mixed, CAUGHT.load(SeqCst));
}

fn main() {
    if is_busy() {
        unsafe {
            signal(SIGALRM, on_tick);
            setitimer(0, &[0, 200, 0, 200], std::ptr::null_mut());
        }
        std::thread::spawn(fork_on);
    }
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

impl Act {
    /// The version that it leads to.
    fn leads_to(self) -> u64 {
        match self {
            Self::Apply(version) => version,
            Self::Rollback => OLD,
        }
    }
}

/// Where the faults are injected.
#[derive(Clone, Copy, Debug)]
struct Scene {
    act: Act,
    before: u64,
    policy: &'static str,
    busy: bool,
    /// From one fault to the next.
    stride: usize,
}

const FIRST_APPLY: Scene =
    Scene { act: Act::Apply(SECOND), before: OLD, policy: "quiescent", busy: false, stride: 1 };
const REPLACEMENT: Scene = Scene { act: Act::Apply(THIRD), before: SECOND, ..FIRST_APPLY };
const ROLLBACK: Scene = Scene { act: Act::Rollback, before: SECOND, ..FIRST_APPLY };

impl Scene {
    fn stride(&self) -> usize {
        if std::env::var_os("LIVEPATCH_EVERY_FAULT").is_some() { 1 } else { self.stride }
    }

    /// A target as it is before the act.
    fn start(&self) -> Result<Target, Failed> {
        let mut command = command(&case().program);
        if self.busy {
            command.arg("busy");
        }
        let target = Target { program: Program::start(command)?, policy: self.policy, kills: 0 };
        Ok(target)
    }

    fn is_ready(&self, target: &mut Target) -> Result<(), Failed> {
        if self.before == OLD { Ok(()) } else { target.succeed(Act::Apply(self.before)).map(drop) }
    }
}

struct Target {
    program: Program,
    policy: &'static str,
    /// How often the tool was killed.
    kills: u64,
}

impl Target {
    fn run(&self, act: Act, fault: Option<&str>) -> Result<Ran, Failed> {
        let pid = self.program.pid().to_string();
        let mut arguments: Vec<&OsStr> = vec!["--json".as_ref()];
        match act {
            Act::Apply(version) => {
                let file = if version == SECOND { &case().second } else { &case().third };
                arguments.extend(["apply".as_ref(), pid.as_ref(), file.as_os_str()]);
            }
            Act::Rollback => arguments.extend(["rollback", &pid].map(OsStr::new)),
        }
        let mut tool = Command::new(tools::with_faults());
        tool.args(arguments).args(["--policy", self.policy]).env_remove("LIVEPATCH_FAULT");
        Ran::of(tool.envs(fault.map(|fault| ("LIVEPATCH_FAULT", fault))))
    }

    /// Without a fault it has to work, and leaves the version that it is for.
    fn succeed(&mut self, act: Act) -> Result<Ran, Failed> {
        let ran = self.run(act, None)?.expect(exit::DONE, &format!("{act:?}"))?;
        match self.version()? {
            version if version == act.leads_to() => Ok(ran),
            version => fail(format!("after {act:?} the answers are of version {version}: {}", ran.json)),
        }
    }

    /// A rollback that may have been done already.
    fn succeed_or_nothing(&mut self) -> Result<(), Failed> {
        let ran = self.run(Act::Rollback, None)?;
        match (ran.code, self.version()?) {
            (exit::DONE | exit::USAGE, OLD) => Ok(()),
            (code, version) => fail(format!("rollback: exit {code} with version {version}\n{}", ran.text)),
        }
    }

    /// The version of all answers.
    fn version(&mut self) -> Result<u64, Failed> {
        match self.versions()?[..] {
            [version] => Ok(version),
            ref several => fail(format!("answers of several versions at the same time: {several:?}")),
        }
    }

    /// The versions of all answers.
    fn versions(&mut self) -> Result<Vec<u64>, Failed> {
        let lines = self.program.round()?;
        let words: Vec<u64> = lines[0].split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [seen, ever, lately, caught] = words[..] else {
            return fail(format!("unexpected line {lines:?}"));
        };
        if caught > self.kills {
            return fail(format!("{caught} children died at a breakpoint after {} kills", self.kills));
        }
        let mixed = if self.policy == "immediate" { lately } else { ever };
        if mixed != 0 {
            return fail(format!("{mixed} answers were mixed of two versions"));
        }
        Ok([OLD, SECOND, THIRD].into_iter().filter(|version| seen & (1 << version) != 0).collect())
    }
}

/// One fault, and what followed from it. False if the run ended before it came to that operation.
fn inject(target: &mut Target, scene: Scene, mode: &str, number: usize) -> Result<bool, Failed> {
    let act = scene.act;
    let ran = target.run(act, Some(&format!("{mode}:{number}")))?;
    let Some((_, operation)) = ran.text.split_once("fault injection: ") else {
        ran.expect(exit::DONE, "a run without a fault")?;
        return Ok(false);
    };
    let told = format!("{act:?}, {}", operation.lines().next().unwrap_or_default());
    target.kills += u64::from(ran.code == -1);
    let versions = target.versions().map_err(|error| format!("{told}: {error}\n{}", ran.text))?;
    let allowed: &[u64] = match (mode, ran.code) {
        ("fail", exit::DONE) => &[act.leads_to()],
        ("fail", exit::ERROR | exit::REFUSED..=exit::LOST) => &[scene.before],
        // A registry that cannot be read is none.
        ("fail", exit::USAGE) if matches!(act, Act::Rollback) => &[scene.before],
        ("kill-before" | "kill-after", -1) => &[scene.before, act.leads_to()],
        (_, code) => return fail(format!("{told}: exit {code}\n{}", ran.text)),
    };
    // All at once are the threads stopped, not the entries written.
    let most = if scene.policy == "snapshot" && ran.code == -1 { 2 } else { 1 };
    if versions.len() > most || !versions.iter().all(|version| allowed.contains(version)) {
        let Ran { code, json, text } = ran;
        return fail(format!("{told}: exit {code} with versions {versions:?}\n{json}\n{text}"));
    }
    let repaired = match act {
        Act::Rollback if versions == [OLD] => target.succeed_or_nothing(),
        act => target.succeed(act).map(drop),
    };
    repaired.map_err(|error| format!("after {told}: {error}"))?;
    Ok(true)
}

/// Kills the target at one operation. False if the run ended before it came to that operation.
fn lose(target: Target, scene: Scene, number: usize) -> Result<bool, Failed> {
    let ran = target.run(scene.act, Some(&format!("kill-target:{number}:{}", target.program.pid())))?;
    let Some((_, operation)) = ran.text.split_once("fault injection: ") else {
        ran.expect(exit::DONE, "a run without a fault")?;
        target.program.finish()?;
        return Ok(false);
    };
    let told = format!("{:?}, {}", scene.act, operation.lines().next().unwrap_or_default());
    match ran.code {
        exit::DONE => Ok(true),
        code => ran.expect(exit::LOST, &format!("{told} ended with {code}")).map(|_| true),
    }
}

/// Injects faults of one kind until a run ends before it comes to one.
fn all_over(mode: &str, scene: Scene) -> Result<(), Failed> {
    let started = std::time::Instant::now();
    let mut target = scene.start()?;
    let mut failures = Vec::new();
    let mut faults = 0;
    for number in (1..).step_by(scene.stride()) {
        scene.is_ready(&mut target)?;
        let dies = mode == "kill-target";
        let outcome = match dies {
            true => lose(std::mem::replace(&mut target, scene.start()?), scene, number),
            false => inject(&mut target, scene, mode, number),
        };
        match outcome {
            Ok(true) => {}
            Ok(false) => break,
            Err(ref error) => failures.push(error.to_string()),
        }
        if outcome.is_err() && !dies || scene.before == OLD {
            target = scene.start()?;
        }
        faults += 1;
    }
    println!("{mode}, {scene:?}: {faults} faults, {:?}", started.elapsed());
    match failures.is_empty() {
        true => target.program.finish(),
        false => fail(format!("{} faults were not survived:\n{}", failures.len(), failures.join("\n"))),
    }
}

macro_rules! scenes {
    ($($name:ident: $mode:literal, $scene:expr;)*) => {
        $(#[test]
        fn $name() -> Result<(), Failed> {
            all_over($mode, $scene)
        })*
    };
}

const IMMEDIATE: &str = "immediate";
const SNAPSHOT: &str = "snapshot";

scenes! {
    killed_before_each_operation_of_a_first_apply: "kill-before", FIRST_APPLY;
    killed_after_each_operation_of_a_first_apply: "kill-after", FIRST_APPLY;
    each_operation_of_a_first_apply_fails: "fail", Scene { stride: 5, ..FIRST_APPLY };
    the_target_dies_at_each_operation_of_a_first_apply: "kill-target", Scene { stride: 5, ..FIRST_APPLY };

    killed_before_each_operation_of_a_replacement: "kill-before", REPLACEMENT;
    killed_after_each_operation_of_a_replacement: "kill-after", REPLACEMENT;
    each_operation_of_a_replacement_fails: "fail", REPLACEMENT;
    the_target_dies_at_each_operation_of_a_replacement: "kill-target", Scene { stride: 5, ..REPLACEMENT };

    killed_before_each_operation_of_a_rollback: "kill-before", ROLLBACK;
    killed_after_each_operation_of_a_rollback: "kill-after", ROLLBACK;
    each_operation_of_a_rollback_fails: "fail", ROLLBACK;
    the_target_dies_at_each_operation_of_a_rollback: "kill-target", Scene { stride: 5, ..ROLLBACK };

    killed_before_each_operation_of_an_immediate_replacement: "kill-before", Scene { policy: IMMEDIATE, ..REPLACEMENT };
    killed_after_each_operation_of_an_immediate_replacement: "kill-after", Scene { policy: IMMEDIATE, ..REPLACEMENT };
    killed_before_each_operation_of_an_immediate_rollback: "kill-before", Scene { policy: IMMEDIATE, ..ROLLBACK };
    killed_after_each_operation_of_an_immediate_rollback: "kill-after", Scene { policy: IMMEDIATE, ..ROLLBACK };

    killed_before_each_operation_of_a_snapshot_replacement: "kill-before", Scene { policy: SNAPSHOT, ..REPLACEMENT };
    killed_after_each_operation_of_a_snapshot_replacement: "kill-after", Scene { policy: SNAPSHOT, ..REPLACEMENT };
    killed_before_each_operation_of_a_snapshot_rollback: "kill-before", Scene { policy: SNAPSHOT, ..ROLLBACK };
    killed_after_each_operation_of_a_snapshot_rollback: "kill-after", Scene { policy: SNAPSHOT, ..ROLLBACK };

    killed_before_operations_on_a_busy_target: "kill-before", Scene { busy: true, stride: 3, ..REPLACEMENT };
    killed_after_operations_on_a_busy_target: "kill-after", Scene { busy: true, stride: 3, ..REPLACEMENT };
    killed_before_operations_of_a_rollback_of_a_busy_target: "kill-before", Scene { busy: true, stride: 3, ..ROLLBACK };
    killed_after_operations_of_a_rollback_of_a_busy_target: "kill-after", Scene { busy: true, stride: 3, ..ROLLBACK };
}
