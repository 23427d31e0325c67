//! System calls that no crate wraps the way tracing needs it: signal numbers stay numbers here, because `nix::Signal` has no
//! realtime signals, and a stop of a realtime signal must be passed on like any other.

use crate::fault::{Effect, operation};
use crate::log;
use crate::numbered;
use crate::regs::{Regs, XState};
use crate::{Pid, Tid};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use nix::libc::{self, c_int, c_long, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

type Result<T> = std::result::Result<T, Errno>;

/// `NT_X86_XSTATE` of `<linux/elf.h>`.
const NT_X86_XSTATE: usize = 0x202;
/// Bytes of a kernel `sigset_t`, which ptrace wants to hear.
const KERNEL_SIGSET_BYTES: usize = 8;
/// `KCMP_VM` of `<linux/kcmp.h>`.
const KCMP_VM: c_int = 1;

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
    /// `PTRACE_EVENT_FORK` or `PTRACE_EVENT_VFORK`.
    Fork,
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
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => Self::Fork,
            libc::PTRACE_EVENT_EXEC => Self::Exec,
            _ => Self::Other,
        }
    }
}

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

/// The thread's seccomp filters as the kernel's classic BPF programs, oldest first.
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN or with a filter on this process, `EINVAL` in strict mode or on a kernel that does not tell.
pub(crate) fn seccomp_filters(tid: Tid) -> Result<Vec<Vec<libc::sock_filter>>> {
    const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
    let mut filters = Vec::new();
    loop {
        let index = filters.len() as *mut c_void;
        let none = ptr::null_mut::<c_void>();
        // SAFETY: with a null buffer the request writes nothing; it returns the number of steps.
        let count = match unsafe { ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, none) } {
            Ok(count) => count as usize,
            // There is no filter of that number.
            Err(Errno::ENOENT) if !filters.is_empty() => return Ok(filters),
            Err(errno) => return Err(errno),
        };
        let mut steps = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; count];
        let buffer = steps.as_mut_ptr().cast::<c_void>();
        // SAFETY: the request writes as many steps as it told just before: filters are numbered from the oldest, and are
        // never changed or removed, only added.
        unsafe { ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, buffer) }?;
        filters.push(steps);
    }
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

pub(crate) fn get_regs(tid: Tid) -> Result<Regs> {
    let mut regs = MaybeUninit::<libc::user_regs_struct>::zeroed();
    operation(Effect::Look, "read registers", || {
        // SAFETY: PTRACE_GETREGS writes one struct of integers.
        unsafe {
            ptrace(libc::PTRACE_GETREGS, tid, ptr::null_mut(), regs.as_mut_ptr().cast())?;
            Ok(Regs(regs.assume_init()))
        }
    })
}

pub(crate) fn set_regs(tid: Tid, regs: &Regs) -> Result<()> {
    let data = (&raw const regs.0).cast_mut().cast();
    operation(Effect::Write, "set registers", || {
        // SAFETY: PTRACE_SETREGS only reads one struct of that type.
        unsafe { ptrace(libc::PTRACE_SETREGS, tid, ptr::null_mut(), data) }.map(drop)
    })
}

pub(crate) fn get_xstate(tid: Tid) -> Result<XState> {
    // AVX-512 state takes 2.7 KB and AMX 11 KB; a later processor's may be larger, hence the loop.
    let mut buffer = vec![0_u8; 16 << 10];
    loop {
        let mut iovec = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: the iovec describes `buffer`, which outlives the call; the kernel writes at most `iov_len` bytes there
        // and the length that it wrote into the iovec.
        unsafe { request_buffer(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, (&raw mut iovec).cast())? };
        if iovec.iov_len < buffer.len() {
            buffer.truncate(iovec.iov_len);
            return Ok(XState(buffer));
        }
        buffer.resize(buffer.len() * 2, 0);
    }
}

pub(crate) fn set_xstate(tid: Tid, state: &XState) -> Result<()> {
    let mut iovec = libc::iovec { iov_base: state.0.as_ptr().cast_mut().cast(), iov_len: state.0.len() };
    // SAFETY: PTRACE_SETREGSET only reads from the buffer that the iovec describes, which outlives the call.
    unsafe { request_buffer(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, (&raw mut iovec).cast()) }
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

/// `struct ptrace_rseq_configuration` of `<linux/ptrace.h>`.
#[repr(C)]
#[derive(Default)]
struct RseqConfiguration {
    rseq_abi_pointer: u64,
    rseq_abi_size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

/// The address of the thread's registered `struct rseq`, `None` without one or on a kernel that cannot tell.
pub(crate) fn rseq_area(tid: Tid) -> Result<Option<RunAddr>> {
    const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    let mut conf = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>();
    // SAFETY: the request writes at most `addr` bytes, which is the size of `conf`, a struct of integers.
    match unsafe { request_buffer(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, (&raw mut conf).cast()) } {
        Ok(()) => Ok((conf.rseq_abi_pointer != 0).then_some(RunAddr(conf.rseq_abi_pointer))),
        Err(Errno::EIO | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno),
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

pub(crate) fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: takes numbers only; on success the kernel returns a descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, c_long::from(pid.0), 0_u64))?;
        Ok(OwnedFd::from_raw_fd(fd as c_int))
    }
}

/// The user that this process acts as.
pub(crate) fn own_euid() -> u32 {
    // SAFETY: takes nothing and always succeeds.
    unsafe { libc::syscall(libc::SYS_geteuid) as u32 }
}

/// Gives the calling thread the highest priority among ordinary ones, if that is permitted, and lets its sleeps end when they should.
pub(crate) fn prefer_this_thread() {
    const HIGHEST: c_int = -20;
    /// Nanoseconds by which the kernel may prolong a sleep; 50 µs if nothing is said.
    const SLACK: c_long = 1;
    const NONE: c_long = 0;
    // SAFETY: takes numbers only, and is about the calling thread.
    let exact =
        unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_TIMERSLACK, SLACK, NONE, NONE, NONE) } == 0;
    // SAFETY: takes numbers only; 0 stands for the calling thread, which has a priority of its own on Linux.
    let set = unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, HIGHEST) } == 0;
    let short = take_short_turns();
    log::trace(format_args!(
        "priority of the tracing thread set: {set}, its sleeps exact: {exact}, its turns short: {short}"
    ));
}

/// How the kernel is to share processors with the calling thread (`struct sched_attr`, version 0; sched_setattr(2)).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Scheduling {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

fn schedule(how: Scheduling) -> bool {
    const THIS_THREAD: c_long = 0;
    const NO_FLAGS: c_long = 0;
    let how = Scheduling { size: size_of::<Scheduling>() as u32, ..how };
    // SAFETY: reads as many bytes as `size` says, all of which `how` has.
    unsafe { libc::syscall(libc::SYS_sched_setattr, THIS_THREAD, &raw const how, NO_FLAGS) == 0 }
}

/// Lets the calling thread have the processor in short turns, the shortest that Linux grants: the shorter a thread's turn, the sooner
/// it comes when it wakes up (since Linux 6.12; older ones take no notice). The nice value stays.
fn take_short_turns() -> bool {
    const TURN: u64 = 100_000;
    const NICE_OF_KERNEL: c_long = 20;
    // SAFETY: takes numbers only; 0 stands for the calling thread. The system call returns 20 less the nice value.
    let nice = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    let Ok(nice) = i32::try_from(NICE_OF_KERNEL - nice) else { return false };
    schedule(Scheduling { policy: libc::SCHED_OTHER as u32, nice, runtime: TURN, ..Scheduling::default() })
}

/// Lets the calling thread have the processor as soon as it wakes up, before all ordinary threads, if that is permitted. For threads
/// that run for microseconds.
pub(crate) fn run_at_once() {
    const LOWEST: u32 = 1;
    let policy = libc::SCHED_FIFO as u32;
    let set =
        schedule(Scheduling { policy, priority: LOWEST, ..Scheduling::default() }) || take_short_turns();
    log::trace(format_args!("a visiting thread runs at once: {set}"));
}

/// Whether this process is the first one of its session.
pub(crate) fn leads_session() -> bool {
    // SAFETY: takes a number; 0 stands for the calling process.
    let session = unsafe { libc::syscall(libc::SYS_getsid, 0) };
    session == c_long::from(numbered::own_pid().0)
}

/// Binds the calling thread to one processor, and returns when it runs there. False if it may not.
pub(crate) fn bind_to_processor(processor: usize) -> bool {
    const BITS: usize = u64::BITS as usize;
    let mut set = vec![0_u64; processor / BITS + 1];
    set[processor / BITS] = 1 << (processor % BITS);
    let (len, set) = (size_of_val(&set[..]), set.as_ptr());
    // SAFETY: reads as many bytes as the length says, all of which `set` has; 0 stands for the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, len, set) == 0 }
}

/// The processor that the calling thread runs on at this moment.
pub(crate) fn current_processor() -> Option<usize> {
    let mut processor: libc::c_uint = 0;
    let none = ptr::null_mut::<c_void>();
    // SAFETY: writes one number, and nothing through the null pointers.
    let got = unsafe { libc::syscall(libc::SYS_getcpu, &raw mut processor, none, none) };
    (got == 0).then_some(processor as usize)
}

/// Lets this process open up to so many files, or as many as it may. Returns how many it can open now.
pub(crate) fn raise_descriptor_limit(wanted: u64) -> u64 {
    const FILES: c_long = libc::RLIMIT_NOFILE as c_long;
    const THIS_PROCESS: c_long = 0;
    let (unchanged, not_read) = (ptr::null::<libc::rlimit64>(), ptr::null_mut::<libc::rlimit64>());
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one rlimit64, and reads none by way of the null pointer.
    if unsafe { libc::syscall(libc::SYS_prlimit64, THIS_PROCESS, FILES, unchanged, &raw mut limit) } != 0 {
        return 0;
    }
    let raised = libc::rlimit64 { rlim_cur: wanted.min(limit.rlim_max), ..limit };
    if raised.rlim_cur <= limit.rlim_cur {
        return limit.rlim_cur;
    }
    // SAFETY: reads one rlimit64, and writes none by way of the null pointer.
    let set = unsafe { libc::syscall(libc::SYS_prlimit64, THIS_PROCESS, FILES, &raw const raised, not_read) };
    if set == 0 { raised.rlim_cur } else { limit.rlim_cur }
}

/// Whether the process has ended: a pidfd becomes readable when the last thread is gone.
pub(crate) fn pidfd_ended(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, as the count says.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready == 1
}

/// Whether both processes run in one address space.
pub(crate) fn same_address_space(a: Pid, b: Pid) -> Result<bool> {
    // SAFETY: kcmp takes numbers only.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            c_long::from(a.0),
            c_long::from(b.0),
            c_long::from(KCMP_VM),
            0_u64,
            0_u64,
        )
    };
    Errno::result(order).map(|order| order == 0)
}

/// `struct procmap_query` of `<linux/fs.h>` (Linux 6.11).
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct MapQuery {
    size: u64,
    flags: u64,
    address: u64,
    pub start: u64,
    pub end: u64,
    /// `PROCMAP_QUERY_VMA_*`
    pub allowed: u64,
    page_size: u64,
    pub offset: u64,
    pub inode: u64,
    pub device: (u32, u32),
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

/// Asks an open `/proc/PID/maps` for the mapping that holds an address. Returns it with its name.
///
/// # Errors
/// `ENOENT` if there is no such mapping, `ENOTTY` if the kernel is older.
pub(crate) fn query_map(maps: BorrowedFd<'_>, address: RunAddr) -> Result<(MapQuery, Vec<u8>)> {
    let mut name = vec![0_u8; libc::PATH_MAX as usize];
    let mut query = MapQuery {
        size: size_of::<MapQuery>() as u64,
        address: address.0,
        name_size: name.len() as u32,
        name: name.as_mut_ptr() as u64,
        ..MapQuery::default()
    };
    let request = nix::request_code_readwrite!(b'f', 17, size_of::<MapQuery>());
    // SAFETY: the kernel writes to the structure, whose size it is told, and at most `name_size` bytes to the name; both
    // live until the call returns. No build-id is asked for.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_ioctl, c_long::from(maps.as_raw_fd()), request, &raw mut query)
    })?;
    // The size includes the final NUL; it is 0 without a name.
    name.truncate((query.name_size as usize).saturating_sub(1));
    Ok((query, name))
}

/// Reads many pieces at once; returns the number of bytes read in all, in order.
pub(crate) fn process_vm_readv(tid: Tid, pieces: &mut [(RunAddr, &mut [u8])]) -> Result<usize> {
    let local: Vec<_> = pieces
        .iter_mut()
        .map(|(_, buffer)| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    let remote: Vec<_> = pieces
        .iter()
        .map(|(addr, buffer)| libc::iovec { iov_base: addr.0 as *mut c_void, iov_len: buffer.len() })
        .collect();
    operation(Effect::Look, "read memory", || {
        let (local_count, remote_count) = (local.len() as libc::c_ulong, remote.len() as libc::c_ulong);
        // SAFETY: every local iovec describes a buffer that is borrowed for the duration of this call; remote addresses
        // are interpreted in the other process only.
        let got = unsafe {
            let (local, remote, no_flags): (_, _, libc::c_ulong) = (local.as_ptr(), remote.as_ptr(), 0);
            libc::syscall(
                libc::SYS_process_vm_readv,
                tid.0,
                local,
                local_count,
                remote,
                remote_count,
                no_flags,
            )
        };
        Errno::result(got).map(|got| got as usize)
    })
}

/// The most pieces that one [`process_vm_readv`] takes (`UIO_MAXIOV`).
pub(crate) const MAX_PIECES: usize = 1024;

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
        assert_eq!(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_VFORK), Wait::Fork);
        assert_eq!(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXEC), Wait::Exec);
        assert_eq!(stopped(libc::SIGTRAP | 0x80, 0), Wait::Syscall);
        assert_eq!(stopped(libc::SIGTRAP, 0), Wait::Signal(libc::SIGTRAP));
        assert_eq!(stopped(64, 0), Wait::Signal(64));
    }

    #[test]
    fn an_address_space_equals_itself() {
        let own = Pid(std::process::id() as i32);
        assert_eq!(same_address_space(own, own), Ok(true));
    }
}
