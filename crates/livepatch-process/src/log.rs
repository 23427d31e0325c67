//! What the engine says while it works, for whoever wants to know.
//!
//! A program that patches itself holds the engine, and its loader fills in every pointer of every table at every start. So this is a
//! function and a text, and not the tables that a logging library keeps for each place.

use std::fmt::Arguments;
use std::sync::OnceLock;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something is not as it should be.
    Warn,
    /// A decision that shows outside.
    Info,
    /// For whoever looks for the cause of something.
    Debug,
    /// Everything.
    Trace,
}

/// Receives what is said, on the thread that says it.
pub type Sink = fn(Level, Arguments<'_>);

static SINK: OnceLock<Sink> = OnceLock::new();

/// Has everything from here on received by a sink. The first one stays.
pub fn to(sink: Sink) {
    let _ = SINK.set(sink);
}

/// Says something that is not as it should be.
pub fn warn(text: Arguments<'_>) {
    say(Level::Warn, text);
}

/// Says what was decided.
pub fn info(text: Arguments<'_>) {
    say(Level::Info, text);
}

/// Says a detail.
pub fn debug(text: Arguments<'_>) {
    say(Level::Debug, text);
}

/// Says the least detail.
pub fn trace(text: Arguments<'_>) {
    say(Level::Trace, text);
}

fn say(level: Level, text: Arguments<'_>) {
    if let Some(sink) = SINK.get() {
        sink(level, text);
    }
}
