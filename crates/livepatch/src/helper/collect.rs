//! Log lines of the engine, for the report.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Lines that are kept.
const MOST: usize = 1000;

/// Keeps what the engine says.
#[derive(Clone, Debug)]
pub(super) struct Collector {
    started: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    /// Receives the events of all threads from here on.
    pub fn install() -> Self {
        let collector = Self { started: Instant::now(), lines: Arc::default() };
        // It fails only if there is one already, and this process has just begun.
        let _ = tracing::subscriber::set_global_default(collector.clone());
        collector
    }

    /// What was said so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let millis = self.started.elapsed().as_secs_f64() * 1000.0;
        let text = format!("{millis:.1} ms {}: {}{}", event.metadata().level(), line.message, line.fields);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < MOST {
            lines.push(text);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_lines() {
        let collector = Collector { started: Instant::now(), lines: Arc::default() };
        tracing::subscriber::with_default(collector.clone(), || {
            tracing::debug!(threads = 3, "not quiescent");
            tracing::trace!("too fine");
        });
        let lines = collector.lines();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with("ms DEBUG: not quiescent threads=3"), "{lines:?}");
    }
}
