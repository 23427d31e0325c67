//! Signals and signal masks of traced threads.

use super::{Result, ptrace, request_buffer};
use crate::Tid;
use crate::fault::{Effect, operation};
use livepatch_patch::RunAddr;
use nix::libc::{self, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

/// Bytes of a kernel `sigset_t`, which ptrace wants to hear.
const KERNEL_SIGSET_BYTES: usize = 8;

/// What is known of a signal that is about to be delivered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SignalInfo(libc::siginfo_t);

impl SignalInfo {
    pub fn signal(&self) -> c_int {
        self.0.si_signo
    }

    /// Whether the kernel raised it (a fault, a timer, …); else a process sent it.
    pub fn is_from_kernel(&self) -> bool {
        self.0.si_code > 0
    }

    /// The address of a fault.
    pub fn addr(&self) -> RunAddr {
        // SAFETY: reads a pointer-sized field of the union inside; the struct was initialised in full by the kernel and
        // every bit pattern is a pointer value. It is not dereferenced.
        RunAddr(unsafe { self.0.si_addr() } as u64)
    }
}

pub(crate) fn signal_info(tid: Tid) -> Result<SignalInfo> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    operation(Effect::Look, "read signal", || {
        // SAFETY: PTRACE_GETSIGINFO writes one siginfo_t, of which all zero is a value.
        unsafe {
            ptrace(libc::PTRACE_GETSIGINFO, tid, ptr::null_mut(), info.as_mut_ptr().cast())?;
            Ok(SignalInfo(info.assume_init()))
        }
    })
}

/// At a stop for a signal: what to send the thread on with so that nothing is delivered now. A signal that a process sent is
/// blocked, so that the kernel puts it back into its queue, information and all; one from the kernel is a fault of what the
/// thread does, and is dropped.
pub(crate) fn requeue_sent_signal(tid: Tid) -> Result<c_int> {
    let info = signal_info(tid)?;
    if info.is_from_kernel() {
        return Ok(0);
    }
    set_sigmask(tid, get_sigmask(tid)? | signal_bit(info.signal()))?;
    Ok(info.signal())
}

/// The signal's bit in a kernel signal mask.
pub(crate) fn signal_bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

/// The thread's own pending signals, up to a number that no thread has in practice. They stay pending.
pub(crate) fn pending_signals(tid: Tid) -> Result<Vec<SignalInfo>> {
    const MOST: usize = 64;
    let arguments = libc::ptrace_peeksiginfo_args { off: 0, flags: 0, nr: MOST as i32 };
    let mut infos = [MaybeUninit::<libc::siginfo_t>::zeroed(); MOST];
    // SAFETY: PTRACE_PEEKSIGINFO reads its arguments from `addr`, writes at most `nr` siginfo_t to `data`, which has room for
    // as many, and returns their number; all zero is a value of siginfo_t.
    unsafe {
        let arguments = (&raw const arguments).cast_mut().cast::<c_void>();
        let got = ptrace(libc::PTRACE_PEEKSIGINFO, tid, arguments, infos.as_mut_ptr().cast())? as usize;
        Ok(infos[..got.min(MOST)].iter().map(|info| SignalInfo(info.assume_init())).collect())
    }
}

pub(crate) fn get_sigmask(tid: Tid) -> Result<u64> {
    let mut mask = 0_u64;
    // SAFETY: PTRACE_GETSIGMASK writes as many bytes as `addr` says, which is the size of `mask`.
    unsafe { request_buffer(libc::PTRACE_GETSIGMASK, tid, KERNEL_SIGSET_BYTES, (&raw mut mask).cast())? };
    Ok(mask)
}

pub(crate) fn set_sigmask(tid: Tid, mut mask: u64) -> Result<()> {
    // SAFETY: PTRACE_SETSIGMASK reads as many bytes as `addr` says, which is the size of `mask`.
    unsafe { request_buffer(libc::PTRACE_SETSIGMASK, tid, KERNEL_SIGSET_BYTES, (&raw mut mask).cast()) }
}
