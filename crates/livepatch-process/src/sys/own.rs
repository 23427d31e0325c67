//! What is about the calling process itself: its priority, its processors, its limits.

use crate::{Tid, log, numbered};
use nix::errno::Errno;
use nix::libc::{self, c_int, c_long, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

/// The user that this process acts as.
pub(crate) fn own_euid() -> u32 {
    // SAFETY: takes nothing and always succeeds.
    unsafe { libc::syscall(libc::SYS_geteuid) as u32 }
}

/// Lets the calling thread's sleeps end when they should, and gives it short turns. It gets no more of a processor than others.
pub(crate) fn be_prompt() {
    /// Nanoseconds by which the kernel may prolong a sleep; 50 µs if nothing is said.
    const SLACK: c_long = 1;
    const NONE: c_long = 0;
    // SAFETY: takes numbers only, and is about the calling thread.
    let exact =
        unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_TIMERSLACK, SLACK, NONE, NONE, NONE) } == 0;
    let short = take_short_turns();
    log::trace(format_args!("the tracing thread's sleeps are exact: {exact}, its turns short: {short}"));
}

/// Gives the calling thread a high priority among ordinary ones, if that is permitted.
pub(crate) fn come_first() {
    // SAFETY: takes numbers only; 0 stands for the calling thread, which has a priority of its own on Linux.
    let set = unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, PREFERRED) } == 0;
    // The value that was set with the turns holds until they are set again.
    let short = take_short_turns();
    log::trace(format_args!("priority of the tracing thread set: {set}, its turns short: {short}"));
}

/// The nice value of threads that others wait for. Only for that time: those that wake up beside them come much later, as the kernel makes up
/// for a time slice more slowly by the ratio of the weights, which is 87.
pub(crate) const PREFERRED: c_int = -20;

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
    log::trace(format_args!("a thread runs at once: {set}"));
}

/// Whether the calling thread has real-time priority.
pub(crate) fn has_real_time() -> bool {
    const THIS_THREAD: c_long = 0;
    // SAFETY: takes a number; 0 stands for the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_getscheduler, THIS_THREAD) == c_long::from(libc::SCHED_FIFO) }
}

/// A moment by the monotonic clock, up to which a thread waits and which others may change: a `struct timespec`.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Moment {
    seconds: AtomicI64,
    nanoseconds: AtomicI64,
}

impl Moment {
    /// So long from now on.
    pub(crate) fn set_after(&self, time: Duration) {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes one timespec.
        unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut now) };
        let nanoseconds = now.tv_nsec + time.as_nanos() as i64;
        self.seconds.store(now.tv_sec + nanoseconds / 1_000_000_000, SeqCst);
        self.nanoseconds.store(nanoseconds % 1_000_000_000, SeqCst);
    }

    /// One that has passed.
    pub(crate) fn set_passed(&self) {
        self.seconds.store(0, SeqCst);
        self.nanoseconds.store(0, SeqCst);
    }
}

/// Waits for the thread whose id is in the word to let go of it, which it never does, as it knows nothing of it. Until the moment has come,
/// the kernel runs that thread with this one's priority. False if there is no such wait.
///
/// After a signal the kernel begins the wait anew, and reads the moment again.
pub(crate) fn wait_for_holder(word: &AtomicU32, until: &Moment) -> bool {
    /// Of `<linux/futex.h>`, since Linux 5.14: with a limit by the monotonic clock.
    const FUTEX_LOCK_PI2: c_long = 13;
    const NOT_USED: c_long = 0;
    let (word, until) = (word.as_ptr(), ptr::from_ref(until));
    // SAFETY: the kernel reads and writes the word, which is atomic, and reads one timespec, which `Moment` is.
    let waited = unsafe { libc::syscall(libc::SYS_futex, word, FUTEX_LOCK_PI2, NOT_USED, until) };
    waited != 0 && Errno::last() == Errno::ETIMEDOUT
}

/// Has a thread of this process begin its system call anew. One that blocks SIGURG takes no notice.
pub(crate) fn nudge(thread: Tid) {
    static READY: Once = Once::new();
    extern "C" fn nothing(_: c_int) {}
    READY.call_once(|| {
        let (handler, none) = (nothing as extern "C" fn(c_int), ptr::null_mut::<libc::sigaction>());
        // SAFETY: all zero is a value of the struct; the handler has the signature that goes with no flags, and touches nothing.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = handler as usize;
            libc::sigaction(libc::SIGURG, &raw const action, none);
        }
    });
    // SAFETY: takes numbers only.
    unsafe { libc::syscall(libc::SYS_tgkill, numbered::own_pid().0, thread.0, libc::SIGURG) };
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
