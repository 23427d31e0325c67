//! Log lines of the engine, for the report.

use livepatch_apply::log::{self, Level};
use std::fmt::Arguments;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Lines that are kept.
const MOST: usize = 1000;

static STARTED: OnceLock<Instant> = OnceLock::new();
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps what the engine says from here on.
pub(super) fn start() {
    STARTED.get_or_init(Instant::now);
    log::to(keep);
}

/// What was said so far.
pub(super) fn lines() -> Vec<String> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn keep(level: Level, text: Arguments<'_>) {
    let level = match level {
        Level::Warn => "WARN",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
        Level::Trace => return,
    };
    let micros = STARTED.get_or_init(Instant::now).elapsed().as_micros();
    let line = format!("{}.{} ms {level}: {text}", micros / 1000, micros % 1000 / 100);
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    if lines.len() < MOST {
        lines.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_becomes_lines() {
        start();
        log::debug(format_args!("not quiescent: {} inside", 3));
        log::trace(format_args!("too fine"));
        let lines = lines();
        assert!(lines.iter().any(|line| line.ends_with(" ms DEBUG: not quiescent: 3 inside")), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("too fine")), "{lines:?}");
    }
}
