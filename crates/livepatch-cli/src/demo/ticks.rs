//! The streaming connection that has to survive.

use super::http::Connection;
use std::io::BufRead;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Shared {
    received: AtomicU64,
    stop: AtomicBool,
}

/// A client of the service's event stream.
pub(crate) struct Ticks {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), String>>,
}

impl Ticks {
    /// Connects to `GET /ticks`.
    pub(crate) fn start(server: SocketAddr) -> std::io::Result<Self> {
        let stream = Connection::open(server)?.stream("/ticks")?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || follow(stream, &theirs));
        Ok(Self { shared, thread })
    }

    /// Events received so far.
    pub(crate) fn received(&self) -> u64 {
        self.shared.received.load(SeqCst)
    }

    /// Waits until `more` further events came in. False if that does not happen in `limit` or the stream ended.
    pub(crate) fn wait_for(&self, more: u64, limit: Duration) -> bool {
        let (goal, end) = (self.received() + more, Instant::now() + limit);
        while self.received() < goal {
            if Instant::now() > end || self.thread.is_finished() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Ends the client. An error says how the stream was interrupted before.
    pub(crate) fn stop(self) -> Result<u64, String> {
        self.shared.stop.store(true, SeqCst);
        match self.thread.join() {
            Ok(result) => result.map(|()| self.shared.received.load(SeqCst)),
            Err(_) => Err("the stream's thread panicked".into()),
        }
    }
}

/// Reads events; their numbers have to be 0, 1, 2, … without a gap.
fn follow(stream: impl BufRead, shared: &Shared) -> Result<(), String> {
    for line in stream.lines() {
        let line = line.map_err(|error| format!("the stream broke: {error}"))?;
        let Some(number) = line.strip_prefix("data:") else { continue };
        let expected = shared.received.load(SeqCst);
        if number.trim().parse() != Ok(expected) {
            return Err(format!("event {expected} was expected and `{}` came", number.trim()));
        }
        shared.received.store(expected + 1, SeqCst);
        if shared.stop.load(SeqCst) {
            return Ok(());
        }
    }
    Err("the server closed the stream".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_ends_are_errors() {
        let shared = Shared::default();
        let ended = follow("event: tick\ndata: 0\n\ndata: 1\n".as_bytes(), &shared).unwrap_err();
        assert!(ended.contains("closed"), "{ended}");
        assert_eq!(shared.received.load(SeqCst), 2);
        let gap = follow("data: 3\n".as_bytes(), &shared).unwrap_err();
        assert!(gap.contains("event 2"), "{gap}");
    }
}
