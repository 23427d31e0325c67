//! Transitions of programs in which threads inside changed functions wait for others that come to one: a lock that is held
//! there, an answer, a job. To hold those others is to wait for ever.

use livepatch_tests::Failed;
use livepatch_tests::case::Case;

/// `BEGIN` makes the threads. A round tells the versions of the functions that it saw run.
const WAITING: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

static SEEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static STARTED: OnceLock<()> = OnceLock::new();
static LOCK: Mutex<u64> = Mutex::new(0);
static SHARED: RwLock<u64> = RwLock::new(0);

type Job = Sender<u64>;

fn spend(micros: u64) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(micros) {
        black_box(micros);
    }
}

/// Called with a lock held, or for somebody who waits for the answer.
#[inline(never)]
fn held(micros: u64) -> u64 {
    std::thread::sleep(Duration::from_micros(micros));
    black_box(1) //-
    black_box(2) //+
}

#[inline(never)]
fn locks() -> u64 {
    let mut value = LOCK.lock().unwrap();
    *value += 1;
    std::thread::sleep(Duration::from_micros(200));
    black_box(1) //-
    black_box(2) //+
}

#[inline(never)]
fn reads() -> u64 {
    let value = SHARED.read().unwrap();
    std::thread::sleep(Duration::from_millis(1) + Duration::from_nanos(*value & 1));
    black_box(1) //-
    black_box(2) //+
}

#[inline(never)]
fn asks(jobs: &Sender<Job>) -> u64 {
    let (job, answer) = channel();
    jobs.send(job).unwrap();
    let seen = answer.recv().unwrap();
    black_box(1 | seen & 4) //-
    black_box(2 | seen & 4) //+
}

#[inline(never)]
fn meets(all: &Barrier) -> u64 {
    all.wait();
    black_box(1) //-
    black_box(2) //+
}

#[inline(never)]
fn takes(token: &Receiver<()>) -> u64 {
    token.recv().unwrap();
    black_box(1) //-
    black_box(2) //+
}

#[inline(never)]
fn calls(other: &Sender<()>, back: &Receiver<()>) -> u64 {
    other.send(()).unwrap();
    back.recv().unwrap();
    black_box(1) //-
    black_box(2) //+
}

#[inline(never)]
fn answers(back: &Sender<()>) -> u64 {
    back.send(()).unwrap();
    black_box(1) //-
    black_box(2) //+
}

fn run(threads: usize, at: usize, call: impl Fn() -> u64 + Clone + Send + 'static) {
    for _ in 0..threads {
        let call = call.clone();
        std::thread::spawn(move || loop {
            SEEN[at].fetch_or(call(), SeqCst);
        });
    }
}

/// One half holds the lock when it comes to a changed function, the other waits for it in one.
fn lock() {
    run(8, 0, || {
        let mut value = LOCK.lock().unwrap();
        *value += 1;
        held(black_box(100))
    });
    run(8, 1, locks);
}

/// The lock goes from one that writes to the next one as long as there is one.
fn fair_lock() {
    run(8, 0, || {
        let seen = {
            let mut value = SHARED.write().unwrap();
            *value += 1;
            held(black_box(0))
        };
        spend(50);
        seen
    });
    run(8, 1, || {
        let seen = reads();
        spend(10);
        seen
    });
}

/// There is always a question, and all workers answer.
fn pool() {
    let (jobs, inbox) = channel::<Job>();
    let inbox: Arc<Mutex<Receiver<Job>>> = Arc::new(Mutex::new(inbox));
    run(4, 0, move || {
        let job = inbox.lock().unwrap().recv().unwrap();
        let seen = held(black_box(MICROS));
        job.send(seen).unwrap();
        seen
    });
    run(16, 1, move || asks(&jobs));
}

/// Nobody leaves before all are there.
fn meeting() {
    let all = Arc::new(Barrier::new(16));
    for at in [0, 1] {
        let all = all.clone();
        run(8, at, move || meets(&all));
    }
}

/// Each waits for the one before, who is parked with the token.
fn ring() {
    let (first, mut inbox) = channel();
    first.send(()).unwrap();
    let mut last = Some(first);
    for at in 0..4 {
        let (next, following) = channel();
        let outbox = if at == 3 { last.take().unwrap() } else { next };
        let token = std::mem::replace(&mut inbox, following);
        std::thread::spawn(move || loop {
            let seen = takes(&token);
            SEEN[at % 2].fetch_or(seen | held(black_box(0)), SeqCst);
            outbox.send(()).unwrap();
        });
    }
}

/// Nobody in one group waits for anybody in another.
fn groups() {
    for _ in 0..2 {
        let ((other, called), (back, answered)) = (channel(), channel());
        std::thread::spawn(move || loop {
            SEEN[0].fetch_or(calls(&other, &answered), SeqCst);
        });
        std::thread::spawn(move || loop {
            called.recv().unwrap();
            SEEN[1].fetch_or(answers(&back), SeqCst);
        });
    }
    let all = Arc::new(Barrier::new(5));
    run(5, 0, move || meets(&all));
}

fn step() {
    STARTED.get_or_init(|| BEGIN());
    // Calls under way end first: at most as many as there are threads.
    SEEN.iter().for_each(|seen| seen.store(0, SeqCst));
    std::thread::sleep(Duration::from_millis(100));
    let mut all = 0;
    for _ in 0..50 {
        SEEN.iter().for_each(|seen| seen.store(0, SeqCst));
        while SEEN.iter().any(|seen| seen.load(SeqCst) == 0) {
            std::thread::sleep(Duration::from_millis(1));
        }
        all = SEEN.iter().fold(0, |all, seen| all | seen.load(SeqCst));
        if all.count_ones() == 1 {
            break;
        }
    }
    println!("{all}");
}

fn main() {
    host::serve(step);
}
"#;

fn converges(name: &str, start: &str, micros: &str, rounds: usize) -> Result<(), Failed> {
    let source = WAITING.replace("BEGIN", start).replace("MICROS", micros);
    let mut case = Case::start(name, &source)?;
    case.says("1")?;
    for _ in 0..rounds {
        case.there_and_back("2", "1")?;
    }
    case.program.finish()
}

#[test]
fn the_lock_is_held_by_one_that_is_parked() -> Result<(), Failed> {
    converges("the_lock_is_held_by_one_that_is_parked", "lock", "0", 5)
}

#[test]
fn the_lock_goes_from_one_that_is_parked_to_the_next() -> Result<(), Failed> {
    converges("the_lock_goes_from_one_that_is_parked_to_the_next", "fair_lock", "0", 5)
}

#[test]
fn the_workers_are_parked() -> Result<(), Failed> {
    converges("the_workers_are_parked", "pool", "200", 5)
}

#[test]
fn the_workers_take_longer_than_the_first_grace() -> Result<(), Failed> {
    converges("the_workers_take_longer_than_the_first_grace", "pool", "5_000", 5)
}

#[test]
fn all_meet_at_a_barrier() -> Result<(), Failed> {
    converges("all_meet_at_a_barrier", "meeting", "0", 5)
}

#[test]
fn a_token_goes_round() -> Result<(), Failed> {
    converges("a_token_goes_round", "ring", "0", 5)
}

#[test]
fn groups_that_have_nothing_to_do_with_each_other() -> Result<(), Failed> {
    converges("groups_that_have_nothing_to_do_with_each_other", "groups", "0", 20)
}
