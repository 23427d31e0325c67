//! A process that runs in the program's memory for a while, and waiting for its end there.

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// Stack of each clone. `execve` is the deepest that they do.
const STACK: usize = 64 << 10;
/// How long to wait before it is asked again whether a clone ever came into being.
const ROUND: Duration = Duration::from_secs(5);

/// A clone that runs in the program's memory.
pub(super) struct Clone {
    stack: Stack,
    /// [`NONE`] until the kernel is about to make it.
    pidfd: AtomicI32,
    /// [`UNBORN`] at first; the kernel stores its process id before it runs anything, and [`GONE`] when it has left the memory, killed or
    /// not. So the descriptor is its own where this is not `UNBORN`.
    here: AtomicI32,
}

const UNBORN: i32 = -1;
const GONE: i32 = 0;
/// No descriptor.
const NONE: i32 = -1;

/// A stack for a clone, which writes to it while others hold references to what it belongs to. It is mapped: where the program may
/// have no more memory an allocation would end it.
struct Stack(*mut c_void);

impl Stack {
    fn new() -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        let (anywhere, no_file, offset) = (ptr::null_mut::<c_void>(), -1, 0);
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe { libc::syscall(libc::SYS_mmap, anywhere, STACK, access, kind, no_file, offset) };
        Ok(Self(Errno::result(start)? as *mut c_void))
    }

    /// Its upper end, aligned to a page.
    pub fn top(&self) -> *mut c_void {
        self.0.wrapping_byte_add(STACK)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it, and no clone is there any more: see `Clone::await_end`.
        unsafe { libc::syscall(libc::SYS_munmap, self.0, STACK) };
    }
}

impl Clone {
    /// # Errors
    /// There is no memory for its stack.
    pub fn new() -> io::Result<Self> {
        Ok(Self { stack: Stack::new()?, pidfd: AtomicI32::new(NONE), here: AtomicI32::new(UNBORN) })
    }

    /// Starts it, once, in this memory, with `argument` for `main`; `flags` besides. Returns its process id when it has left the memory or was killed.
    ///
    /// A debugger at the program is not told: those that follow what a process starts hold both for as long as they like.
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
        let told = libc::CLONE_PIDFD | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
        let shared = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_UNTRACED | told;
        let (pidfd, no_tls, here) = (self.pidfd.as_ptr(), ptr::null_mut::<c_void>(), self.here.as_ptr());
        // SAFETY: `main` gets a stack of its own of `STACK` bytes. The kernel stores a descriptor through the first of the last three pointers,
        // an id and then 0 through the last one: both lead to atomics of this value. All are kept as the caller says.
        let pid =
            unsafe { libc::clone(main, self.stack.top(), shared | flags, argument, pidfd, no_tls, here) };
        let pid = Errno::result(pid);
        if pid.is_err() {
            // The kernel may have chosen a number and taken it back.
            self.pidfd.store(NONE, Ordering::Release);
        }
        pid
    }

    /// Its process id while it is in the memory.
    pub fn id(&self) -> i32 {
        self.here.load(Ordering::Acquire)
    }

    /// Waits until it has left the memory. False if it cannot be told whether it ever came. Whoever calls [`Self::start`] has returned or ended.
    pub fn await_end(&self) -> bool {
        loop {
            let here = self.here.load(Ordering::Acquire);
            // The kernel stores the descriptor's number before it decides whether there will be a clone.
            if here == GONE || (here == UNBORN && self.pidfd.load(Ordering::Acquire) == NONE) {
                return true;
            }
            let waited = futex_wait_shared(&self.here, here, ROUND);
            if here == UNBORN && waited == Err(Errno::ETIMEDOUT) && self.id() == UNBORN {
                return false;
            }
        }
    }

    /// Ends it, stopped or not, also if it has left the memory.
    pub fn kill(&self) {
        if self.id() == UNBORN {
            return;
        }
        let pidfd = self.pidfd.load(Ordering::Acquire);
        if pidfd != NONE {
            let none = ptr::null_mut::<libc::siginfo_t>();
            // SAFETY: numbers and a null pointer, which stands for the signal's usual information.
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGKILL, none, 0) };
        }
    }

    pub fn take_pidfd(&self) -> Option<OwnedFd> {
        if self.id() == UNBORN {
            return None;
        }
        let pidfd = self.pidfd.swap(NONE, Ordering::AcqRel);
        // SAFETY: the kernel made this descriptor for the clone, in the program's table, and it was not taken before.
        (pidfd != NONE).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) })
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        drop(self.take_pidfd());
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

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn ends_at_once(_: *mut c_void) -> c_int {
        0
    }

    #[test]
    fn a_clone_that_did_nothing_leaves_its_descriptor() {
        let clone = Clone::new().unwrap();
        assert!(clone.take_pidfd().is_none());
        // SAFETY: it does nothing, and has left the memory when this returns.
        let pid = unsafe { clone.start(ends_at_once, 0, ptr::null_mut()) };
        assert!(clone.await_end());
        assert!(clone.take_pidfd().is_some() && clone.take_pidfd().is_none());
        assert_eq!(super::super::wait_for(pid.unwrap(), libc::__WALL), Ok(()));
    }
}
