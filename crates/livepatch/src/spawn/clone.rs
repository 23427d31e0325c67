//! A process that runs in the program's memory for a while, and waiting for its end there.

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// Stack of each clone. `execve` is the deepest that they do.
const STACK: usize = 64 << 10;
/// How long to wait before it is asked again whether a clone ever came into being.
const ROUND: Duration = Duration::from_secs(5);

/// A clone that runs in the program's memory.
pub(super) struct Clone {
    stack: Stack,
    /// Whether it came into being, so that the descriptor is its own.
    pub runs: AtomicBool,
    pidfd: AtomicI32,
    /// [`HERE`] while it may be in the memory. The kernel stores [`GONE`] when it has left.
    here: AtomicI32,
}

const HERE: i32 = 1;
const GONE: i32 = 0;

/// A stack for a clone, which writes to it while others hold references to what it belongs to.
struct Stack(*mut [u8]);

impl Stack {
    fn new() -> Self {
        Self(Box::into_raw(vec![0_u8; STACK].into_boxed_slice()))
    }

    /// Its 16-byte aligned upper end.
    pub fn top(&self) -> *mut c_void {
        let end = self.0.cast::<u8>().wrapping_add(STACK);
        end.wrapping_sub(end as usize % 16).cast()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: `new` made it out of a box, and no clone is there any more: see `Clone::await_end`.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

impl Clone {
    pub fn new() -> Self {
        let (runs, pidfd, here) = (AtomicBool::new(false), AtomicI32::new(-1), AtomicI32::new(GONE));
        Self { stack: Stack::new(), runs, pidfd, here }
    }

    /// Starts it in this memory, with `argument` for `main`; `flags` besides. Returns its process id when it has left the memory or was killed.
    ///
    /// # Safety
    /// `main` and what it does with `argument` fit to be a process that shares this one's memory. This value and what `argument` leads to are
    /// kept until [`Self::await_end`] is true.
    pub unsafe fn start(
        &self,
        main: extern "C" fn(*mut c_void) -> c_int,
        flags: c_int,
        argument: *mut c_void,
    ) -> Result<i32, Errno> {
        let shared = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::CLONE_CHILD_CLEARTID;
        let (pidfd, no_tls, here) = (self.pidfd.as_ptr(), ptr::null_mut::<c_void>(), self.here.as_ptr());
        self.here.store(HERE, Ordering::Release);
        // SAFETY: `main` gets a stack of its own of `STACK` bytes. The kernel stores a descriptor through the first of the last three pointers
        // and 0 through the last one: both lead to atomics of this value. All are kept as the caller says.
        let pid =
            unsafe { libc::clone(main, self.stack.top(), shared | flags, argument, pidfd, no_tls, here) };
        let pid = Errno::result(pid);
        if pid.is_err() {
            self.here.store(GONE, Ordering::Release);
        }
        pid
    }

    /// Waits until it has left the memory. False if it cannot be told whether it ever came.
    pub fn await_end(&self) -> bool {
        while self.here.load(Ordering::Acquire) != GONE {
            let waited = futex_wait_shared(&self.here, HERE, ROUND);
            if waited == Err(Errno::ETIMEDOUT) && !self.runs.load(Ordering::Acquire) {
                return self.here.load(Ordering::Acquire) == GONE;
            }
        }
        true
    }

    /// Ends it, stopped or not, also if it has left the memory.
    pub fn kill(&self) {
        let pidfd = self.pidfd.load(Ordering::Acquire);
        if self.runs.load(Ordering::Acquire) && pidfd >= 0 {
            let none = ptr::null_mut::<libc::siginfo_t>();
            // SAFETY: numbers and a null pointer, which stands for the signal's usual information.
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGKILL, none, 0) };
        }
    }

    pub fn take_pidfd(&self) -> Option<OwnedFd> {
        let pidfd = self.pidfd.swap(-1, Ordering::AcqRel);
        let is_ours = self.runs.load(Ordering::Acquire) && pidfd >= 0;
        // SAFETY: the kernel made this descriptor for the clone, in the program's table, and it was not taken before.
        is_ours.then(|| unsafe { OwnedFd::from_raw_fd(pidfd) })
    }
}

/// What a word holds that is 0 at first: 0 at the deadline.
pub(super) fn await_change(word: &AtomicI32, deadline: Instant) -> i32 {
    loop {
        let (value, left) =
            (word.load(Ordering::Acquire), deadline.saturating_duration_since(Instant::now()));
        if value != 0 || left.is_zero() {
            return value;
        }
        // It returns early for many reasons; what counts is the value.
        let _ = futex_wait(word, 0, left.min(ROUND));
    }
}

pub(super) fn futex_wait<T>(word: &T, value: u32, limit: Duration) -> Result<(), Errno> {
    futex_wait_with(word, value, limit, libc::FUTEX_PRIVATE_FLAG)
}

/// For a word that the kernel changes.
fn futex_wait_shared(word: &AtomicI32, value: i32, limit: Duration) -> Result<(), Errno> {
    futex_wait_with(word, value.cast_unsigned(), limit, 0)
}

fn futex_wait_with<T>(word: &T, value: u32, limit: Duration, flag: c_int) -> Result<(), Errno> {
    const { assert!(size_of::<T>() == size_of::<u32>()) };
    let seconds = limit.as_secs().cast_signed();
    let limit = libc::timespec { tv_sec: seconds, tv_nsec: limit.subsec_nanos().into() };
    let wait = libc::FUTEX_WAIT | flag;
    // SAFETY: the word is four bytes long and aligned, as all callers pass atomics of that size; the kernel only reads it.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_futex, ptr::from_ref(word), wait, value, &raw const limit)
    })
    .map(drop)
}

pub(super) fn futex_wake<T>(word: &T) {
    let wake = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: waking does not access the word; its address is the key.
    unsafe { libc::syscall(libc::SYS_futex, ptr::from_ref(word), wake, c_int::MAX) };
}
