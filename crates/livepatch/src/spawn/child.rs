//! What the clones do. Only system calls: the program's memory is still in use.
//!
//! The go-between has the program's descriptors and both have its memory, so none of them may outlive the program: a listening socket
//! would stay in use. The kernel kills a process with the *thread* that made it (`PR_SET_PDEATHSIG`). Here that is right: the go-between's
//! lives, unless the whole program ends, until the go-between has ended; the helper's is the go-between's only one. A thread of the
//! program that inherits the go-between passes the signal on when it ends in its turn.

use super::clone::{futex_wait, futex_wake};
use super::{FILES, GO, Shared, WAIT};
use nix::errno::Errno;
use nix::libc::{self, c_int, c_ulong, c_void};
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the helper waits for `go`. Only a program that is stopped neither says it nor gives up at the deadline.
const GO_LIMIT: Duration = Duration::from_secs(5);
/// Descriptors up to this one are closed one by one where the kernel cannot close a range.
const MOST_FILES: c_int = 1 << 20;
/// Signals of the kernel.
const SIGNALS: c_int = 64;

/// `struct kernel_sigaction` of x86-64: handler, flags, restorer, mask. All zero is `SIG_DFL`.
type KernelAction = [u64; 4];
static DEFAULT: KernelAction = [0; 4];
static IGNORED: KernelAction = [libc::SIG_IGN as u64, 0, 0, 0];
/// What terminals and supervisors send to a program with all that belongs to it. The helper belongs to it: where the kernel shares
/// processors among sessions first, a new session may wait for seconds beside a busy program, and a new process group becomes orphaned
/// when the go-between ends, at which the kernel hangs up on a helper that is stopped at that moment.
const OF_GROUPS: [c_int; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// The go-between: starts the helper and ends.
pub(super) extern "C" fn between_main(argument: *mut c_void) -> c_int {
    // SAFETY: `clone_between` passed a `Shared` that is kept until this process has left.
    let shared = unsafe { &*argument.cast_const().cast::<Shared>() };
    end_with_parent(libc::SIGKILL);
    if shared.is_abandoned() || parent() != shared.own_pid {
        return 1;
    }
    // SAFETY: as in `clone_between`.
    if let Err(errno) = unsafe { shared.helper.start(helper_main, libc::SIGCHLD, argument) } {
        shared.fail(errno as i32);
    }
    0
}

/// The helper until it executes its file.
extern "C" fn helper_main(argument: *mut c_void) -> c_int {
    // SAFETY: as in `between_main`.
    let shared = unsafe { &*argument.cast_const().cast::<Shared>() };
    end_with_parent(libc::SIGKILL);
    if shared.is_abandoned() || parent() != shared.between.id() {
        return 1;
    }
    // SAFETY: these calls take numbers, the address of a `struct sigaction` as the kernel has it, and a null pointer where the
    // old one may be asked for. Signal actions and descriptors are this process's own copies (neither CLONE_SIGHAND nor CLONE_FILES).
    unsafe {
        for signal in 1..=SIGNALS {
            // libc's own function may take a lock, which lies in the program's memory.
            let action = if OF_GROUPS.contains(&signal) { &raw const IGNORED } else { &raw const DEFAULT };
            let none = ptr::null_mut::<KernelAction>();
            libc::syscall(libc::SYS_rt_sigaction, signal, action, none, size_of::<u64>());
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
        if shared.is_abandoned() {
            return 1;
        }
        if futex_wait(&shared.go, WAIT, GO_LIMIT) == Err(Errno::ETIMEDOUT) {
            shared.exec_error.store(libc::ETIMEDOUT, Ordering::Release);
            return 1;
        }
    }
    // The go-between ends as soon as the file is executed, and what runs then has nothing of the program's.
    end_with_parent(0);
    set_mask(0);
    let (path, args, env) = (shared.program.path.as_ptr(), shared.args.as_ptr(), shared.env.as_ptr());
    // SAFETY: a string and two lists of strings that end with a null pointer, all kept as `shared` is.
    unsafe { libc::syscall(libc::SYS_execve, path, args, env) };
    shared.no_exec()
}

/// Which signal the kernel sends to this process when the thread that made it ends; 0 for none.
fn end_with_parent(signal: c_int) {
    let (signal, none): (c_ulong, c_ulong) = (c_ulong::from(signal.cast_unsigned()), 0);
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, signal, none, none, none) };
}

/// Another process than the one that made this one, if that ended before the kernel was asked to tell.
fn parent() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_getppid) as i32 }
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

/// Sets the calling thread's signal mask as the kernel has it: libc's own function leaves two signals out.
pub(super) fn set_mask(mask: u64) {
    // SAFETY: the kernel reads eight bytes from `mask` and writes nothing.
    unsafe {
        let old = ptr::null_mut::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, old, size_of::<u64>());
    }
}
