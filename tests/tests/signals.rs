//! Children, signals and signal masks during transitions.

use livepatch_tests::case::Case;
use livepatch_tests::tools::exit;
use livepatch_tests::{Failed, fail};

/// Children with a copy of the memory, children in the same memory, signals, blocked signals, the program's own SIGTRAP.
const UNUSUAL: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(code: i32) -> !;
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn raise(number: i32) -> i32;
    fn setitimer(which: i32, new: *const [i64; 4], old: *mut [i64; 4]) -> i32;
    fn pthread_sigmask(how: i32, set: *const [u64; 16], old: *mut [u64; 16]) -> i32;
}

const SIGTRAP: i32 = 5;
const SIGALRM: i32 = 14;
const SIG_BLOCK: i32 = 0;
const SIG_SETMASK: i32 = 2;

static STARTED: OnceLock<()> = OnceLock::new();
static FORKS: AtomicU64 = AtomicU64::new(0);
static SPAWNS: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);
static BLOCKED: AtomicU64 = AtomicU64::new(0);
static TRAPS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

#[inline(never)]
fn version(n: u64) -> u64 {
    black_box(n * 0 + 1) //-
    black_box(n * 0 + 2) //+
}

extern "C" fn on_tick(_: i32) {
    if version(black_box(3)) > 2 {
        WRONG.fetch_add(1, SeqCst);
    }
    TICKS.fetch_add(1, SeqCst);
}

extern "C" fn on_trap(_: i32) {
    TRAPS.fetch_add(1, SeqCst);
}

/// A child runs the changed function many times; its answers are of one version.
fn fork_on() {
    loop {
        let child = unsafe { fork() };
        if child == 0 {
            let first = version(1);
            let same = (0..200).all(|n| version(black_box(n)) == first);
            unsafe { _exit(if same { 0 } else { 1 }) }
        }
        let mut status = 0;
        if unsafe { waitpid(child, &mut status, 0) } != child || status != 0 {
            WRONG.fetch_add(1, SeqCst);
        }
        FORKS.fetch_add(1, SeqCst);
    }
}

fn spawn_on() {
    loop {
        match std::process::Command::new("/bin/true").status() {
            Ok(status) if status.success() => SPAWNS.fetch_add(1, SeqCst),
            _ => WRONG.fetch_add(1, SeqCst),
        };
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A thread with every signal blocked.
fn blocked_on() {
    unsafe { pthread_sigmask(SIG_BLOCK, &[u64::MAX; 16], std::ptr::null_mut()) };
    loop {
        black_box(version(black_box(1)));
        if BLOCKED.fetch_add(1, SeqCst) % 64 == 0 {
            std::thread::yield_now();
        }
    }
}

/// A thread that blocks all signals for moments, as C libraries do to make threads and processes.
fn blocked_for_moments_on() {
    let mut before = [0; 16];
    loop {
        unsafe { pthread_sigmask(SIG_BLOCK, &[u64::MAX; 16], &mut before) };
        (0..2000).for_each(|n| drop(black_box(n)));
        unsafe { pthread_sigmask(SIG_SETMASK, &before, std::ptr::null_mut()) };
        (0..2000).for_each(|n| drop(black_box(n)));
    }
}

fn start() {
    unsafe {
        signal(SIGALRM, on_tick);
        signal(SIGTRAP, on_trap);
        setitimer(0, &[0, 1000, 0, 1000], std::ptr::null_mut());
    }
    std::thread::spawn(fork_on);
    std::thread::spawn(spawn_on);
    let named = |name: &str| std::thread::Builder::new().name(name.into());
    named("blocked").spawn(blocked_on).unwrap();
    named("moments").spawn(blocked_for_moments_on).unwrap();
}

fn step() {
    STARTED.get_or_init(start);
    for count in [&FORKS, &SPAWNS, &TICKS, &BLOCKED] {
        let before = count.load(SeqCst);
        while count.load(SeqCst) < before + 2 {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }
    let traps = TRAPS.load(SeqCst);
    unsafe { raise(SIGTRAP) };
    println!("version {} traps {} wrong {}", version(1), TRAPS.load(SeqCst) - traps, WRONG.load(SeqCst));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn children_signals_and_blocked_signals() -> Result<(), Failed> {
    let mut case = Case::start("children_signals_and_blocked_signals", UNUSUAL)?;
    case.says("version 1 traps 1 wrong 0")?;
    for _ in 0..10 {
        case.there_and_back("version 2 traps 1 wrong 0", "version 1 traps 1 wrong 0")?;
    }
    case.wait_for("SIGTRAP to be as it was", |case| {
        let all_the_time = signal_masks(case, "blocked")?.iter().all(|mask| mask & SIGTRAP_BIT != 0);
        Ok(all_the_time && signal_masks(case, "moments")?.contains(&0))
    })?;
    case.program.finish()
}

const SIGTRAP_BIT: u64 = 1 << 4;

/// What the threads of that name block at this moment.
fn signal_masks(case: &Case, name: &str) -> Result<Vec<u64>, Failed> {
    let mut masks = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", case.pid()))? {
        let text = std::fs::read_to_string(task?.path().join("status"))?;
        let field =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
        if field("Name:") == name {
            masks.push(u64::from_str_radix(field("SigBlk:"), 16)?);
        }
    }
    if masks.is_empty() { fail(format!("no thread of the name {name}")) } else { Ok(masks) }
}

/// Threads that run into breakpoints of the program's own all the time, also in the changed function.
const OWN_BREAKPOINTS: &str = r#"
mod host;

use std::arch::asm;
use std::cell::Cell;
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

const SIGTRAP: i32 = 5;

static STARTED: OnceLock<()> = OnceLock::new();
static CALLS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static CAUGHT: Cell<u64> = const { Cell::new(0) };
}

#[inline(never)]
fn version(n: u64) -> u64 {
    unsafe { asm!("int3") };
    black_box(n * 0 + 1) //-
    black_box(n * 0 + 2) //+
}

extern "C" fn on_trap(_: i32) {
    CAUGHT.set(CAUGHT.get() + 1);
}

fn call_on() {
    loop {
        let before = CAUGHT.get();
        version(black_box(3));
        unsafe { asm!("int3") };
        if CAUGHT.get() != before + 2 {
            WRONG.fetch_add(1, SeqCst);
        }
        CALLS.fetch_add(1, SeqCst);
    }
}

fn start() {
    unsafe { signal(SIGTRAP, on_trap) };
    (0..4).for_each(|_| drop(std::thread::spawn(call_on)));
}

fn step() {
    STARTED.get_or_init(start);
    let before = CALLS.load(SeqCst);
    while CALLS.load(SeqCst) < before + 100 {
        std::thread::yield_now();
    }
    println!("version {} wrong {}", version(1), WRONG.load(SeqCst));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn breakpoints_of_the_programs_own() -> Result<(), Failed> {
    let mut case = Case::start("breakpoints_of_the_programs_own", OWN_BREAKPOINTS)?;
    case.says("version 1 wrong 0")?;
    for _ in 0..5 {
        case.there_and_back("version 2 wrong 0", "version 1 wrong 0")?;
    }
    case.program.finish()
}

/// The changed function is reached by destructors alone: of thread-locals, and while a panic unwinds.
const DESTRUCTORS: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

static SEEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static STARTED: OnceLock<()> = OnceLock::new();

#[inline(never)]
fn version(n: u64) -> u64 {
    std::thread::sleep(Duration::from_micros(300));
    black_box(n * 0 + 1) //-
    black_box(n * 0 + 2) //+
}

struct InDrop(usize);

impl Drop for InDrop {
    fn drop(&mut self) {
        SEEN[self.0].fetch_or(black_box(version as fn(u64) -> u64)(7), SeqCst);
    }
}

thread_local! {
    static MINE: InDrop = const { InDrop(0) };
}

fn threads_end() {
    loop {
        std::thread::spawn(|| MINE.with(|mine| drop(black_box(mine.0)))).join().unwrap();
    }
}

fn panics_unwind() {
    loop {
        let caught = std::panic::catch_unwind(|| {
            let _guard = InDrop(1);
            std::panic::resume_unwind(Box::new(7));
        });
        assert!(caught.is_err());
    }
}

fn step() {
    STARTED.get_or_init(|| {
        std::thread::spawn(threads_end);
        std::thread::spawn(panics_unwind);
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
    println!("{} {}", SEEN[0].load(SeqCst), SEEN[1].load(SeqCst));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn destructors_of_threads_and_of_panics() -> Result<(), Failed> {
    let mut case = Case::start("destructors_of_threads_and_of_panics", DESTRUCTORS)?;
    case.says("1 1")?;
    for _ in 0..5 {
        case.there_and_back("2 2", "1 1")?;
    }
    case.program.finish()
}

/// A timer of the calling thread's own.
const INTERVAL_TIMER: &str = r#"
mod interval_timer {
    use std::ffi::c_void;

    unsafe extern "C" {
        fn timer_create(clock: i32, event: *const Event, timer: *mut *mut c_void) -> i32;
        fn timer_settime(timer: *mut c_void, flags: i32, new: *const [i64; 4], old: *mut [i64; 4]) -> i32;
        fn gettid() -> i32;
    }

    /// `struct sigevent`.
    #[repr(C)]
    struct Event {
        value: usize,
        signal: i32,
        notify: i32,
        thread: i32,
        rest: [i32; 11],
    }

    pub const SIGUSR1: i32 = 10;
    const SIGEV_THREAD_ID: i32 = 4;

    /// Sends the calling thread SIGUSR1 every so many nanoseconds.
    pub fn interrupt_every(nanos: i64) {
        let thread = unsafe { gettid() };
        let event = Event { value: 0, signal: SIGUSR1, notify: SIGEV_THREAD_ID, thread, rest: [0; 11] };
        let mut timer = std::ptr::null_mut();
        let every = [0, nanos, 0, nanos];
        unsafe {
            assert_eq!(timer_create(1, &raw const event, &raw mut timer), 0);
            assert_eq!(timer_settime(timer, 0, &raw const every, std::ptr::null_mut()), 0);
        }
    }
}
"#;

/// Handlers that may interrupt themselves, of timers that fire faster than a delivery to a traced thread takes at times, on small stacks.
const NESTED: &str = r#"
mod host;

use interval_timer::{SIGUSR1, interrupt_every};
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

unsafe extern "C" {
    fn sigaction(number: i32, new: *const Action, old: *mut Action) -> i32;
    fn setitimer(which: i32, new: *const [i64; 4], old: *mut [i64; 4]) -> i32;
}

#[repr(C)]
struct Action {
    handler: extern "C" fn(i32),
    mask: [u64; 16],
    flags: i32,
    restorer: usize,
}

const SIGALRM: i32 = 14;
/// Microseconds between signals to the process, whose handler nothing interrupts; 0 for none.
const FLOOD: i64 = MICROS;
const SA_NODEFER: i32 = 0x4000_0000;
const SA_RESTART: i32 = 0x1000_0000;
const THREADS: usize = 6;

static STARTED: OnceLock<()> = OnceLock::new();
static TICKS: AtomicU64 = AtomicU64::new(0);
static CALLS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];

#[inline(never)]
fn version(n: u64) -> u64 {
    black_box(n * 0 + 1) //-
    black_box(n * 0 + 2) //+
}

extern "C" fn on_tick(_: i32) {
    black_box(version(black_box(3)));
    TICKS.fetch_add(1, SeqCst);
}

fn work(thread: usize) {
    interrupt_every(300_000);
    loop {
        black_box(version(black_box(3)));
        CALLS[thread].fetch_add(1, SeqCst);
    }
}

fn step() {
    STARTED.get_or_init(|| {
        let action =
            Action { handler: on_tick, mask: [0; 16], flags: SA_NODEFER | SA_RESTART, restorer: 0 };
        assert_eq!(unsafe { sigaction(SIGUSR1, &raw const action, std::ptr::null_mut()) }, 0);
        let action = Action { handler: on_tick, mask: [!0; 16], flags: SA_RESTART, restorer: 0 };
        assert_eq!(unsafe { sigaction(SIGALRM, &raw const action, std::ptr::null_mut()) }, 0);
        assert_eq!(unsafe { setitimer(0, &[0, FLOOD, 0, FLOOD], std::ptr::null_mut()) }, 0);
        for thread in 0..THREADS {
            std::thread::Builder::new().stack_size(64 << 10).spawn(move || work(thread)).unwrap();
        }
    });
    let ticks = TICKS.load(SeqCst);
    while TICKS.load(SeqCst) < ticks + 100 {
        std::thread::yield_now();
    }
    for calls in &CALLS {
        let before = calls.load(SeqCst);
        while calls.load(SeqCst) < before + 2 {
            std::thread::yield_now();
        }
    }
    println!("{}", version(black_box(1)));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn handlers_that_interrupt_themselves() -> Result<(), Failed> {
    let source = format!("{}{INTERVAL_TIMER}", NESTED.replace("MICROS", "0"));
    let mut case = Case::start("handlers_that_interrupt_themselves", &source)?;
    for _ in 0..5 {
        case.says("1")?;
        case.there_and_back("2", "1")?;
    }
    case.program.finish()
}

/// Between two signals of a thread's own there is always one of the process's, so that the thread executes nothing but handlers.
#[test]
fn handlers_that_interrupt_themselves_in_a_flood_of_signals() -> Result<(), Failed> {
    let source = format!("{}{INTERVAL_TIMER}", NESTED.replace("MICROS", "13"));
    let mut case = Case::start("handlers_that_interrupt_themselves_in_a_flood", &source)?;
    let mut patched = false;
    for _ in 0..8 {
        case.says(if patched { "2" } else { "1" })?;
        let brief = ["--timeout", "1"];
        let ran = if patched { case.rollback(&brief)? } else { case.apply(&brief)? };
        match ran.code {
            exit::DONE => patched = !patched,
            _ => drop(ran.expect(exit::BUSY, "in a flood of signals")?),
        }
    }
    case.says(if patched { "2" } else { "1" })?;
    case.program.finish()
}

/// Every thread is interrupted without pause, and one stays in a changed function until a round lets it out.
const WITHOUT_PAUSE: &str = r#"
mod host;

use interval_timer::{SIGUSR1, interrupt_every};
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}


static STARTED: OnceLock<()> = OnceLock::new();
static ENTERED: AtomicU64 = AtomicU64::new(0);
static GO: AtomicBool = AtomicBool::new(false);

extern "C" fn on_tick(_: i32) {}

#[inline(never)]
fn version(wait: bool) -> u64 {
    if wait {
        ENTERED.fetch_add(1, SeqCst);
        while !GO.load(SeqCst) {
            std::hint::spin_loop();
        }
    }
    black_box(1) //-
    black_box(2) //+
}

fn step() {
    if STARTED.set(()).is_ok() {
        unsafe { signal(SIGUSR1, on_tick) };
        interrupt_every(30_000);
        std::thread::spawn(|| {
            interrupt_every(30_000);
            black_box(version(black_box(true)));
            loop {
                std::thread::park();
            }
        });
        while ENTERED.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        println!("inside");
        return;
    }
    GO.store(true, SeqCst);
    println!("{}", version(black_box(false)));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn a_process_that_is_interrupted_without_pause_is_not_said_to_be_stopped() -> Result<(), Failed> {
    let mut case = Case::start(
        "a_process_that_is_interrupted_without_pause",
        &format!("{WITHOUT_PAUSE}{INTERVAL_TIMER}"),
    )?;
    case.says("inside")?;
    let ran = case.apply(&["--timeout", "1"])?.expect(exit::BUSY, "with a thread inside")?;
    let told = format!("{}\n{}", ran.text, ran.json);
    if told.contains("SIGSTOP") {
        return fail(told);
    }
    case.says("1")?;
    case.there_and_back("2", "1")?;
    case.program.finish()
}

/// A handler with all signals blocked, SIGTRAP as well, calls two functions that only fit each other; so do the threads that it interrupts,
/// and another handler. At each breakpoint in the first one the kernel takes the net away, and a thread has to put it back.
const MASKED_PAIR: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

unsafe extern "C" {
    fn sigaction(number: i32, new: *const Action, old: *mut Action) -> i32;
    fn sigfillset(set: *mut [u64; 16]) -> i32;
    fn setitimer(which: i32, new: *const [i64; 4], old: *mut [i64; 4]) -> i32;
}

#[repr(C)]
struct Action {
    handler: extern "C" fn(i32),
    mask: [u64; 16],
    flags: i32,
    restorer: usize,
}

const SIGALRM: i32 = 14;
const SIGVTALRM: i32 = 26;
const ITIMER_REAL: i32 = 0;
const ITIMER_VIRTUAL: i32 = 1;
const SA_RESTART: i32 = 0x1000_0000;
const THREADS: usize = 3;

static STARTED: OnceLock<()> = OnceLock::new();
static MIXED: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);
static CALLS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];

#[inline(never)]
fn write(n: u64) -> bool {
    let code = black_box(n << 1 | 1); //-
    let code = black_box(n << 2 | 2); //+
    black_box(between as fn(u64, u64) -> bool)(code, n)
}

#[inline(never)]
fn between(code: u64, n: u64) -> bool {
    let code = black_box(code ^ 0x10); //-
    let code = black_box(code ^ 0x20); //+
    black_box(verify as fn(u64, u64) -> bool)(code, n)
}

#[inline(never)]
fn verify(code: u64, n: u64) -> bool {
    black_box(code ^ 0x10) == n << 1 | 1 //-
    black_box(code ^ 0x20) == n << 2 | 2 //+
}

fn call(n: u64) {
    if !black_box(write as fn(u64) -> bool)(black_box(n)) {
        MIXED.fetch_add(1, SeqCst);
    }
}

extern "C" fn on_tick(_: i32) {
    for n in 0..20 {
        call(n);
    }
    TICKS.fetch_add(1, SeqCst);
}

fn start() {
    for (signal, masked) in [(SIGALRM, true), (SIGVTALRM, false)] {
        let mut action = Action { handler: on_tick, mask: [0; 16], flags: SA_RESTART, restorer: 0 };
        unsafe {
            if masked {
                sigfillset(&raw mut action.mask);
            }
            assert_eq!(sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
        }
    }
    for calls in &CALLS {
        std::thread::spawn(move || {
            for n in 0.. {
                call(n);
                calls.fetch_add(1, SeqCst);
            }
        });
    }
    for (timer, micros) in [(ITIMER_REAL, 1_500), (ITIMER_VIRTUAL, 4_000)] {
        assert_eq!(unsafe { setitimer(timer, &[0, micros, 0, micros], std::ptr::null_mut()) }, 0);
    }
}

fn step() {
    STARTED.get_or_init(start);
    for count in CALLS.iter().chain([&TICKS]) {
        let before = count.load(SeqCst);
        while count.load(SeqCst) < before + 2 {
            std::thread::yield_now();
        }
    }
    println!("{} mixed", MIXED.load(SeqCst));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn a_handler_that_blocks_all_signals_sees_no_mixed_pair() -> Result<(), Failed> {
    let mut case = Case::start("a_handler_that_blocks_all_signals", MASKED_PAIR)?;
    for _ in 0..40 {
        case.there_and_back("0 mixed", "0 mixed")?;
    }
    case.program.finish()
}
