//! HTTP load on several keep-alive connections, with every response checked.

use super::http::{Connection, Response};
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the driver is doing to the process while a request is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Only the old code may answer.
    Old,
    /// A patch is going in or out: both may answer.
    Between,
    /// Only the new code may answer.
    New,
}

impl Phase {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Old,
            2 => Self::New,
            _ => Self::Between,
        }
    }
}

/// What to send and which two answers there are.
pub(crate) struct Question {
    pub(crate) path: &'static str,
    pub(crate) json: &'static str,
    pub(crate) old: &'static str,
    pub(crate) new: &'static str,
}

/// How the responses turned out so far.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Responses of the old code.
    pub(crate) old: u64,
    /// Responses of the new code.
    pub(crate) new: u64,
    /// Requests without a valid response: connection errors, other status codes, other bodies.
    pub(crate) failed: u64,
    /// Valid responses of the wrong code: new where only old may answer or the other way round.
    pub(crate) wrong: u64,
}

impl Tally {
    pub(crate) fn served(&self) -> u64 {
        self.old + self.new
    }
}

struct Shared {
    question: Question,
    server: SocketAddr,
    phase: AtomicU8,
    /// Counts how often the phase was set: a request that sees two numbers belongs to no single phase.
    turn: AtomicU64,
    stop: AtomicBool,
    tally: Mutex<Tally>,
    in_turn: AtomicU64,
    trouble: Mutex<Option<String>>,
}

/// Load that runs until it is told to stop.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `connections` threads with one connection each.
    pub(crate) fn start(server: SocketAddr, connections: usize, question: Question) -> Self {
        let shared = Arc::new(Shared {
            question,
            server,
            phase: AtomicU8::new(Phase::Old as u8),
            turn: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            tally: Mutex::default(),
            in_turn: AtomicU64::new(0),
            trouble: Mutex::default(),
        });
        let thread = || {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.run())
        };
        let threads = (0..connections).map(|_| thread()).collect();
        Self { shared, threads }
    }

    /// From here on responses are judged by this phase.
    pub(crate) fn enter(&self, phase: Phase) {
        // The turn changes on both sides of the phase: a request that read a phase of another turn is seen as such.
        self.shared.turn.fetch_add(1, SeqCst);
        self.shared.phase.store(phase as u8, SeqCst);
        self.shared.in_turn.store(0, SeqCst);
        self.shared.turn.fetch_add(1, SeqCst);
    }

    /// Waits until `count` requests began and ended in the current phase. False if that does not happen in `limit`.
    pub(crate) fn wait_for(&self, count: u64, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.shared.in_turn.load(SeqCst) < count {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Requests that failed so far.
    pub(crate) fn failed(&self) -> u64 {
        lock(&self.shared.tally).failed
    }

    /// Stops all connections. Returns the counts and what went wrong first.
    pub(crate) fn stop(self) -> (Tally, Option<String>) {
        self.shared.stop.store(true, SeqCst);
        for thread in self.threads {
            if thread.join().is_err() {
                lock(&self.shared.trouble).get_or_insert_with(|| "a load thread panicked".into());
                lock(&self.shared.tally).failed += 1;
            }
        }
        let trouble = lock(&self.shared.trouble).take();
        (lock(&self.shared.tally).clone(), trouble)
    }
}

impl Shared {
    fn run(&self) {
        let mut connection = None;
        while !self.stop.load(SeqCst) {
            let turn = self.turn.load(SeqCst);
            let phase = Phase::from_u8(self.phase.load(SeqCst));
            match self.ask(&mut connection) {
                Ok(response) => {
                    let whole = turn == self.turn.load(SeqCst) && turn.is_multiple_of(2);
                    self.judge(&response, if whole { phase } else { Phase::Between });
                    if whole {
                        self.in_turn.fetch_add(1, SeqCst);
                    }
                }
                Err(error) => {
                    connection = None;
                    self.fail(error.to_string());
                    // A server that is gone must not be asked a million times.
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    fn ask(&self, connection: &mut Option<Connection>) -> std::io::Result<Response> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(Connection::open(self.server)?),
        };
        connection.post(self.question.path, self.question.json)
    }

    fn judge(&self, response: &Response, phase: Phase) {
        let old = response.body == self.question.old.as_bytes();
        let new = response.body == self.question.new.as_bytes();
        if response.status != 200 || !(old || new) {
            let body = String::from_utf8_lossy(&response.body).into_owned();
            return self.fail(format!("the response was {} {body}", response.status));
        }
        let wrong = matches!((phase, old), (Phase::Old, false) | (Phase::New, true));
        let mut tally = lock(&self.tally);
        tally.old += u64::from(old);
        tally.new += u64::from(new);
        tally.wrong += u64::from(wrong);
    }

    fn fail(&self, why: String) {
        lock(&self.tally).failed += 1;
        lock(&self.trouble).get_or_insert(why);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared {
            question: Question { path: "/", json: "{}", old: "old", new: "new" },
            server: "127.0.0.1:1".parse().unwrap(),
            phase: AtomicU8::new(0),
            turn: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            tally: Mutex::default(),
            in_turn: AtomicU64::new(0),
            trouble: Mutex::default(),
        }
    }

    #[test]
    fn responses_are_judged_by_phase() {
        let shared = shared();
        let response = |body: &str| Response { status: 200, body: body.into() };
        shared.judge(&response("old"), Phase::Old);
        shared.judge(&response("new"), Phase::Between);
        assert_eq!(shared.tally.lock().unwrap().clone(), Tally { old: 1, new: 1, failed: 0, wrong: 0 });
        shared.judge(&response("new"), Phase::Old);
        shared.judge(&response("old"), Phase::New);
        shared.judge(&response("neither"), Phase::Between);
        shared.judge(&Response { status: 500, body: "old".into() }, Phase::Old);
        assert_eq!(shared.tally.lock().unwrap().clone(), Tally { old: 2, new: 2, failed: 2, wrong: 2 });
    }

    #[test]
    fn an_unreachable_server_is_a_failure() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = listener.local_addr().unwrap();
        drop(listener);
        let load = Load::start(nobody, 1, shared().question);
        while lock(&load.shared.tally).failed == 0 {
            std::thread::yield_now();
        }
        let (tally, trouble) = load.stop();
        assert!(tally.failed > 0 && tally.served() == 0);
        assert!(trouble.is_some());
    }
}
