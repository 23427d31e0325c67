//! Events of traced threads.

use super::Result;
use crate::Tid;
use nix::errno::Errno;
use nix::libc::{self, c_int};
use std::mem::MaybeUninit;
use std::ptr;

/// A wait status as the kernel reports it, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The thread is gone.
    Gone,
    /// `PTRACE_EVENT_STOP` outside a group stop: interrupted, newly attached, or told that a group stop ended.
    Trap,
    /// `PTRACE_EVENT_STOP` in a group stop.
    GroupStop,
    /// `PTRACE_EVENT_CLONE`.
    Clone,
    /// `PTRACE_EVENT_FORK`.
    Fork,
    /// `PTRACE_EVENT_VFORK`: the thread waits until the child has left the memory.
    Vfork,
    /// `PTRACE_EVENT_EXEC`.
    Exec,
    /// Entry or exit of a system call under `PTRACE_SYSCALL`.
    Syscall,
    /// About to deliver this signal.
    Signal(c_int),
    /// An event that is not enabled; the thread is to be resumed.
    Other,
}

impl Wait {
    fn from_status(status: c_int) -> Self {
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            return Self::Gone;
        }
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            0 if signal == libc::SIGTRAP | 0x80 => Self::Syscall,
            0 => Self::Signal(signal),
            libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Self::Trap,
            libc::PTRACE_EVENT_STOP => Self::GroupStop,
            libc::PTRACE_EVENT_CLONE => Self::Clone,
            libc::PTRACE_EVENT_FORK => Self::Fork,
            libc::PTRACE_EVENT_VFORK => Self::Vfork,
            libc::PTRACE_EVENT_EXEC => Self::Exec,
            _ => Self::Other,
        }
    }
}

/// Collects the next event of one thread that the calling thread traces, without waiting.
///
/// With `leave_signals` a stop for a signal is told but not collected; resuming the thread does away with it. A signal whose stop
/// was collected is lost if the tool dies before it passes the signal on; else the kernel delivers it then.
pub(crate) fn wait_thread(tid: Tid, leave_signals: bool) -> Result<Option<Wait>> {
    if leave_signals {
        match peek(libc::P_PID, tid.0 as libc::id_t)? {
            Some((_, wait @ Wait::Signal(_))) => return Ok(Some(wait)),
            Some(_) => {}
            None => return Ok(None),
        }
    }
    let mut status: c_int = 0;
    let flags = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    let no_usage = ptr::null_mut::<libc::rusage>();
    // SAFETY: wait4 writes one int, and nothing through the null pointer.
    let got = unsafe { libc::syscall(libc::SYS_wait4, tid.0, &raw mut status, flags, no_usage) };
    match Errno::result(got)? {
        0 => Ok(None),
        _ => Ok(Some(Wait::from_status(status))),
    }
}

/// The next event of the threads that are meant, without collecting it.
fn peek(which: libc::idtype_t, id: libc::id_t) -> Result<Option<(Tid, Wait)>> {
    let flags =
        libc::WNOHANG | libc::WNOWAIT | libc::__WALL | libc::__WNOTHREAD | libc::WEXITED | libc::WSTOPPED;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: waitid writes one siginfo_t; all zero is a value of it and stands for "nothing" (si_pid 0). The accessors read
    // integers of the union inside, for which every bit pattern is a value.
    let (code, tid, status) = unsafe {
        let no_usage = ptr::null_mut::<libc::rusage>();
        Errno::result(libc::syscall(libc::SYS_waitid, which, id, info.as_mut_ptr(), flags, no_usage))?;
        let info = info.assume_init();
        (info.si_code, info.si_pid(), info.si_status())
    };
    // As in a status of waitpid: the low byte says that it is a stop, the rest is the signal and the event.
    let stopped = matches!(code, libc::CLD_TRAPPED | libc::CLD_STOPPED);
    let wait = if stopped { Wait::from_status(status << 8 | 0x7f) } else { Wait::Gone };
    Ok((tid != 0).then_some((Tid(tid), wait)))
}

/// A thread or child of the calling thread that has an event, without collecting it. The tool's own children show up here
/// too and hide what lies behind them.
pub(crate) fn peek_any() -> Result<Option<Tid>> {
    match peek(libc::P_ALL, 0) {
        Ok(found) => Ok(found.map(|(tid, _)| tid)),
        Err(Errno::ECHILD) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses() {
        let stopped = |signal: c_int, event: c_int| Wait::from_status((event << 16) | (signal << 8) | 0x7f);
        assert_eq!(Wait::from_status(0x0300), Wait::Gone);
        assert_eq!(Wait::from_status(9), Wait::Gone);
        assert_eq!(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_STOP), Wait::Trap);
        assert_eq!(stopped(libc::SIGSTOP, libc::PTRACE_EVENT_STOP), Wait::GroupStop);
        assert_eq!(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_CLONE), Wait::Clone);
        assert_eq!(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_FORK), Wait::Fork);
        assert_eq!(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_VFORK), Wait::Vfork);
        assert_eq!(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXEC), Wait::Exec);
        assert_eq!(stopped(libc::SIGTRAP | 0x80, 0), Wait::Syscall);
        assert_eq!(stopped(libc::SIGTRAP, 0), Wait::Signal(libc::SIGTRAP));
        assert_eq!(stopped(64, 0), Wait::Signal(64));
    }
}
