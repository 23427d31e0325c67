//! Starting a process that the program does not notice.
//!
//! The program may wait for any of its children, ignore SIGCHLD, be the first process of a container, have any number of
//! descriptors open and any signal handled. So the new process is nobody's child that the program could meet:
//!
//! ```text
//! calling thread ── starts a thread, waits for the helper's id, lets it trace us, says go
//!        thread  ── clone(VM | VFORK | FILES, no exit signal) ─▶ go-between
//!    go-between  ── clone(VM | VFORK | PIDFD, SIGCHLD) ─▶ helper: own session, signals as new, four descriptors,
//!                   then exits                            waits for go, execve
//! ```
//!
//! The go-between ends with no signal and is seen only by a wait for `__WALL` or `__WCLONE`; with its end the helper belongs
//! to init. In a program that is init itself, or a subreaper, the helper shows as an orphan that was taken in, and is reaped
//! here unless the program is faster.
//!
//! Both clones share the program's memory, like `vfork`: nothing is copied, however large the program is. Until they leave it
//! they run on stacks of their own with all signals blocked and do nothing but system calls.

use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_void};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

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
}

pub(crate) const FILES: usize = 4;

/// A started process.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Stack of each clone. `execve` is the deepest that they do.
const STACK: usize = 64 << 10;
/// How long the helper waits for `go`. Only a program that is being killed does not say it at once.
const GO_LIMIT: Duration = Duration::from_secs(5);
/// Descriptors up to this one are closed one by one where the kernel cannot close a range.
const MOST_FILES: c_int = 1 << 20;

/// Signals of the kernel.
const SIGNALS: c_int = 64;

/// `struct kernel_sigaction` of x86-64: handler, flags, restorer, mask. All zero is `SIG_DFL`.
type KernelAction = [u64; 4];
static DEFAULT: KernelAction = [0; 4];

const WAIT: u32 = 0;
const GO: u32 = 1;

/// What the clones and the program share. Everything that they need is prepared here, so that they allocate nothing.
struct Shared {
    path: *const c_char,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    files: [c_int; FILES],
    between_stack: *mut c_void,
    helper_stack: *mut c_void,
    /// 0: not started yet; positive: the helper's process id; negative: why it was not started.
    pid: AtomicI32,
    pidfd: AtomicI32,
    go: AtomicU32,
    exec_error: AtomicI32,
}

// SAFETY: the pointers lead to strings and stacks that `spawn` keeps alive until its thread is joined. The strings are only
// read, each stack is used by one clone, and everything else that changes is atomic.
unsafe impl Sync for Shared {}

/// Starts the program. `permit` is called with its process id before it runs an instruction of the new file.
///
/// # Errors
/// The kernel refuses a thread, a process or the file.
pub(crate) fn spawn(program: &Program, permit: impl FnOnce(i32)) -> io::Result<Spawned> {
    let pointers =
        |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
    let (mut between, mut helper) = (vec![0_u8; STACK], vec![0_u8; STACK]);
    let shared = Shared {
        path: program.path.as_ptr(),
        args: pointers(&program.args),
        env: pointers(&program.env),
        files: program.files.each_ref().map(AsRawFd::as_raw_fd),
        between_stack: top(&mut between),
        helper_stack: top(&mut helper),
        pid: AtomicI32::new(0),
        pidfd: AtomicI32::new(-1),
        go: AtomicU32::new(WAIT),
        exec_error: AtomicI32::new(0),
    };
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("livepatch".into());
        let thread = builder.spawn_scoped(scope, || clone_between(&shared))?;
        let pid = loop {
            match shared.pid.load(Ordering::Acquire) {
                // It returns early for many reasons; what counts is the value.
                0 => drop(futex_wait(&shared.pid, 0, GO_LIMIT)),
                pid => break pid,
            }
        };
        if pid > 0 {
            permit(pid);
            shared.go.store(GO, Ordering::Release);
            futex_wake(&shared.go);
        }
        // It does not panic, and a panic would leave `pid` at 0.
        let _ = thread.join();
        let pidfd = shared.pidfd.load(Ordering::Acquire);
        // SAFETY: the kernel made this descriptor for the go-between, in the program's table, and nobody else knows it.
        let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
        match (pid, shared.exec_error.load(Ordering::Acquire), pidfd) {
            (pid, 0, Some(pidfd)) if pid > 0 => Ok(Spawned { pid, pidfd }),
            (_, error, _) if error > 0 => Err(io::Error::from_raw_os_error(error)),
            (pid, ..) => Err(io::Error::from_raw_os_error(pid.saturating_neg().max(1))),
        }
    })
}

/// The 16-byte aligned upper end of a stack.
fn top(stack: &mut [u8]) -> *mut c_void {
    let end = stack.as_mut_ptr_range().end;
    end.wrapping_sub(end as usize % 16).cast()
}

/// Runs in the thread made for it: all its signals are blocked for good, so that no handler of the program ever runs in a
/// clone, where it would find the wrong process id.
fn clone_between(shared: &Shared) {
    set_mask(u64::MAX);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
    let argument = ptr::from_ref(shared).cast_mut().cast();
    // SAFETY: `between_main` gets its own stack of `STACK` bytes, which outlives it: this call returns after the clone has
    // ended (CLONE_VFORK), and `spawn` holds the stack and `shared` until this thread is joined.
    let between = unsafe { libc::clone(between_main, shared.between_stack, flags, argument) };
    if between == -1 {
        return shared.fail(Errno::last_raw());
    }
    // It has ended. An error means that the program collected it: it waits for children of all kinds.
    while wait_for(between, libc::__WALL) == Err(Errno::EINTR) {}
    if shared.pid.load(Ordering::Acquire) == 0 {
        shared.fail(libc::ECHILD);
    }
}

/// The go-between: starts the helper and ends.
extern "C" fn between_main(argument: *mut c_void) -> c_int {
    // SAFETY: `clone_between` passed a `Shared` that lives until this process has ended.
    let shared = unsafe { &*argument.cast_const().cast::<Shared>() };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: c_int = -1;
    // SAFETY: as in `clone_between`; with CLONE_PIDFD the kernel stores one int through the pointer, which leads to `pidfd`.
    let pid = unsafe { libc::clone(helper_main, shared.helper_stack, flags, argument, &raw mut pidfd) };
    match pid {
        -1 => shared.fail(Errno::last_raw()),
        _ => shared.pidfd.store(pidfd, Ordering::Release),
    }
    0
}

/// The helper until it executes its file. Only system calls; the program's memory is still in use.
extern "C" fn helper_main(argument: *mut c_void) -> c_int {
    // SAFETY: as in `between_main`; CLONE_VFORK keeps the go-between, and so `clone_between`, waiting until `execve`.
    let shared = unsafe { &*argument.cast_const().cast::<Shared>() };
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
        for (wanted, file) in shared.files.iter().enumerate() {
            // The sources lie above all targets, so none is overwritten.
            if libc::syscall(libc::SYS_dup2, *file, wanted as c_int) == -1 {
                return shared.no_exec();
            }
        }
        close_from(FILES as c_int);
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
    // SAFETY: a string and two lists of strings that end with a null pointer, all kept by `spawn`.
    unsafe { libc::syscall(libc::SYS_execve, shared.path, shared.args.as_ptr(), shared.env.as_ptr()) };
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

fn futex_wait<T>(word: &T, value: u32, limit: Duration) -> Result<(), Errno> {
    const { assert!(size_of::<T>() == size_of::<u32>()) };
    let limit = libc::timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: 0 };
    let wait = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word is four bytes long and aligned, as all callers pass atomics of that size; the kernel only reads it.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_futex, ptr::from_ref(word), wait, value, &raw const limit)
    })
    .map(drop)
}

fn futex_wake<T>(word: &T) {
    let wake = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: waking does not access the word; its address is the key.
    unsafe { libc::syscall(libc::SYS_futex, ptr::from_ref(word), wake, c_int::MAX) };
}
