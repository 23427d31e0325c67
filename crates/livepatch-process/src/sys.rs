//! System calls that no crate wraps the way tracing needs it: signal numbers stay numbers here, because `nix::Signal` has no
//! realtime signals, and a stop of a realtime signal must be passed on like any other.

mod memory;
mod own;
mod registers;
mod signals;
mod wait;

pub(crate) use memory::{MAX_PIECES, MapQuery, process_vm_readv, query_map, same_address_space};
pub(crate) use own::{
    Moment, PREFERRED, be_prompt, bind_to_processor, come_first, current_processor, has_real_time,
    leads_session, nudge, own_euid, raise_descriptor_limit, run_at_once, wait_for_holder,
};
pub(crate) use registers::{get_regs, get_xstate, rseq_area, seccomp_filters, set_regs, set_xstate};
pub(crate) use signals::{
    SignalInfo, get_sigmask, pending_signals, requeue_sent_signal, set_sigmask, signal_bit, signal_info,
};
pub(crate) use wait::{Wait, peek_any, wait_thread};

use crate::fault::{Effect, operation};
use crate::{Pid, Tid, log};
use nix::errno::Errno;
use nix::libc::{self, c_int, c_long, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

type Result<T> = std::result::Result<T, Errno>;

/// The system call itself.
///
/// Calls that few programs make are made by number, here and in the crate that a program patches itself with: each function of
/// the C library that a program imports is a symbol that its loader looks up at every start.
///
/// # Safety
/// `addr` and `data` must be what the request takes.
unsafe fn ptrace(request: libc::c_uint, tid: Tid, addr: *mut c_void, data: *mut c_void) -> Result<c_long> {
    // SAFETY: the caller vouches for the pointers. The C library treats PTRACE_PEEKTEXT, PEEKDATA and PEEKUSER otherwise than
    // the kernel; nobody makes them.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_ptrace, c_long::from(request), c_long::from(tid.0), addr, data)
    })
}

/// ptrace requests that take numbers only.
fn request(request: libc::c_uint, tid: Tid, addr: usize, data: usize) -> Result<()> {
    let name = match request {
        libc::PTRACE_SEIZE => "seize",
        libc::PTRACE_INTERRUPT => "interrupt",
        libc::PTRACE_LISTEN => "listen",
        libc::PTRACE_DETACH => "detach",
        libc::PTRACE_SYSCALL => "cont to a system call",
        _ => "cont",
    };
    operation(Effect::Run, name, || {
        let (addr, data) = (addr as *mut c_void, data as *mut c_void);
        // SAFETY: only called with requests that interpret `addr` and `data` as numbers, so the kernel writes to no memory
        // of this process.
        unsafe { ptrace(request, tid, addr, data) }.map(drop)
    })
}

/// ptrace requests that read or write a buffer of this process.
///
/// # Safety
/// `data` must be valid for the access that the request makes: its type and direction.
unsafe fn request_buffer(request: libc::c_uint, tid: Tid, addr: usize, data: *mut c_void) -> Result<()> {
    let (effect, name) = match request {
        libc::PTRACE_SETREGSET => (Effect::Write, "set vector registers"),
        libc::PTRACE_SETSIGMASK => (Effect::Write, "set signal mask"),
        _ => (Effect::Look, "ask"),
    };
    operation(effect, name, || {
        // SAFETY: the caller vouches for `data`; `addr` is a number in every such request.
        unsafe { ptrace(request, tid, addr as *mut c_void, data) }.map(drop)
    })
}

/// How often a request is made whose failure would leave a thread stopped.
const ATTEMPTS: u32 = 3;

/// Makes a request again that failed for another reason than the thread's end: for those that let a stopped thread go on,
/// which would otherwise stay where it is for as long as this tool lives.
pub(crate) fn insist<T>(request: impl Fn() -> Result<T>) -> Result<T> {
    let mut result = request();
    for _ in 1..ATTEMPTS {
        match result {
            Err(errno) if errno != Errno::ESRCH => {
                log::debug(format_args!(
                    "a request to let a thread go on is made again, error {}",
                    errno as c_int
                ));
                result = request();
            }
            _ => break,
        }
    }
    result
}

/// Attaches without stopping; new threads and children are attached automatically, execve and system-call stops are marked.
pub(crate) fn seize(tid: Tid) -> Result<()> {
    let children = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
    let options = children | libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACESYSGOOD;
    request(libc::PTRACE_SEIZE, tid, 0, options as usize)
}

pub(crate) fn interrupt(tid: Tid) -> Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

pub(crate) fn cont(tid: Tid, signal: c_int) -> Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize)
}

/// Like [`cont`], with a stop at the next entry or exit of a system call.
pub(crate) fn cont_to_syscall(tid: Tid, signal: c_int) -> Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize)
}

/// Leaves a thread in its group stop, with news of its end.
pub(crate) fn listen(tid: Tid) -> Result<()> {
    request(libc::PTRACE_LISTEN, tid, 0, 0)
}

pub(crate) fn detach(tid: Tid, signal: c_int) -> Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize)
}

/// The new thread's id at a clone event.
pub(crate) fn event_tid(tid: Tid) -> Result<Tid> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: PTRACE_GETEVENTMSG writes one unsigned long.
    unsafe { request_buffer(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message).cast())? };
    Ok(Tid(message as i32))
}

/// Whether a thread at a system-call stop is about to make the call, and not behind it.
pub(crate) fn at_syscall_entry(tid: Tid) -> Result<bool> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: PTRACE_GET_SYSCALL_INFO writes at most as many bytes as `addr` says, which is the size of `info`.
    unsafe { request_buffer(libc::PTRACE_GET_SYSCALL_INFO, tid, size, info.as_mut_ptr().cast())? };
    // SAFETY: all zero is a value of this struct of integers, and the kernel writes integers.
    let info = unsafe { info.assume_init() };
    Ok(info.op == libc::PTRACE_SYSCALL_INFO_ENTRY)
}

pub(crate) fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: takes numbers only; on success the kernel returns a descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, c_long::from(pid.0), 0_u64))?;
        Ok(OwnedFd::from_raw_fd(fd as c_int))
    }
}

/// Whether the process has ended: a pidfd becomes readable when the last thread is gone.
pub(crate) fn pidfd_ended(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, as the count says.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready == 1
}
