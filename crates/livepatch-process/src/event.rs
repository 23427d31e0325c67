//! What [`crate::Seized::pump`] reports.

use crate::Tid;
use livepatch_patch::RunAddr;

/// What happened to a thread while the process ran under tracing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The thread reached one of the registered breakpoints. It is held with its instruction pointer at the breakpoint's
    /// address, the `int3` not executed; the program sees no signal.
    Breakpoint {
        /// The thread.
        tid: Tid,
        /// Where it is held.
        addr: RunAddr,
    },
    /// A thread that [`crate::Seized::request_stop`] was called for is at a canonical stop and held.
    Stopped {
        /// The thread.
        tid: Tid,
    },
    /// The process made a child with a copy of its memory, breakpoints included. The child is held before its first
    /// instruction, until [`crate::Seized::release_forked`].
    Forked {
        /// The child.
        child: Tid,
    },
    /// A new thread. It runs.
    Started {
        /// The thread.
        tid: Tid,
    },
    /// The thread has exited.
    Exited {
        /// The thread.
        tid: Tid,
    },
}
