//! `-v`: what the libraries trace, on standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Once shows steps, twice details, three times everything. `LIVEPATCH_LOG` (a filter such as
/// `livepatch_apply=debug`) goes before the count.
pub fn init(verbosity: u8) {
    let level = match verbosity {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("LIVEPATCH_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    // A subscriber that is set already (the library inside another program) stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()),
        )
        .without_time()
        // They would be written to the same place, and end the program in the middle of a transition if that is full or closed.
        .log_internal_errors(false)
        .try_init();
    #[cfg(feature = "apply")]
    livepatch_apply::log::to(forward);
}

/// What the engine says, under the name that filters know it by.
#[cfg(feature = "apply")]
fn forward(level: livepatch_apply::log::Level, text: std::fmt::Arguments<'_>) {
    use livepatch_apply::log::Level;
    match level {
        Level::Warn => tracing::warn!(target: "livepatch_apply", "{text}"),
        Level::Info => tracing::info!(target: "livepatch_apply", "{text}"),
        Level::Debug => tracing::debug!(target: "livepatch_apply", "{text}"),
        Level::Trace => tracing::trace!(target: "livepatch_apply", "{text}"),
    }
}
