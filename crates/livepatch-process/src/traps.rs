//! SIGTRAPs of the program's own while the process has lost its action for that signal.
//!
//! When a thread executes a breakpoint with SIGTRAP blocked, the kernel sets the action of SIGTRAP back to the default, for all threads
//! (`force_sig_info_to_task` in the kernel's `kernel/signal.c`). The breakpoint's signal ends here and does no harm. But a SIGTRAP that
//! the program raises before the action is put in place again would end it. So it waits: its thread stays at the stop that tells
//! of the signal. If the tool dies meanwhile, the signal is lost and the program goes on.

use crate::sys::{Wait, signal_bit};
use crate::trace::{State, Tracees};
use crate::{Seized, Tid};
use nix::libc;

impl Tracees {
    /// Whether a thread that is about to get a SIGTRAP of the program's own is to wait, because it would be the end of the process.
    pub fn has_to_wait(&mut self, tid: Tid) -> bool {
        let caught = |set: u64| set & signal_bit(libc::SIGTRAP) != 0;
        let waits = self.own_traps.contains(&tid)
            // In doubt the process gets its signal.
            || self.hold_own_traps && self.process.status().is_ok_and(|status| !caught(status.caught));
        if waits && let Some(thread) = self.threads.get_mut(&tid) {
            thread.state = State::Raw(Wait::Signal(libc::SIGTRAP));
            self.own_traps.insert(tid);
        }
        waits
    }

    /// Delivers the signals that wait.
    pub fn let_go_of_own_traps(&mut self) {
        for tid in std::mem::take(&mut self.own_traps) {
            let Some(thread) = self.threads.get_mut(&tid) else { continue };
            if thread.state == State::Raw(Wait::Signal(libc::SIGTRAP)) {
                thread.state = State::Running;
                // If the thread is beyond reach now, the next request about the process says so.
                let _ = self.send_on(tid, libc::SIGTRAP);
            }
        }
    }
}

impl Seized {
    /// Whether SIGTRAPs of the program's own wait while the process has no action for them. Those that wait are delivered when this
    /// ends, and with every [`Seized::deliver_own_traps`].
    pub fn hold_own_traps(&mut self, hold: bool) {
        self.tracees.hold_own_traps = hold;
        if !hold {
            self.tracees.let_go_of_own_traps();
        }
    }

    /// Whether such a signal waits.
    pub fn has_own_traps(&self) -> bool {
        !self.tracees.own_traps.is_empty()
    }

    /// Delivers the signals that wait: the action is in place again.
    pub fn deliver_own_traps(&mut self) {
        self.tracees.let_go_of_own_traps();
    }
}
