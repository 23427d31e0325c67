//! How a program deals with its children, and what it sees of children that are not its own.

use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

unsafe extern "C" {
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn signal(number: i32, handler: usize) -> usize;
    fn prctl(option: i32, a: u64, b: u64, c: u64, d: u64) -> i32;
}

const SIGCHLD: i32 = 17;
const SIG_IGN: usize = 1;
const PR_SET_CHILD_SUBREAPER: i32 = 36;
const WNOHANG: i32 = 1;
const WALL: i32 = 0x4000_0000;

static SIGNALS: AtomicU64 = AtomicU64::new(0);
static COLLECTED: AtomicI32 = AtomicI32::new(0);
static CHILD: Mutex<Option<Child>> = Mutex::new(None);

extern "C" fn count(_: i32) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

pub fn command(what: &str) -> String {
    match what {
        // SAFETY: the handler only adds to an atomic.
        "count" => unsafe { signal(SIGCHLD, count as *const () as usize) }.to_string(),
        // SAFETY: no handler runs.
        "ignore" => unsafe { signal(SIGCHLD, SIG_IGN) }.to_string(),
        // SAFETY: numbers only.
        "subreaper" => unsafe { prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }.to_string(),
        // A child that does not end, and a thread that waits for whichever child ends.
        "wait" => {
            *CHILD.lock().unwrap() = Some(Command::new("/bin/sleep").arg("1000").spawn().unwrap());
            std::thread::spawn(|| {
                // SAFETY: a null pointer stands for no status.
                let pid = unsafe { waitpid(-1, std::ptr::null_mut(), 0) };
                COLLECTED.store(pid, Ordering::SeqCst);
            });
            "waiting".into()
        }
        // What the program was told so far.
        "seen" => format!("{} signals collected {}", SIGNALS.load(Ordering::SeqCst), COLLECTED.load(Ordering::SeqCst)),
        // Ends the child: the program collects this one.
        "end" => {
            let mut child = CHILD.lock().unwrap().take().unwrap();
            child.kill().unwrap();
            while COLLECTED.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            format!("own {}", COLLECTED.load(Ordering::SeqCst) == child.id() as i32)
        }
        // SAFETY: a null pointer stands for no status.
        _ => unsafe { waitpid(-1, std::ptr::null_mut(), WNOHANG | WALL) }.to_string(),
    }
}
