//! Starting a process that the program does not notice.
//!
//! The program may wait for any of its children, ignore SIGCHLD, be the first process of a container, have any number of
//! descriptors open and any signal handled. So the new process is nobody's child that the program could meet:
//!
//! ```text
//! calling thread ── starts a thread, waits for the helper's id, lets it trace us, says go
//!        thread  ── clone(VM | VFORK | FILES | PIDFD, no exit signal) ─▶ go-between
//!    go-between  ── clone(VM | VFORK | PIDFD, SIGCHLD) ─▶ helper: own session, signals as new, four descriptors,
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
//! caller, who waits no longer than its deadline, kills what is left of them.

mod clone;

use clone::{Clone, await_change, futex_wait, futex_wake};
use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_ulong, c_void};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

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

/// A started process.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// How long the helper waits for `go`. Only a program that is being killed does not say it at once.
const GO_LIMIT: Duration = Duration::from_secs(5);
/// How long killed clones may take to end before they are left to end by themselves.
const END_LIMIT: Duration = Duration::from_secs(1);
/// Descriptors up to this one are closed one by one where the kernel cannot close a range.
const MOST_FILES: c_int = 1 << 20;

/// Signals of the kernel.
const SIGNALS: c_int = 64;

/// `struct kernel_sigaction` of x86-64: handler, flags, restorer, mask. All zero is `SIG_DFL`.
type KernelAction = [u64; 4];
static DEFAULT: KernelAction = [0; 4];

const DONE: i32 = 1;
const WAIT: u32 = 0;
const GO: u32 = 1;

/// In place of the helper's process id: it did not live to tell it, nor why. No error number.
const KILLED: i32 = i32::MIN;

/// What the clones and the program share. Everything that they need is prepared here, so that they allocate nothing.
struct Shared {
    program: Program,
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
    let shared = Arc::new(Shared::new(program));
    let theirs = Arc::clone(&shared);
    let work = move || {
        clone_between(&theirs);
        theirs.await_both();
        theirs.done.store(DONE, Ordering::Release);
        futex_wake(&theirs.done);
    };
    std::thread::Builder::new().name("livepatch".into()).spawn(work)?;
    let pid = await_change(&shared.pid, deadline);
    if pid > 0 {
        permit(pid);
        shared.go.store(GO, Ordering::Release);
        futex_wake(&shared.go);
    }
    let in_time = pid != 0 && await_change(&shared.done, deadline) == DONE;
    if !in_time {
        shared.helper.kill();
        shared.between.kill();
        await_change(&shared.done, Instant::now() + END_LIMIT);
    }
    drop(shared.between.take_pidfd());
    let pidfd = shared.helper.take_pidfd();
    match (pid, shared.exec_error.load(Ordering::Acquire), pidfd) {
        _ if !in_time => Err(io::ErrorKind::TimedOut.into()),
        (pid, 0, Some(pidfd)) if pid > 0 => Ok(Spawned { pid, pidfd }),
        (_, error, _) if error > 0 => Err(io::Error::from_raw_os_error(error)),
        (KILLED, ..) => Err(io::Error::other("it was killed before it began")),
        (pid, ..) => Err(io::Error::from_raw_os_error(pid.saturating_neg().max(1))),
    }
}

/// Runs in the thread made for it: all its signals are blocked for good, so that no handler of the program ever runs in a
/// clone, where it would find the wrong process id.
fn clone_between(shared: &Arc<Shared>) {
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

/// The go-between: starts the helper and ends.
extern "C" fn between_main(argument: *mut c_void) -> c_int {
    // SAFETY: `clone_between` passed a `Shared` that is kept until this process has left.
    let shared = unsafe { &*argument.cast_const().cast::<Shared>() };
    shared.between.runs.store(true, Ordering::Release);
    // SAFETY: as in `clone_between`.
    if let Err(errno) = unsafe { shared.helper.start(helper_main, libc::SIGCHLD, argument) } {
        shared.fail(errno as i32);
    }
    0
}

/// The helper until it executes its file. Only system calls; the program's memory is still in use.
extern "C" fn helper_main(argument: *mut c_void) -> c_int {
    // SAFETY: as in `between_main`.
    let shared = unsafe { &*argument.cast_const().cast::<Shared>() };
    shared.helper.runs.store(true, Ordering::Release);
    // SAFETY: these calls take numbers, the address of a `struct sigaction` as the kernel has it, and a null pointer where the
    // old one may be asked for. Signal actions and descriptors are this
    // process's own copies (neither CLONE_SIGHAND nor CLONE_FILES).
    unsafe {
        libc::syscall(libc::SYS_setsid);
        for signal in 1..=SIGNALS {
            // libc's own function may take a lock, which lies in the program's memory.
            let none = ptr::null_mut::<KernelAction>();
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const DEFAULT, none, size_of::<u64>());
        }
        for (wanted, file) in shared.program.files.iter().enumerate() {
            // The sources lie above all targets, so none is overwritten.
            if libc::syscall(libc::SYS_dup2, file.as_raw_fd(), wanted as c_int) == -1 {
                return shared.no_exec();
            }
        }
        close_from(FILES as c_int);
        if shared.program.same_rights {
            let (on, none): (c_ulong, c_ulong) = (1, 0);
            libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, on, none, none, none);
        }
        shared.pid.store(libc::syscall(libc::SYS_getpid) as i32, Ordering::Release);
    }
    futex_wake(&shared.pid);
    while shared.go.load(Ordering::Acquire) != GO {
        if futex_wait(&shared.go, WAIT, GO_LIMIT) == Err(Errno::ETIMEDOUT) {
            shared.exec_error.store(libc::ETIMEDOUT, Ordering::Release);
            return 1;
        }
    }
    set_mask(0);
    let (path, args, env) = (shared.program.path.as_ptr(), shared.args.as_ptr(), shared.env.as_ptr());
    // SAFETY: a string and two lists of strings that end with a null pointer, all kept as `shared` is.
    unsafe { libc::syscall(libc::SYS_execve, path, args, env) };
    shared.no_exec()
}

/// Closes all descriptors from this one on.
fn close_from(first: c_int) {
    // SAFETY: numbers only. The helper's descriptors are its own.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) == 0 {
            return;
        }
        let limit = libc::sysconf(libc::_SC_OPEN_MAX).clamp(1024, MOST_FILES.into()) as c_int;
        for file in first..limit {
            libc::close(file);
        }
    }
}

impl Shared {
    fn new(program: Program) -> Self {
        let pointers =
            |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
        Self {
            args: pointers(&program.args),
            env: pointers(&program.env),
            program,
            between: Clone::new(),
            helper: Clone::new(),
            pid: AtomicI32::new(0),
            go: AtomicU32::new(WAIT),
            exec_error: AtomicI32::new(0),
            done: AtomicI32::new(0),
        }
    }

    /// Waits until neither clone is in this memory. If that cannot be told, the memory is never given back.
    fn await_both(self: &Arc<Self>) {
        if !(self.between.await_end() && self.helper.await_end()) {
            std::mem::forget(Arc::clone(self));
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

/// Sets the calling thread's signal mask as the kernel has it: libc's own function leaves two signals out.
fn set_mask(mask: u64) {
    // SAFETY: the kernel reads eight bytes from `mask` and writes nothing.
    unsafe {
        let old = ptr::null_mut::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, old, size_of::<u64>());
    }
}
