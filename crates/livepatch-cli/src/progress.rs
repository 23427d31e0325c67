//! A line on standard error for work that takes longer than a second.

use indicatif::{ProgressBar, ProgressStyle};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Work shorter than this passes without a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows what is being done until it is dropped. On anything but a terminal it shows nothing.
pub struct Progress {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins a piece of work.
    pub fn start(what: impl Into<String>) -> Self {
        let (end, ended) = channel();
        let what = what.into();
        let thread = std::thread::spawn(move || show(what, &ended));
        Self { end: Some(end), thread: Some(thread) }
    }
}

fn show(what: String, ended: &Receiver<()>) {
    if !matches!(ended.recv_timeout(PATIENCE), Err(RecvTimeoutError::Timeout)) {
        return;
    }
    let bar = ProgressBar::new_spinner().with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    // Both a message and the end of the channel mean that the work is over.
    let _ = ended.recv();
    bar.finish_and_clear();
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // The thread only draws: if it panicked there is nothing to undo.
            let _ = thread.join();
        }
    }
}
