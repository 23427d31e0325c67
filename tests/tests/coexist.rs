//! Others at the same process: debuggers, further runs of livepatch, job control; and what the program notices.

use livepatch_tests::case::{Case, LIMIT, Target};
use livepatch_tests::child::Program;
use livepatch_tests::project::command;
use livepatch_tests::tools::{self, Ran, exit};
use livepatch_tests::{Failed, fail};
use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const SIMPLE: &str = r#"
mod host;

use std::hint::black_box;

#[inline(never)]
fn version(n: u64) -> u64 {
    black_box(n * 0 + 1) //-
    black_box(n * 0 + 2) //+
}

fn step() {
    println!("{}", version(black_box(7)));
}

fn main() {
    for _ in 0..20 {
        std::thread::spawn(std::thread::park);
    }
    host::serve(step);
}
"#;

/// The tool in a PID namespace that has no `/proc` of its own: an id stands for one process there, and for another in `/proc`.
#[test]
fn ids_of_another_namespace_are_a_reason_to_refuse() -> Result<(), Failed> {
    let mut command = Command::new("unshare");
    let script = "sleep 1000 & \"$@\" --json status $!; code=$?; kill $!; exit $code";
    command.args(["-p", "-f", "sh", "-c", script, "sh"]).arg(tools::folder().join("livepatch"));
    let ran = Ran::of(&mut command)?;
    let json = ran.expect(exit::PERMISSION, "status")?.json.to_string();
    assert!(json.contains("PID namespace"), "{json}");
    Ok(())
}

/// A program that traces the process until it is dropped.
struct Debugger(Child, String);

impl Debugger {
    fn attach(case: &Case, name: &str, arguments: &[&str]) -> Result<Self, Failed> {
        let mut command = Command::new(name);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        let debugger = Self(child, name.to_owned());
        case.wait_for("the debugger", |case| Ok(case.status("TracerPid")? != "0"))?;
        Ok(debugger)
    }

    /// Makes it let go in good order: a debugger that is killed while it attaches leaves stops behind.
    fn leave(mut self, case: &Case) -> Result<(), Failed> {
        if let Some(mut commands) = self.0.stdin.take().filter(|_| self.1 == "gdb") {
            commands.write_all(b"detach\nquit\n")?;
        }
        if self.1 == "strace" {
            Command::new("kill").arg(self.0.id().to_string()).status()?;
        }
        self.0.wait()?;
        case.wait_for("the debugger's end", |case| Ok(case.status("TracerPid")? == "0"))
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn with_debugger(test: &str, name: &str, arguments: &[&str]) -> Result<(), Failed> {
    let mut case = Case::start(test, SIMPLE)?;
    case.says("1")?;
    let pid = case.pid();
    let arguments: Vec<&str> =
        arguments.iter().map(|word| if *word == "PID" { &pid } else { *word }).collect();
    let debugger = Debugger::attach(&case, name, &arguments)?;
    let before = maps(&case)?;
    for verb in ["check", "apply"] {
        let patch = case.target.patch.to_str().ok_or("path")?;
        let started = Instant::now();
        let ran = tools::livepatch(&[verb, &pid, patch, "--timeout", "600"])?.expect(exit::BUSY, verb)?;
        assert!(started.elapsed() < LIMIT, "a debugger is not waited for");
        assert_eq!(ran.json["held_by"]["name"], name, "{}", ran.json);
        assert_eq!(ran.json["held_by"]["pid"], debugger.0.id(), "{}", ran.json);
    }
    assert_eq!(maps(&case)?, before);
    // To look is possible.
    let status = tools::livepatch(&["status", &pid])?.expect(exit::DONE, "status")?;
    assert_eq!(status.json["patches"].as_array().map(Vec::len), Some(0), "{}", status.json);
    debugger.leave(&case)?;
    case.says("1")?;
    case.apply(&[])?.expect(exit::DONE, "apply")?;
    case.says("2")?;
    let debugger = Debugger::attach(&case, name, &arguments)?;
    let ran = case.rollback(&[])?.expect(exit::BUSY, "rollback")?;
    assert_eq!(ran.json["held_by"]["name"], name, "{}", ran.json);
    debugger.leave(&case)?;
    case.says("2")?;
    case.rollback(&[])?.expect(exit::DONE, "rollback")?;
    case.says("1")?;
    case.program.finish()
}

/// What is mapped.
fn maps(case: &Case) -> Result<String, Failed> {
    Ok(std::fs::read_to_string(format!("/proc/{}/maps", case.pid()))?)
}

#[test]
fn gdb_is_named_and_not_disturbed() -> Result<(), Failed> {
    with_debugger("gdb_is_named", "gdb", &["-q", "-nx", "-p", "PID"])
}

#[test]
fn strace_is_named_and_not_disturbed() -> Result<(), Failed> {
    with_debugger("strace_is_named", "strace", &["-f", "-o", "/dev/null", "-p", "PID"])
}

#[test]
fn runs_at_the_same_time_come_one_after_the_other() -> Result<(), Failed> {
    let mut case = Case::start("runs_at_the_same_time", SIMPLE)?;
    case.says("1")?;
    for round in 0..4 {
        let applied = std::thread::scope(|scope| -> Result<Vec<Ran>, Failed> {
            let target = &case.target;
            let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| target.apply(&["--timeout", "60"]))).collect();
            runs.into_iter().map(|run| Ok(run.join().map_err(|_| "a run panicked")??)).collect()
        })?;
        let mut fresh = 0;
        for ran in applied {
            let ran = ran.expect(exit::DONE, &format!("apply, round {round}"))?;
            fresh += u32::from(ran.json["already_applied"] == false);
        }
        assert_eq!(fresh, 1, "one run applies, the others find it applied");
        case.says("2")?;
        // One takes it out; whether the other run comes before or after that decides what it finds.
        let (back, other) = std::thread::scope(|scope| {
            let target = &case.target;
            let back = scope.spawn(|| target.rollback(&["--timeout", "60"]));
            let other = scope.spawn(|| target.apply(&["--timeout", "60"]));
            (back.join(), other.join())
        });
        back.map_err(|_| "a run panicked")??.expect(exit::DONE, "rollback")?;
        let other = other.map_err(|_| "a run panicked")??.expect(exit::DONE, "apply")?;
        if other.json["already_applied"] == false {
            case.says("2")?;
            case.rollback(&[])?.expect(exit::DONE, "rollback")?;
        }
        case.says("1")?;
    }
    case.program.finish()
}

#[test]
fn a_run_that_is_in_the_way_to_the_end_is_named() -> Result<(), Failed> {
    let mut case = Case::start("a_run_in_the_way", LEAVES_LATE)?;
    case.says("inside")?;
    std::thread::scope(|scope| -> Result<(), Failed> {
        let target = &case.target;
        let first = scope.spawn(|| target.apply(&["--timeout", "600"]));
        case.wait_for("the first run", |case| Ok(case.status("TracerPid")? != "0"))?;
        let second = case.apply(&["--timeout", "0.3"])?.expect(exit::BUSY, "apply")?;
        assert_eq!(second.json["held_by"]["livepatch"], true, "{}", second.json);
        let text = second.json["error"].as_str().unwrap_or_default();
        assert!(text.contains("another run of livepatch"), "{text}");
        let third = case.rollback(&["--timeout", "0.3"])?.expect(exit::BUSY, "rollback")?;
        assert_eq!(third.json["held_by"]["livepatch"], true, "{}", third.json);
        case.signal("USR1")?;
        first.join().map_err(|_| "the first run panicked")??.expect(exit::DONE, "apply")?;
        Ok(())
    })?;
    case.program.finish()
}

/// A thread stays inside of the changed function until SIGUSR1 comes.
const LEAVES_LATE: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

static INSIDE: AtomicU32 = AtomicU32::new(0);
static LEAVE: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_signal(_: i32) {
    LEAVE.store(1, SeqCst);
}

#[inline(never)]
fn stay() -> u64 {
    INSIDE.store(1, SeqCst);
    while LEAVE.load(SeqCst) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    black_box(1) //-
    black_box(2) //+
}

fn step() {
    while INSIDE.load(SeqCst) == 0 {
        std::thread::yield_now();
    }
    println!("inside");
}

fn main() {
    unsafe { signal(10, on_signal) };
    std::thread::spawn(|| black_box(stay as fn() -> u64)());
    host::serve(step);
}
"#;

#[test]
fn a_stopped_process_is_patched_and_stays_stopped() -> Result<(), Failed> {
    let mut case = Case::start("a_stopped_process", SIMPLE)?;
    case.says("1")?;
    for _ in 0..3 {
        case.signal("STOP")?;
        case.wait_for("the stop", |case| Ok(case.status("State")?.starts_with('T')))?;
        case.apply(&[])?.expect(exit::DONE, "apply")?;
        case.wait_for("the stop after apply", |case| Ok(case.status("State")?.starts_with("T (stopped")))?;
        case.program.send("step")?;
        case.signal("CONT")?;
        assert_eq!((case.program.line()?, case.program.line()?), ("2".to_owned(), ".".to_owned()));
        case.signal("STOP")?;
        case.wait_for("the stop", |case| Ok(case.status("State")?.starts_with('T')))?;
        case.rollback(&[])?.expect(exit::DONE, "rollback")?;
        case.wait_for("the stop after rollback", |case| Ok(case.status("State")?.starts_with("T (stopped")))?;
        case.program.send("step")?;
        case.signal("CONT")?;
        assert_eq!((case.program.line()?, case.program.line()?), ("1".to_owned(), ".".to_owned()));
    }
    case.program.finish()
}

/// Every thread counts how often its call ended with EINTR. The first thread is in such a call, too.
const NOTICING: &str = r#"
mod host;

use std::ffi::c_void;
use std::hint::black_box;
use std::ptr::null;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn socketpair(domain: i32, kind: i32, protocol: i32, pair: *mut i32) -> i32;
    fn setsockopt(socket: i32, level: i32, option: i32, value: *const c_void, size: u32) -> i32;
}

const LONG: [i64; 2] = [600, 0];
static COUNTS: [AtomicU64; 7] = [const { AtomicU64::new(0) }; 7];
static OTHERS: AtomicU64 = AtomicU64::new(0);

#[inline(never)]
fn version(n: u64) -> u64 {
    black_box(n * 0 + 1) //-
    black_box(n * 0 + 2) //+
}

/// Calls again and again what takes long.
fn wait(at: usize, call: impl Fn() -> i64) {
    loop {
        let answer = call();
        match std::io::Error::last_os_error().raw_os_error() {
            Some(4) if answer == -1 => COUNTS[at].fetch_add(1, SeqCst),
            _ => OTHERS.fetch_add(1, SeqCst),
        };
    }
}

fn in_epoll(at: usize) {
    let set = unsafe { syscall(291, 0) };
    wait(at, || unsafe { syscall(232, set, [0_u64; 2].as_mut_ptr(), 1, 600_000) });
}

fn in_recv(at: usize) {
    let mut pair = [0; 2];
    unsafe { socketpair(1, 1, 0, pair.as_mut_ptr()) };
    unsafe { setsockopt(pair[0], 1, 20, LONG.as_ptr().cast(), 16) };
    wait(at, || unsafe { syscall(45, pair[0], [0_u8; 8].as_mut_ptr(), 8, 0, 0, 0) });
}

fn in_sigtimedwait(at: usize) {
    wait(at, || unsafe { syscall(128, [1_u64 << 11].as_ptr(), 0, LONG.as_ptr(), 8) });
}

fn in_semtimedop(at: usize) {
    let set = unsafe { syscall(64, 0, 1, 0o1600) };
    let take: [i16; 3] = [0, -1, 0];
    // Semaphores outlive their program: the end of the input removes it.
    SEMAPHORE.store(set as u64, SeqCst);
    wait(at, || unsafe { syscall(220, set, take.as_ptr(), 1, LONG.as_ptr()) });
}

static SEMAPHORE: AtomicU64 = AtomicU64::new(0);

fn step() {
    let counts: Vec<String> = COUNTS.iter().map(|count| count.load(SeqCst).to_string()).collect();
    println!("version {} eintr {} others {}", version(1), counts.join(" "), OTHERS.load(SeqCst));
}

fn main() {
    std::thread::spawn(|| in_recv(1));
    std::thread::spawn(|| in_sigtimedwait(2));
    std::thread::spawn(|| in_semtimedop(3));
    std::thread::spawn(|| wait(4, || unsafe { syscall(7, 0, 0, 600_000) }));
    std::thread::spawn(|| wait(5, || unsafe { syscall(35, LONG.as_ptr(), 0) }));
    std::thread::spawn(|| wait(6, || unsafe { syscall(202, [0_u32].as_ptr(), 128, 0, LONG.as_ptr()) }));
    std::thread::spawn(|| {
        host::serve(step);
        unsafe { syscall(66, SEMAPHORE.load(SeqCst), 0, 0, null::<u8>()) };
        std::process::exit(0);
    });
    in_epoll(0);
}
"#;

#[test]
fn sleepers_notice_nothing() -> Result<(), Failed> {
    let mut case = Case::start("sleepers_notice_nothing", NOTICING)?;
    case.says("version 1 eintr 0 0 0 0 0 0 0 others 0")?;
    for _ in 0..5 {
        case.wait_for("all threads to sleep", |case| Ok(sleeping_in(case)? == SLEEP_IN))
            .map_err(|error| format!("{error}: they sleep in {:?}", sleeping_in(&case)))?;
        case.apply(&[])?.expect(exit::DONE, "apply")?;
        case.says("version 2 eintr 0 0 0 0 0 0 0 others 0")?;
        case.wait_for("all threads to sleep", |case| Ok(sleeping_in(case)? == SLEEP_IN))
            .map_err(|error| format!("{error}: they sleep in {:?}", sleeping_in(&case)))?;
        case.rollback(&[])?.expect(exit::DONE, "rollback")?;
        case.says("version 1 eintr 0 0 0 0 0 0 0 others 0")?;
    }
    // The counters do count: a debugger stops them all.
    Debugger::attach(&case, "strace", &["-f", "-o", "/dev/null", "-p", &case.pid()])?.leave(&case)?;
    let said = case.program.round()?.join("\n");
    assert!(!said.contains("eintr 0 0 0 0 0"), "{said}");
    case.program.finish()
}

/// read, recvfrom, sigtimedwait, semtimedop, epoll_wait, and poll, nanosleep and futex, which the kernel restarts.
const SLEEP_IN: [u64; 8] = [0, 45, 128, 219, 219, 219, 220, 232];
/// poll, nanosleep and futex; once restarted they appear as `restart_syscall`.
const RESTARTED: [u64; 3] = [7, 35, 202];
const RESTART_SYSCALL: u64 = 219;

/// The system calls that the threads sleep in, sorted.
fn sleeping_in(case: &Case) -> Result<Vec<u64>, Failed> {
    let mut calls = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", case.pid()))? {
        let text = std::fs::read_to_string(task?.path().join("syscall"))?;
        let call = text.split(' ').next().and_then(|word| word.parse::<u64>().ok());
        calls.extend(call.map(|call| if RESTARTED.contains(&call) { RESTART_SYSCALL } else { call }));
    }
    calls.sort_unstable();
    Ok(calls)
}

/// The first thread has exited; another one waits in `vfork` for a child that shares the memory, until it is told to end.
const UNUSUAL: &str = r#"
mod host;

use std::ffi::c_void;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

unsafe extern "C" {
    fn clone(run: extern "C" fn(*mut c_void) -> i32, stack: *mut c_void, flags: i32, argument: *mut c_void) -> i32;
    fn syscall(number: i64, ...) -> i64;
}

const CLONE_VM_VFORK_SIGCHLD: i32 = 0x100 | 0x4000 | 17;
static IN_CHILD: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);

#[inline(never)]
fn version(n: u64) -> u64 {
    black_box(n * 0 + 1) //-
    black_box(n * 0 + 2) //+
}

extern "C" fn child(_: *mut c_void) -> i32 {
    IN_CHILD.store(1, SeqCst);
    // It ends with its parent, even if the test does not end it.
    unsafe { syscall(157, 1, 9, 0, 0, 0) };
    while ROUNDS.load(SeqCst) < 2 {
        unsafe { syscall(35, [0_i64, 1_000_000].as_ptr(), 0) };
    }
    0
}

fn step() {
    while IN_CHILD.load(SeqCst) == 0 {
        std::thread::yield_now();
    }
    ROUNDS.fetch_add(1, SeqCst);
    println!("{}", version(black_box(7)));
}

fn main() {
    let waits = std::thread::Builder::new().name("waits-in-vfork".into()).spawn(|| {
        let stack: &mut [u128] = Vec::leak(vec![0; 16 << 10]);
        let top = stack.as_mut_ptr_range().end;
        unsafe { clone(child, top.cast(), CLONE_VM_VFORK_SIGCHLD, std::ptr::null_mut()) };
        std::thread::park();
    });
    waits.unwrap();
    std::thread::spawn(|| {
        host::serve(step);
        std::process::exit(0);
    });
    unsafe { syscall(60, 0) };
}
"#;

#[test]
fn a_long_vfork_and_no_first_thread() -> Result<(), Failed> {
    let mut case = Case::start("a_long_vfork", UNUSUAL)?;
    case.says("1")?;
    case.wait_for("the end of the first thread", |case| Ok(case.status("State")?.starts_with('Z')))?;
    let started = Instant::now();
    let busy = case.apply(&["--timeout", "1"])?.expect(exit::BUSY, "apply")?;
    assert!(started.elapsed() < LIMIT, "the time is bounded");
    let reason = busy.json["process"].as_str().unwrap_or_default();
    assert!(reason.contains("vfork") && reason.contains("(waits-in-vfork) waits for"), "{}", busy.json);
    // It did not take the time for undoing, because nothing was left to be undone.
    assert!(!busy.text.contains("stays in the process"), "{}", busy.text);
    // The second round ends the child.
    case.says("1")?;
    case.there_and_back("2", "1")?;
    case.program.finish()
}

/// Replaces itself by another program some time after its start.
const EXEC: &str = r#"
mod host;

use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

#[inline(never)]
fn version(n: u64) -> u64 {
    black_box(n * 0 + 1) //-
    black_box(n * 0 + 2) //+
}

fn step() {
    println!("{}", version(3));
}

fn main() {
    if let Some(delay) = std::env::args().nth(1) {
        let delay = Duration::from_micros(delay.parse().unwrap());
        // Before it can be replaced.
        println!("ready");
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            Command::new("/bin/sleep").arg("1000").exec()
        });
    }
    host::serve(step);
}
"#;

#[test]
fn a_program_that_is_replaced_meanwhile() -> Result<(), Failed> {
    let case = Case::start("a_program_that_is_replaced_meanwhile", EXEC)?;
    let mut seen = BTreeSet::new();
    for delay in (0..100_000).step_by(1_000) {
        let mut starting = command(case.shipped());
        starting.arg(delay.to_string());
        let program = Program::start(starting)?;
        let target = Target { pid: program.pid().to_string(), ..case.target.clone() };
        let ran = target.apply(&[])?;
        // Patched before, lost on the way, or another program from the start.
        if ![exit::DONE, exit::MISMATCH, exit::LOST].contains(&ran.code) {
            return fail(format!("exit code {} after {delay} us: {}", ran.code, ran.text));
        }
        // There is no next run on that one, and nothing stays in it.
        if ["the next run", "stays in the process", "could not be completed"]
            .iter()
            .any(|what| ran.text.contains(what))
        {
            return fail(format!("after {delay} us: {}", ran.text));
        }
        seen.insert(ran.code);
        let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
        if !status.contains("TracerPid:\t0\n") {
            return fail(format!("after {delay} us: {status}"));
        }
    }
    if seen.contains(&exit::LOST) { Ok(()) } else { fail(format!("never replaced on the way: {seen:?}")) }
}

/// A process in which the kernel keeps a thread for it (`SETUP` makes an io_uring with one that polls). A round tells the version, and what
/// the kernel said.
const KEPT_BY_THE_KERNEL: &str = r#"
mod host;

use std::ffi::{c_int, c_long};
use std::hint::black_box;
use std::sync::OnceLock;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

static RING: OnceLock<c_int> = OnceLock::new();

/// `io_uring_setup` with `IORING_SETUP_SQPOLL`; `struct io_uring_params` has 120 bytes.
fn ring() -> c_int {
    let mut params = [0u32; 30];
    params[2] = 2;
    unsafe { syscall(425, 1, params.as_mut_ptr()) as c_int }
}

#[inline(never)]
fn version() -> u64 {
    black_box(1) //-
    black_box(2) //+
}

fn has_kept_thread() -> bool {
    let names = std::fs::read_dir("/proc/self/task").unwrap();
    let mut names = names.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    names.any(|name| name.starts_with("iou-"))
}

fn step() {
    let ring = *RING.get_or_init(ring) >= 0;
    // It has its name a moment after it is there.
    while ring && !has_kept_thread() {
        std::thread::yield_now();
    }
    println!("{}", version());
    eprintln!("a thread that the kernel keeps: {ring}");
}

fn main() {
    host::serve(step);
}
"#;

/// Where io_uring is forbidden (some containers), the program says so, and what is left of the test is an ordinary transition.
#[test]
fn threads_that_the_kernel_keeps_in_the_process() -> Result<(), Failed> {
    let mut case = Case::start("threads_that_the_kernel_keeps_in_the_process", KEPT_BY_THE_KERNEL)?;
    case.says("1")?;
    for _ in 0..5 {
        case.there_and_back("2", "1")?;
    }
    case.program.finish()
}
