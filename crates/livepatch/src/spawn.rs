//! Starting a process that the program does not notice.
//!
//! The program may wait for any of its children, ignore SIGCHLD, be the first process of a container, have any number of
//! descriptors open and any signal handled. So the new process is nobody's child that the program could meet:
//!
//! ```text
//! calling thread ── starts a thread, waits for the helper's id, lets it trace us, says go
//!        thread  ── clone(VM | VFORK | FILES | PIDFD, no exit signal) ─▶ go-between
//!    go-between  ── clone(VM | VFORK | PIDFD, SIGCHLD) ─▶ helper: signals as new or ignored, four descriptors,
//!                   then exits                            no new privileges, waits for go, execve
//! ```
//!
//! The go-between ends with no signal and is seen only by a wait for `__WALL` or `__WCLONE`; with its end the helper belongs
//! to init. In a program that is init itself, or a subreaper, the helper shows as an orphan that was taken in, and is reaped
//! here unless the program is faster.
//!
//! Both clones share the program's memory, like `vfork`: nothing is copied, however large the program is. Until they leave it
//! they run on stacks of their own with all signals blocked and do nothing but system calls. Somebody may stop or kill one of them
//! there. So what they use belongs to the thread, too, which ends when the kernel has told that both left (CLONE_CHILD_CLEARTID), and the
//! caller, who waits no longer than its deadline, kills what is left of them and has those end that are yet to come. If the program is killed
//! instead, the kernel kills them with it.

mod child;
mod clone;
mod worker;

use child::{between_main, set_mask};
use clone::{Clone, await_change, futex_wake};
use nix::errno::Errno;
use nix::libc::{self, c_char, c_int};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use worker::Worker;

/// What is started.
pub(crate) struct Program {
    /// File to execute.
    pub path: CString,
    /// Its words, the first one included.
    pub args: Vec<CString>,
    /// Its environment.
    pub env: Vec<CString>,
    /// Its descriptors 0, 1, 2 and 3; it gets no others.
    pub files: [OwnedFd; FILES],
    /// Whether it is to have no more rights than this program, whatever the file would give it.
    pub same_rights: bool,
}

pub(crate) const FILES: usize = 4;

/// A started process. Dropped when that has ended, so that the program has no thread and no descriptor of ours left.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The helper traces this thread too, while both live.
    worker: Worker,
}

impl Spawned {
    /// When to give up waiting for the end of what was started.
    pub(crate) fn wait_until(&mut self, until: Instant) {
        self.worker.until = until;
    }
}

/// How long killed clones may take to end before they are left to end by themselves.
const END_LIMIT: Duration = Duration::from_secs(1);
const DONE: i32 = 1;
/// Values of `go`: nothing was said yet; the helper may execute its file; nobody waits for it any more.
const WAIT: u32 = 0;
const GO: u32 = 1;
const ABANDONED: u32 = 2;

/// In place of the helper's process id: it did not live to tell it, nor why. No error number.
const KILLED: i32 = i32::MIN;

/// What the clones and the program share. Everything that they need is prepared here, so that they allocate nothing.
struct Shared {
    program: Program,
    own_pid: i32,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    between: Clone,
    helper: Clone,
    /// 0: not started yet; positive: the helper's process id; negative: why it was not started.
    pid: AtomicI32,
    go: AtomicU32,
    exec_error: AtomicI32,
    /// [`DONE`] when no clone is in this memory any more.
    done: AtomicI32,
}

// SAFETY: the pointers lead to strings of `program`, which are only read, and to stacks that belong to it.
unsafe impl Send for Shared {}
// SAFETY: as above; each stack is used by one clone, and everything else that changes is atomic.
unsafe impl Sync for Shared {}

/// Starts the program. `permit` is called with its process id before it runs an instruction of the new file.
///
/// # Errors
/// The kernel refuses a thread, a process or the file; [`io::ErrorKind::TimedOut`] if it was not started by the deadline.
pub(crate) fn spawn(program: Program, permit: impl FnOnce(i32), deadline: Instant) -> io::Result<Spawned> {
    let shared = Arc::new(Shared::new(program)?);
    let theirs = Arc::clone(&shared);
    let work = move || {
        clone_between(&theirs);
        theirs.await_both();
        theirs.done.store(DONE, Ordering::Release);
        futex_wake(&theirs.done);
    };
    let mut worker = Worker::start(work)?;
    let pid = await_change(&shared.pid, deadline);
    if pid > 0 {
        permit(pid);
        shared.go.store(GO, Ordering::Release);
        futex_wake(&shared.go);
    }
    let in_time = pid != 0 && await_change(&shared.done, deadline) == DONE;
    worker.until = Instant::now() + END_LIMIT;
    if !in_time {
        shared.abandon();
        await_change(&shared.done, worker.until);
    }
    let pidfd = shared.helper.take_pidfd();
    let started = in_time && pid > 0 && shared.exec_error.load(Ordering::Acquire) == 0;
    match pidfd {
        Some(pidfd) if started => return Ok(Spawned { pid, pidfd, worker }),
        Some(pidfd) => collect(&pidfd, worker.until),
        None => {}
    }
    Err(if in_time { shared.why_not(pid) } else { io::ErrorKind::TimedOut.into() })
}

/// Waits for the end of a helper that did not come to be, and collects it where orphans come to this program.
fn collect(pidfd: &OwnedFd, until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    let limit = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    // Whatever goes wrong here, nothing can be done about it.
    let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit);
    let (no_info, no_usage) = (ptr::null_mut::<libc::siginfo_t>(), ptr::null_mut::<libc::rusage>());
    let flags = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: waitid writes nothing through null pointers.
    unsafe { libc::syscall(libc::SYS_waitid, libc::P_PIDFD, pidfd.as_raw_fd(), no_info, flags, no_usage) };
}

/// Runs in the thread made for it: all its signals are blocked for good, so that no handler of the program ever runs in a
/// clone, where it would find the wrong process id.
fn clone_between(shared: &Arc<Shared>) {
    if shared.is_abandoned() {
        return;
    }
    set_mask(u64::MAX);
    let argument = Arc::as_ptr(shared).cast_mut().cast();
    // SAFETY: `between_main` does nothing but what a clone may; the thread keeps `shared`, and everything in it, until both have left.
    let between = match unsafe { shared.between.start(between_main, libc::CLONE_FILES, argument) } {
        Ok(between) => between,
        Err(errno) => return shared.fail(errno as i32),
    };
    // It has ended. An error means that the program collected it: it waits for children of all kinds.
    while wait_for(between, libc::__WALL) == Err(Errno::EINTR) {}
    if shared.pid.load(Ordering::Acquire) == 0 {
        shared.pid.store(KILLED, Ordering::Release);
        futex_wake(&shared.pid);
    }
}

impl Shared {
    fn new(program: Program) -> io::Result<Self> {
        let pointers =
            |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
        Ok(Self {
            args: pointers(&program.args),
            env: pointers(&program.env),
            program,
            own_pid: livepatch_process::numbered::own_pid().0,
            between: Clone::new()?,
            helper: Clone::new()?,
            pid: AtomicI32::new(0),
            go: AtomicU32::new(WAIT),
            exec_error: AtomicI32::new(0),
            done: AtomicI32::new(0),
        })
    }

    /// Waits until neither clone is in this memory. If that cannot be told, the memory is never given back.
    fn await_both(self: &Arc<Self>) {
        if !(self.between.await_end() && self.helper.await_end()) {
            std::mem::forget(Arc::clone(self));
        }
    }

    /// Ends the clones: those that run, and those that are yet to come, by themselves.
    fn abandon(&self) {
        self.go.store(ABANDONED, Ordering::SeqCst);
        futex_wake(&self.go);
        self.helper.kill();
        self.between.kill();
    }

    fn is_abandoned(&self) -> bool {
        self.go.load(Ordering::SeqCst) == ABANDONED
    }

    /// Why the helper with this `pid` was not started.
    fn why_not(&self, pid: i32) -> io::Error {
        match (self.exec_error.load(Ordering::Acquire), pid) {
            (0, KILLED) => io::Error::other("it was killed before it began"),
            (0, pid) => io::Error::from_raw_os_error(pid.saturating_neg().max(1)),
            (error, _) => io::Error::from_raw_os_error(error),
        }
    }

    fn fail(&self, errno: i32) {
        self.pid.store(-errno.max(1), Ordering::Release);
        futex_wake(&self.pid);
    }

    fn no_exec(&self) -> c_int {
        let errno = Errno::last_raw();
        self.exec_error.store(errno, Ordering::Release);
        if self.pid.load(Ordering::Acquire) == 0 {
            self.fail(errno);
        }
        127
    }
}

/// Collects a child that has ended or waits for its end, as the flags say.
pub(crate) fn wait_for(pid: i32, flags: c_int) -> Result<(), Errno> {
    let (no_status, no_usage) = (ptr::null_mut::<c_int>(), ptr::null_mut::<libc::rusage>());
    // SAFETY: wait4 writes nothing through null pointers.
    Errno::result(unsafe { libc::syscall(libc::SYS_wait4, pid, no_status, flags, no_usage) }).map(drop)
}
