//! A seccomp filter with the effect of the container runtimes' default profile for a process without capabilities.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

unsafe extern "C" {
    fn sigaction(number: i32, new: *const Action, old: *mut Action) -> i32;
    fn prctl(option: i32, a: u64, b: u64, c: u64, d: u64) -> i32;
    fn syscall(number: i64, ...) -> i64;
}

#[repr(C)]
struct Step {
    code: u16,
    yes: u8,
    no: u8,
    value: u32,
}

#[repr(C)]
struct Program {
    length: u16,
    steps: *const Step,
}

const PR_SET_NO_NEW_PRIVS: i32 = 38;
const PR_SET_SECCOMP: i32 = 22;
const MODE_FILTER: u64 = 2;

const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const NOT_PERMITTED: u32 = 0x0005_0001;
const NOT_IMPLEMENTED: u32 = 0x0005_0026;
const KILL: u32 = 0x8000_0000;

const X86_64: u32 = 0xc000_003e;
const CLONE: u32 = 56;
const CLONE3: u32 = 435;
/// Flags that make namespaces.
const NAMESPACES: u32 = 0x7e02_0000;

/// What the profile does not list, or lists for capabilities only: acct, add_key, bpf, clock_adjtime, clock_settime,
/// delete_module, fanotify_init, finit_module, fsconfig, fsmount, fsopen, fspick, get_mempolicy, init_module, io_uring_enter,
/// io_uring_register, io_uring_setup, ioperm, iopl, kcmp, kexec_file_load, kexec_load, keyctl, lookup_dcookie, mbind, mount,
/// mount_setattr, move_mount, move_pages, name_to_handle_at, open_by_handle_at, open_tree, perf_event_open, pidfd_getfd,
/// pivot_root, process_madvise, quotactl, reboot, request_key, set_mempolicy, setns, settimeofday, swapoff, swapon, syslog,
/// umount2, unshare, userfaultfd, vhangup.
const FORBIDDEN: [u32; 49] = [
    163, 248, 321, 305, 227, 176, 300, 313, 431, 432, 430, 433, 239, 175, 426, 427, 425, 173, 172, 312, 320, 246, 250, 212,
    237, 165, 442, 429, 279, 303, 304, 428, 298, 438, 155, 440, 179, 169, 249, 238, 308, 164, 168, 167, 103, 166, 272, 323,
    153,
];

fn step(code: u16, yes: u8, no: u8, value: u32) -> Step {
    Step { code, yes, no, value }
}

/// A filter that forbids ptrace.
pub fn forbid_ptrace() -> String {
    const PTRACE: u32 = 101;
    install(&[
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 1, PTRACE),
        step(RETURN, 0, 0, NOT_PERMITTED),
        step(RETURN, 0, 0, ALLOW),
    ])
}

/// Has whoever closes a range of descriptors, as helpers do before they execute their file, wait for an answer that nobody gives.
pub fn hang_helpers() -> String {
    const SECCOMP: i64 = 317;
    const SET_FILTER: u64 = 1;
    const NEW_LISTENER: u64 = 8;
    const CLOSE_RANGE: u32 = 436;
    const ASK: u32 = 0x7fc0_0000;
    let steps = [
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 1, CLOSE_RANGE),
        step(RETURN, 0, 0, ASK),
        step(RETURN, 0, 0, ALLOW),
    ];
    let program = Program { length: steps.len() as u16, steps: steps.as_ptr() };
    // SAFETY: the kernel reads `length` steps, which live until the call returns. The descriptor that it makes stays open.
    let listener = unsafe {
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        syscall(SECCOMP, SET_FILTER, NEW_LISTENER, &raw const program)
    };
    format!("hanging {}", listener >= 0)
}

/// Whether other processes of the same user may trace this one.
pub fn dumpable(yes: bool) -> String {
    const PR_SET_DUMPABLE: i32 = 4;
    // SAFETY: numbers only.
    unsafe { prctl(PR_SET_DUMPABLE, yes.into(), 0, 0, 0) }.to_string()
}

/// `struct sigaction` of the C library.
#[repr(C)]
struct Action {
    handler: extern "C" fn(i32, *const Info, *mut u64),
    mask: [u64; 16],
    flags: i32,
    restorer: usize,
}

#[repr(C)]
struct Info([i32; 32]);

/// Whom this process permitted to trace it, in the order of the calls.
static PERMITS: [AtomicU64; 8] = [const { AtomicU64::new(u64::MAX) }; 8];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// In place of the call, which not every kernel knows.
extern "C" fn note(_: i32, _: *const Info, context: *mut u64) {
    // Words of `ucontext_t` before the registers, and the places of RSI, the second argument, and RAX among these.
    const REGISTERS: usize = 5;
    const RSI: usize = 9;
    const RAX: usize = 13;
    let at = COUNT.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the kernel passes the context of the interrupted thread, whose registers these are.
    unsafe {
        PERMITS[at].store(context.add(REGISTERS + RSI).read(), Ordering::SeqCst);
        context.add(REGISTERS + RAX).write(0);
    }
}

/// Has every call of `prctl(PR_SET_PTRACER, …)` noted, by this process and its helpers.
pub fn watch_permits() -> String {
    const PRCTL: u32 = 157;
    const PR_SET_PTRACER: u32 = 0x5961_6d61;
    const TRAP: u32 = 0x0003_0000;
    const SIGSYS: i32 = 31;
    const SA_SIGINFO: i32 = 4;
    let action = Action { handler: note, mask: [0; 16], flags: SA_SIGINFO, restorer: 0 };
    // SAFETY: the handler only touches atomics and the interrupted thread's registers.
    assert_eq!(unsafe { sigaction(SIGSYS, &raw const action, std::ptr::null_mut()) }, 0);
    install(&[
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 3, PRCTL),
        step(LOAD, 0, 0, 16),
        step(EQUAL, 0, 1, PR_SET_PTRACER),
        step(RETURN, 0, 0, TRAP),
        step(RETURN, 0, 0, ALLOW),
    ])
}

/// What was noted.
pub fn permits() -> String {
    let noted = &PERMITS[..COUNT.load(Ordering::SeqCst)];
    noted.iter().map(|pid| pid.load(Ordering::SeqCst).to_string()).collect::<Vec<_>>().join(" ")
}

pub fn enter() -> String {
    let mut steps = vec![step(LOAD, 0, 0, 4), step(EQUAL, 1, 0, X86_64), step(RETURN, 0, 0, KILL)];
    steps.push(step(LOAD, 0, 0, 0));
    for number in FORBIDDEN {
        steps.push(step(EQUAL, 0, 1, number));
        steps.push(step(RETURN, 0, 0, NOT_PERMITTED));
    }
    steps.push(step(EQUAL, 0, 1, CLONE3));
    steps.push(step(RETURN, 0, 0, NOT_IMPLEMENTED));
    steps.push(step(EQUAL, 0, 3, CLONE));
    steps.push(step(LOAD, 0, 0, 16));
    steps.push(step(ANY_BIT, 0, 1, NAMESPACES));
    steps.push(step(RETURN, 0, 0, NOT_PERMITTED));
    steps.push(step(RETURN, 0, 0, ALLOW));
    install(&steps)
}

fn install(steps: &[Step]) -> String {
    let program = Program { length: steps.len() as u16, steps: steps.as_ptr() };
    // SAFETY: the kernel reads `length` steps, which live until the call returns.
    let done = unsafe {
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && prctl(PR_SET_SECCOMP, MODE_FILTER, (&raw const program).expose_provenance() as u64, 0, 0) == 0
    };
    format!("sandboxed {done}")
}
