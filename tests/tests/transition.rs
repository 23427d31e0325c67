//! Transitions of programs that are never idle, and what the program may notice of them.

use livepatch_tests::case::Case;
use livepatch_tests::tools::{Ran, exit};
use livepatch_tests::{Failed, fail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

/// `settings` replaces names in the source.
fn start(name: &str, source: &str, settings: &[(&str, &str)]) -> Result<Case, Failed> {
    Case::start(name, &settings.iter().fold(source.to_owned(), |text, (from, to)| text.replace(from, to)))
}

fn apply(case: &Case, arguments: &[&str], code: i32) -> Result<Ran, Failed> {
    case.apply(arguments)?.expect(code, &format!("apply {arguments:?}"))
}

fn rollback(case: &Case, arguments: &[&str]) -> Result<Ran, Failed> {
    case.rollback(arguments)?.expect(exit::DONE, &format!("rollback {arguments:?}"))
}

/// Threads that are inside the changed function for nearly all of the time. A round tells the versions that it saw all of them
/// run.
const NEVER_IDLE: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

static SEEN: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
static STARTED: OnceLock<()> = OnceLock::new();

#[inline(never)]
fn spin(micros: u64) -> u64 {
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(micros) {
        black_box(micros);
    }
    black_box(1) //-
    black_box(2) //+
}

#[inline(never)]
fn sleep(micros: u64) -> u64 {
    std::thread::sleep(Duration::from_micros(micros));
    black_box(1) //-
    black_box(2) //+
}

/// Calls itself and `even` at every depth.
#[inline(never)]
fn odd(depth: u64) -> u64 {
    let below = if depth == 0 { 0 } else { even(black_box(depth - 1)).max(odd(black_box(depth - 1) / 2)) };
    black_box(below.max(1)) //-
    black_box(below.max(2)) //+
}

#[inline(never)]
fn even(depth: u64) -> u64 {
    let below = if depth == 0 { 0 } else { odd(black_box(depth - 1)) };
    black_box(below.max(1)) //-
    black_box(below.max(2)) //+
}

#[inline(never)]
fn dive(depth: u64) -> u64 {
    let below = if depth == 0 { 0 } else { dive(black_box(depth - 1)) };
    black_box(below.max(1)) //-
    black_box(below.max(2)) //+
}

fn work(thread: usize) {
    loop {
        let version = black_box(FUNCTION as fn(u64) -> u64)(black_box(ARGUMENT));
        SEEN[thread].fetch_or(version, SeqCst);
    }
}

fn step() {
    STARTED.get_or_init(|| {
        for thread in 0..THREADS {
            let stack = std::thread::Builder::new().stack_size(STACK);
            stack.spawn(move || work(thread)).unwrap();
        }
    });
    // Calls under way end first.
    for _ in 0..2 {
        SEEN.iter().for_each(|seen| seen.store(0, SeqCst));
        for seen in &SEEN {
            while seen.load(SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    let all = SEEN.iter().fold(0, |all, seen| all | seen.load(SeqCst));
    println!("{all}");
}

fn main() {
    host::serve(step);
}
"#;

/// Size of a stack that is deep enough for what is called.
const STACK: (&str, &str) = ("STACK", "32 << 20");

fn never_idle(name: &str, function: &str, argument: &str, threads: &str) -> Result<(), Failed> {
    let settings = [("FUNCTION", function), ("ARGUMENT", argument), ("THREADS", threads), STACK];
    let mut case = start(name, NEVER_IDLE, &settings)?;
    case.says("1")?;
    for _ in 0..2 {
        case.there_and_back("2", "1")?;
    }
    case.program.finish()
}

#[test]
fn calls_of_a_microsecond() -> Result<(), Failed> {
    never_idle("calls_of_a_microsecond", "spin", "1", "64")
}

#[test]
fn calls_of_a_millisecond() -> Result<(), Failed> {
    never_idle("calls_of_a_millisecond", "sleep", "1_000", "64")
}

#[test]
fn calls_of_a_tenth_of_a_second() -> Result<(), Failed> {
    never_idle("calls_of_a_tenth_of_a_second", "sleep", "100_000", "64")
}

#[test]
fn recursive_calls() -> Result<(), Failed> {
    never_idle("recursive_calls", "odd", "12", "8")
}

/// At each depth the thread comes to a breakpoint, which must not cost a walk of its stack each time; and going down takes long, but
/// is no reason to begin again.
#[test]
fn tens_of_thousands_of_calls_deep() -> Result<(), Failed> {
    never_idle("tens_of_thousands_of_calls_deep", "dive", "30_000", "2")
}

/// The check that the programs above are what they are meant to be.
#[test]
fn a_snapshot_never_finds_them_idle() -> Result<(), Failed> {
    let settings = [("FUNCTION", "sleep"), ("ARGUMENT", "1_000"), ("THREADS", "64"), STACK];
    let mut case = start("a_snapshot_never_finds_them_idle", NEVER_IDLE, &settings)?;
    case.says("1")?;
    apply(&case, &["--policy", "snapshot", "--timeout", "1"], exit::BUSY)?;
    case.says("1")
}

/// Two changed functions that only fit each other, one inside the other.
const PAIR: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const THREADS: usize = 32;
static CALLS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
static MIXED: AtomicU64 = AtomicU64::new(0);
static STARTED: OnceLock<()> = OnceLock::new();

#[inline(never)]
fn write(n: u64) -> bool {
    let code = black_box(n << 1 | 1); //-
    let code = black_box(n << 2 | 2); //+
    if n % 16 == 0 {
        std::thread::sleep(Duration::from_micros(300));
    }
    black_box(verify as fn(u64, u64) -> bool)(code, n)
}

#[inline(never)]
fn verify(code: u64, n: u64) -> bool {
    black_box(code) == n << 1 | 1 //-
    black_box(code) == n << 2 | 2 //+
}

fn work(thread: usize) {
    for n in 0.. {
        if !black_box(write as fn(u64) -> bool)(black_box(n)) {
            MIXED.fetch_add(1, SeqCst);
        }
        CALLS[thread].fetch_add(1, SeqCst);
    }
}

fn step() {
    STARTED.get_or_init(|| {
        for thread in 0..THREADS {
            std::thread::spawn(move || work(thread));
        }
    });
    for calls in &CALLS {
        let before = calls.load(SeqCst);
        while calls.load(SeqCst) < before + 2 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    println!("{}", MIXED.load(SeqCst));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn no_pair_of_functions_is_ever_mixed() -> Result<(), Failed> {
    let cycles = std::env::var("LIVEPATCH_CYCLES").map_or(Ok(25), |text| text.parse())?;
    let mut case = start("no_pair_of_functions_is_ever_mixed", PAIR, &[])?;
    for _ in 0..cycles {
        case.says("0")?;
        apply(&case, &["--timeout", "50"], exit::DONE)?;
        case.says("0")?;
        rollback(&case, &["--timeout", "50"])?;
    }
    case.says("0")?;
    // The check can fail: under the immediate policy calls under way meet new code.
    for _ in 0..cycles.max(100) {
        apply(&case, &["--policy", "immediate", "--timeout", "50"], exit::DONE)?;
        rollback(&case, &["--policy", "immediate", "--timeout", "50"])?;
        if case.program.round()? != ["0"] {
            return case.program.finish();
        }
    }
    fail("the immediate policy mixed no pair, so this test proves nothing")
}

/// Children in the same memory call two functions that only fit each other: made by a thread that is outside, by one that is inside and
/// waits in `vfork`, and by one that does not wait.
const SAME_MEMORY: &str = r#"
mod host;

use std::ffi::c_void;
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

unsafe extern "C" {
    fn clone(run: extern "C" fn(*mut c_void) -> i32, stack: *mut c_void, flags: i32, argument: *mut c_void) -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn syscall(number: i64, ...) -> i64;
}

const VM_SIGCHLD: i32 = 0x100 | 17;
const VFORK: i32 = 0x4000;
const KINDS: usize = 3;
static CALLS: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];
static MIXED: AtomicU64 = AtomicU64::new(0);
static DIED: AtomicU64 = AtomicU64::new(0);
static STARTED: OnceLock<()> = OnceLock::new();

#[inline(never)]
fn write(n: u64) -> bool {
    let code = black_box(n << 1 | 1); //-
    let code = black_box(n << 2 | 2); //+
    // Without the C library, which belongs to whoever made this process.
    unsafe { syscall(35, [0_i64, 300_000].as_ptr(), 0) };
    black_box(verify as fn(u64, u64) -> bool)(code, n)
}

#[inline(never)]
fn verify(code: u64, n: u64) -> bool {
    black_box(code) == n << 1 | 1 //-
    black_box(code) == n << 2 | 2 //+
}

#[inline(never)]
fn within(stack: &mut [u128]) {
    make(stack, VM_SIGCHLD | VFORK);
    black_box(1); //-
    black_box(2); //+
}

extern "C" fn child(_: *mut c_void) -> i32 {
    if !black_box(write as fn(u64) -> bool)(black_box(5)) {
        MIXED.fetch_add(1, SeqCst);
    }
    0
}

fn make(stack: &mut [u128], flags: i32) {
    let mut status = 0;
    unsafe {
        let made = clone(child, stack.as_mut_ptr_range().end.cast(), flags, std::ptr::null_mut());
        waitpid(made, &mut status, 0);
    }
    DIED.fetch_add(u64::from(status != 0), SeqCst);
}

fn work(kind: usize) {
    let mut stack = vec![0_u128; 4 << 10];
    loop {
        match kind {
            0 => make(&mut stack, VM_SIGCHLD | VFORK),
            1 => make(&mut stack, VM_SIGCHLD),
            _ => black_box(within as fn(&mut [u128]))(&mut stack),
        }
        CALLS[kind].fetch_add(1, SeqCst);
    }
}

fn step() {
    STARTED.get_or_init(|| {
        for kind in 0..KINDS {
            std::thread::spawn(move || work(kind));
        }
    });
    for calls in &CALLS {
        let before = calls.load(SeqCst);
        while calls.load(SeqCst) < before + 3 {
            std::thread::yield_now();
        }
    }
    println!("{} mixed, {} died", MIXED.load(SeqCst), DIED.load(SeqCst));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn children_in_the_same_memory_are_never_mixed() -> Result<(), Failed> {
    let mut case = start("children_in_the_same_memory", SAME_MEMORY, &[])?;
    for _ in 0..20 {
        case.says("0 mixed, 0 died")?;
        apply(&case, &["--timeout", "50"], exit::DONE)?;
        case.says("0 mixed, 0 died")?;
        rollback(&case, &["--timeout", "50"])?;
    }
    case.says("0 mixed, 0 died")?;
    // There is no moment without one of them, and a stop of all is one moment.
    apply(&case, &["--policy", "snapshot", "--timeout", "1"], exit::BUSY)?;
    case.says("0 mixed, 0 died")?;
    case.program.finish()
}

/// Takes a process nearly all of its processor time.
struct Slow {
    /// Its control group, removed at the end.
    group: Option<PathBuf>,
    over: Arc<AtomicBool>,
    stops: Option<JoinHandle<()>>,
}

impl Slow {
    /// By the kernel's limit for control groups, 10 ms in each 100 ms. `None` if this user cannot make groups.
    fn by_group(case: &Case) -> Option<Self> {
        let name = format!("livepatch-test-{}", case.pid());
        let (old, new) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
        let limits = [(old, "cpu.cfs_quota_us", "10000"), (new, "cpu.max", "10000 100000")];
        limits.into_iter().find_map(|(parent, file, limit)| {
            let group = parent.join(&name);
            std::fs::create_dir(&group).ok()?;
            let slow = Self { group: Some(group.clone()), over: Arc::default(), stops: None };
            std::fs::write(group.join(file), limit).ok()?;
            std::fs::write(group.join("cgroup.procs"), case.pid()).ok()?;
            Some(slow)
        })
    }

    /// By job control, as `cpulimit` does it: stopped and continued without pause.
    fn by_stops(case: &Case) -> Self {
        let over: Arc<AtomicBool> = Arc::default();
        let (pid, end) = (case.pid(), Arc::clone(&over));
        let stops = std::thread::spawn(move || {
            let kill = |name: &str| Command::new("kill").args(["-s", name, &pid]).status();
            while !end.load(SeqCst) && kill("STOP").is_ok() {
                std::thread::sleep(Duration::from_millis(9));
                if !kill("CONT").is_ok_and(|sent| sent.success()) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { group: None, over, stops: Some(stops) }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        // The last thing that it does is to continue the process.
        let _ = self.stops.take().map(JoinHandle::join);
        if let Some(group) = &self.group {
            // A group can be removed when it is empty.
            let root = group.parent().unwrap_or(group).join("cgroup.procs");
            for pid in std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = std::fs::write(&root, pid);
            }
            let _ = std::fs::remove_dir(group);
        }
    }
}

fn with_little_time(name: &str, slow: impl FnOnce(&Case) -> Slow) -> Result<(), Failed> {
    let mut case = start(name, PAIR, &[])?;
    case.says("0")?;
    let slow = slow(&case);
    for _ in 0..2 {
        apply(&case, &["--timeout", "100"], exit::DONE)?;
        case.says("0")?;
        rollback(&case, &["--timeout", "100"])?;
        case.says("0")?;
    }
    drop(slow);
    case.program.finish()
}

/// Where groups cannot be made, job control stands in for them here, too.
#[test]
fn a_tenth_of_a_processor() -> Result<(), Failed> {
    with_little_time("a_tenth_of_a_processor", |case| {
        Slow::by_group(case).unwrap_or_else(|| {
            eprintln!("no control group with a limit can be made here");
            Slow::by_stops(case)
        })
    })
}

#[test]
fn stopped_and_continued_all_the_time() -> Result<(), Failed> {
    with_little_time("stopped_and_continued_all_the_time", Slow::by_stops)
}

/// Thousands of threads that sleep, and two that are always inside.
const CROWD: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const SLEEPERS: usize = 4_000;
static SEEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static ASLEEP: AtomicU64 = AtomicU64::new(0);
static STARTED: OnceLock<()> = OnceLock::new();

#[inline(never)]
fn version(n: u64) -> u64 {
    std::thread::sleep(Duration::from_micros(n));
    black_box(1) //-
    black_box(2) //+
}

fn start() {
    for _ in 0..SLEEPERS {
        let asleep = || {
            ASLEEP.fetch_add(1, SeqCst);
            std::thread::park();
        };
        std::thread::Builder::new().stack_size(64 << 10).spawn(asleep).unwrap();
    }
    for seen in &SEEN {
        std::thread::spawn(move || loop {
            seen.fetch_or(black_box(version as fn(u64) -> u64)(500), SeqCst);
        });
    }
}

fn step() {
    STARTED.get_or_init(start);
    while ASLEEP.load(SeqCst) < SLEEPERS as u64 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Calls under way end first.
    for _ in 0..2 {
        for seen in &SEEN {
            seen.store(0, SeqCst);
            while seen.load(SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    println!("{}", SEEN.iter().fold(0, |all, seen| all | seen.load(SeqCst)));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn four_thousand_sleepers() -> Result<(), Failed> {
    let mut case = start("four_thousand_sleepers", CROWD, &[])?;
    case.says("1")?;
    let applied = apply(&case, &["--timeout", "100"], exit::DONE)?;
    assert!(applied.json["threads"].as_u64() >= Some(4_002), "{}", applied.json);
    case.says("2")?;
    rollback(&case, &["--timeout", "100"])?;
    case.says("1")?;
    case.program.finish()
}
