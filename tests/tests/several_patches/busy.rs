//! An attempt that met a thread inside brings nothing into the process that a later patch has to agree with.

use super::Case;
use livepatch_tests::tools::{self, exit};
use livepatch_tests::{Failed, fail};
use std::path::{Path, PathBuf};

/// A thread is inside of `waits` until the fifth round.
const BUSY: &str = r#"
mod host;

use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread::JoinHandle;

type Thread = (Sender<()>, Option<JoinHandle<u64>>);

static ROUND: AtomicU64 = AtomicU64::new(0);
static THREAD: OnceLock<Mutex<Thread>> = OnceLock::new();
static KEPT: Mutex<Vec<fn(u64) -> u64>> = Mutex::new(Vec::new());
static COUNT: AtomicU64 = AtomicU64::new(_BEGIN_); //+

thread_local! { //+
    static OWN: Cell<u64> = const { Cell::new(_BEGIN_) }; //+
} //+

#[inline(never)]
fn waits(inside: &Sender<()>, go: &Receiver<()>) -> u64 {
    inside.send(()).unwrap();
    go.recv().unwrap();
    black_box(1) //-
    _WAITS_ //+
}

_MORE_ //+

#[_INLINE_] //+
fn fee(n: u64) -> u64 { //+
    n + black_box(6) //+
} //+

#[inline(never)]
fn word() -> String {
    format!("old {}", KEPT.lock().unwrap().len()) //-
    OWN.set(OWN.get() + 1); //+
    let count = COUNT.fetch_add(1, Relaxed) + 1; //+
    let fee = _FEE_; //+
    format!("_WORD_ {} {count} {fee} {}", OWN.get(), KEPT.lock().unwrap().len()) //+
}

fn start() -> Mutex<Thread> {
    let (inside, is_inside) = channel();
    let (go, goes) = channel();
    let thread = std::thread::spawn(move || waits(&inside, &goes));
    is_inside.recv().unwrap();
    Mutex::new((go, Some(thread)))
}

fn step() {
    let mut thread = THREAD.get_or_init(start).lock().unwrap();
    if ROUND.fetch_add(1, Relaxed) == 4 {
        thread.0.send(()).unwrap();
        thread.1.take().unwrap().join().unwrap();
    }
    println!("{}", word());
}

fn main() {
    host::serve(step);
}
"#;

impl Case {
    /// One patch without `waits`, and one with it that has a thread-local more, and `fee` by itself.
    fn one_and_busy(&self) -> Result<[PathBuf; 2], Failed> {
        let more = "thread_local! { static MORE: Cell<u64> = const { Cell::new(0) }; }";
        let keeps = "{ MORE.set(MORE.get() + 1); KEPT.lock().unwrap().push(fee); KEPT.lock().unwrap()[0](MORE.get()) }";
        let with = |[word, begin, waits, inline]: [&str; 4], fee: &str, more: &str| {
            let words = [("_WORD_", word), ("_BEGIN_", begin), ("_WAITS_", waits), ("_INLINE_", inline)];
            self.with(&[&words[..], &[("_FEE_", fee), ("_MORE_", more)]].concat())
        };
        let one = with(["one", "10", "black_box(1)", "inline(always)"], "fee(1)", "")?;
        Ok([one, with(["two", "20", "black_box(2)", "inline(never)"], keeps, more)?])
    }

    fn is_busy(&self, file: &Path) -> Result<(), Failed> {
        let pid = self.program.pid().to_string();
        let args = ["apply".as_ref(), pid.as_ref(), file.as_os_str(), "--timeout".as_ref(), "1".as_ref()];
        tools::livepatch(&args)?.expect(exit::BUSY, "apply").map(drop)
    }

    fn has(&self, states: &[&str]) -> Result<(), Failed> {
        let status = tools::livepatch(&["status", &self.program.pid().to_string()])?;
        let json = status.expect(exit::DONE, "status")?.json;
        let found = json["patches"].as_array().into_iter().flatten().map(|patch| &patch["state"]);
        if found.eq(states) { Ok(()) } else { fail(format!("expected {states:?}, found {json}")) }
    }

    /// How many carriers the program's loader has loaded.
    fn carriers(&self) -> Result<usize, Failed> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.program.pid()))?;
        let is_start = |line: &&str| line.contains("memfd:livepatch-tls") && line.contains(" 00000000 ");
        Ok(maps.lines().filter(is_start).count())
    }
}

#[test]
fn another_patch_than_the_one_that_was_busy() -> Result<(), Failed> {
    let mut case = Case::of(BUSY)?;
    let [one, busy] = case.one_and_busy()?;
    case.prints("old 0")?;
    case.is_busy(&busy)?;
    case.has(&[])?;
    case.apply(&one)?;
    case.has(&["applied"])?;
    case.prints("one 11 11 7 0")?;
    case.program.finish().or(Ok(()))
}

#[test]
fn a_patch_that_was_in_force_before_and_behind_one_that_was_busy() -> Result<(), Failed> {
    let mut case = Case::of(BUSY)?;
    let [one, busy] = case.one_and_busy()?;
    case.prints("old 0")?;
    case.apply(&one)?;
    case.prints("one 11 11 7 0")?;
    case.is_busy(&busy)?;
    case.has(&["applied"])?;
    case.rollback()?;
    case.prints("old 0")?;
    case.is_busy(&busy)?;
    case.has(&["rolled-back"])?;
    case.apply(&one)?;
    case.prints("one 12 12 7 0")?;
    // The thread leaves in this round.
    case.prints("one 13 13 7 0")?;
    case.apply(&busy)?;
    case.has(&["replaced", "applied"])?;
    case.prints("two 14 14 7 1")?;
    // Now it has been in force, and the program keeps what it brought.
    case.is_refused(&one, "only inlined into other functions")?;
    case.rollback()?;
    case.is_refused(&one, "only inlined into other functions")?;
    case.program.finish()
}

#[test]
fn the_next_attempt_takes_the_carrier_of_the_last_one() -> Result<(), Failed> {
    let mut case = Case::of(BUSY)?;
    let [_, busy] = case.one_and_busy()?;
    case.prints("old 0")?;
    for _ in 0..3 {
        case.is_busy(&busy)?;
        assert_eq!(case.carriers()?, 1);
        case.prints("old 0")?;
    }
    case.prints("old 0")?;
    case.apply(&busy)?;
    assert_eq!(case.carriers()?, 1);
    case.prints("two 21 21 7 1")?;
    case.rollback()?;
    case.program.finish()
}
