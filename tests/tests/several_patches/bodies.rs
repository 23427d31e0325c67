//! Closures, futures and threads that a patch brought.

use super::Case;
use livepatch_tests::Failed;
use livepatch_tests::tools::{self, exit};

/// Jobs that a patch queues: the table of such an object has code that hands the call on to the closure's body.
const JOBS: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::Mutex;

static JOBS: Mutex<Vec<Box<dyn FnOnce() -> String + Send>>> = Mutex::new(Vec::new());

#[inline(never)]
fn fill() {
    let mut jobs = JOBS.lock().unwrap();
    jobs.reserve(1); //-
    let n = black_box(5u64); //+
    _BEFORE_ //+
    jobs.push(Box::new(move || (0..3).map(|i| format!("fee{} ", n * i)).collect::<String>())); //+
    black_box(_WORD_); //+
}

fn step() {
    let waiting = JOBS.lock().unwrap().pop();
    match waiting {
        Some(job) => println!("{}", job().trim()),
        None => {
            fill();
            println!("queued");
        }
    }
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn another_closure_behind_the_same_table_is_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::of(JOBS)?;
    case.prints("queued")?;
    case.apply(&case.with(&[("_BEFORE_", ""), ("_WORD_", "1")])?)?;
    case.prints("queued")?;
    let tax = "jobs.push(Box::new(move || (0..3).map(|i| format!(\"tax{} \", n + i)).collect::<String>()));";
    case.is_refused(&case.with(&[("_BEFORE_", tax), ("_WORD_", "1")])?, "another function, closure")?;
    case.apply(&case.with(&[("_BEFORE_", ""), ("_WORD_", "2")])?)?;
    case.prints("fee0 fee5 fee10")?;
    case.program.finish()
}

/// Futures that a patch brings, polled by hand, one step a round.
const FUTURES: &str = r#"
mod host;

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

type Task = Pin<Box<dyn Future<Output = u64> + Send>>;

static TASKS: Mutex<Vec<Task>> = Mutex::new(Vec::new());

struct Step(u64, bool);

impl Future for Step {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u64> {
        if std::mem::replace(&mut self.1, true) { Poll::Ready(self.0) } else { Poll::Pending }
    }
}

#[inline(never)]
fn step_of(n: u64) -> Step {
    Step(black_box(n), false)
}

async fn work(n: u64) -> u64 { //+
    let first = step_of(n _FIRST_).await; //+
    let second = step_of(first _SECOND_).await; //+
    _EXTRA_ //+
    first + second _END_ //+
} //+

#[inline(never)]
fn fill() {
    let mut tasks = TASKS.lock().unwrap();
    if tasks.is_empty() {
        tasks.push(Box::pin(std::future::ready(0))); //-
        tasks.push(Box::pin(work(10))); //+
    }
}

#[inline(never)]
fn poll() -> String {
    let mut tasks = TASKS.lock().unwrap();
    let mut context = Context::from_waker(Waker::noop());
    match tasks[0].as_mut().poll(&mut context) {
        Poll::Ready(n) => {
            tasks.clear();
            format!("done {n}")
        }
        Poll::Pending => "waits".into(),
    }
}

fn step() {
    fill();
    println!("{}", poll());
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn a_future_that_a_patch_brought_goes_on_in_the_next_one() -> Result<(), Failed> {
    let mut case = Case::of(FUTURES)?;
    case.prints("done 0")?;
    let with = |case: &Case, first: &str, second: &str, extra: &str, end: &str| {
        case.with(&[("_FIRST_", first), ("_SECOND_", second), ("_EXTRA_", extra), ("_END_", end)])
    };
    case.apply(&with(&case, "", "", "", "")?)?;
    case.prints("waits")?;
    case.prints("waits")?;
    // What comes after the awaits may be another, also for the future under way.
    case.apply(&with(&case, "", "", "", "+ 100")?)?;
    case.prints("done 120")?;
    case.prints("waits")?;
    let reason = "several::work::{async_fn_env#0}";
    case.is_refused(&with(&case, "", "", "step_of(1).await;", "+ 100")?, reason)?;
    // The one under way has what it waits for already.
    case.apply(&with(&case, "+ 1", "", "", "+ 100")?)?;
    for answer in ["waits", "done 120", "waits", "waits", "done 122"] {
        case.prints(answer)?;
    }
    case.program.finish()
}

#[test]
fn a_future_whose_awaits_change_places_in_the_next_patch_is_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::of(FUTURES)?;
    case.prints("done 0")?;
    let with = |case: &Case, extra: &str| {
        case.with(&[("_FIRST_", ""), ("_SECOND_", ""), ("_EXTRA_", extra), ("_END_", "+ 10 * a + b")])
    };
    let (a, b) = ("let a = step_of(1).await;", "let b = step_of(2).await;");
    case.apply(&with(&case, &format!("{a} {b}"))?)?;
    for answer in ["waits", "waits", "waits"] {
        case.prints(answer)?;
    }
    let reason = "several::work::{async_fn_env#0}";
    case.is_refused(&with(&case, &format!("{b} {a}"))?, reason)?;
    case.prints("waits")?;
    case.prints("done 32")?;
    case.program.finish()
}

/// A patch that starts a thread, which is in the patch's code from then on.
const THREAD: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

type Ends = (Sender<u64>, Receiver<u64>);

static THREAD: Mutex<Option<Ends>> = Mutex::new(None);

#[inline(never)] //+
fn tick(n: u64) -> u64 { //+
    black_box(n) + _TICK_ //+
} //+

#[inline(never)] //+
fn serve(asked: &Receiver<u64>, answers: &Sender<u64>) { //+
    for n in asked { //+
        answers.send(tick(n) + shipped(n)).unwrap(); //+
    } //+
} //+

#[inline(never)]
fn shipped(n: u64) -> u64 {
    black_box(n) //-
    black_box(n) * _SHIPPED_ //+
}

#[inline(never)]
fn start() {
    let mut thread = THREAD.lock().unwrap();
    if thread.is_none() {
        let _: (Sender<u64>, Receiver<u64>) = channel();
        let ((ask, asked), (answers, answer)) = (channel(), channel()); //+
        std::thread::spawn(move || serve(&asked, &answers)); //+
        *thread = Some((ask, answer)); //+
    }
}

#[inline(never)]
fn ask(n: u64) -> String {
    let thread = THREAD.lock().unwrap();
    let Some((ask, answer)) = &*thread else { return "nobody".into() };
    ask.send(n).unwrap();
    format!("{} _WORD_", answer.recv().unwrap())
}

fn step() {
    start();
    println!("{} {}", ask(10), shipped(1));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn a_thread_that_a_patch_started_need_not_leave_code_that_the_next_one_has_too() -> Result<(), Failed> {
    let mut case = Case::of(THREAD)?;
    case.prints("nobody 1")?;
    let with = |case: &Case, tick: &str, shipped: &str, word: &str| {
        case.with(&[("_TICK_", tick), ("_SHIPPED_", shipped), ("_WORD_", word)])
    };
    case.apply(&with(&case, "1", "2", "first")?)?;
    case.prints("31 first 2")?;
    case.apply(&with(&case, "1", "2", "second")?)?;
    case.prints("31 second 2")?;
    // What it calls of the image is what the patch makes of that; of the first patch it has to be the same.
    let pid = case.program.pid().to_string();
    let other = with(&case, "5", "2", "third")?;
    let short = ["--timeout", "1"].map(std::ffi::OsStr::new);
    let ran = tools::livepatch(&[&["apply".as_ref(), pid.as_ref(), other.as_os_str()][..], &short].concat())?;
    ran.expect(exit::BUSY, "apply")?;
    case.prints("31 second 2")?;
    case.program.finish()
}
