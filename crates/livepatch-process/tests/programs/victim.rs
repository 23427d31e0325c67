//! A program to be traced. It prints `name value` facts and `ready`, then obeys lines on standard input, each answered by one
//! line. No dependency: the C library is declared by hand.
#![allow(non_camel_case_types)]

use std::arch::{asm, global_asm};
use std::io::Write;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

type c_int = i32;
unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn __errno_location() -> *mut c_int;
    fn pipe(fds: *mut c_int) -> c_int;
    fn read(fd: c_int, buffer: *mut u8, len: usize) -> isize;
    fn write(fd: c_int, buffer: *const u8, len: usize) -> isize;
    fn epoll_create1(flags: c_int) -> c_int;
    fn epoll_ctl(epoll: c_int, op: c_int, fd: c_int, event: *mut EpollEvent) -> c_int;
    fn epoll_wait(epoll: c_int, events: *mut EpollEvent, max: c_int, timeout: c_int) -> c_int;
    fn nanosleep(wanted: *const [i64; 2], left: *mut [i64; 2]) -> c_int;
    fn sigaction(signal: c_int, action: *const SigAction, old: *mut SigAction) -> c_int;
    fn vfork() -> c_int;
    fn _exit(code: c_int) -> !;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn execv(path: *const u8, argv: *const *const u8) -> c_int;
}

#[repr(C, packed)]
struct EpollEvent {
    events: u32,
    data: u64,
}

#[repr(C)]
struct SigAction {
    handler: usize,
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

const SYS_GETTID: i64 = 186;
const SYS_FUTEX: i64 = 202;
const SYS_EXIT: i64 = 60;
const EINTR: c_int = 4;

static TICKS: AtomicU64 = AtomicU64::new(0);
static BAD: AtomicU64 = AtomicU64::new(0);
static SPINS: AtomicU64 = AtomicU64::new(0);
static SIGNALS: AtomicU64 = AtomicU64::new(0);
static SIGNAL_SUM: AtomicI64 = AtomicI64::new(0);
static FUTEX: AtomicU32 = AtomicU32::new(0);
static RESULTS: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

fn tid() -> i64 {
    unsafe { syscall(SYS_GETTID) }
}

fn errno() -> c_int {
    unsafe { *__errno_location() }
}

// Functions for remote calls.
//
// `six` weighs its arguments so that swapping any two shows. `entry_state` returns the flags and the stack pointer at its entry.
// `clobber` destroys all vector registers and sets an unusual rounding mode. `spin` loops for ever. `fault` reads address 0x10.
global_asm!(
    ".globl six, entry_state, clobber, spin, fault, hot, control_words",
    "six:",
    "lea rax, [rdi + rsi * 2]",
    "lea rax, [rax + rdx * 4]",
    "lea rax, [rax + rcx * 8]",
    "imul r8, r8, 16",
    "add rax, r8",
    "imul r9, r9, 32",
    "add rax, r9",
    "ret",
    "entry_state:",
    "pushfq",
    "pop rax",
    "shl rax, 32",
    "mov edx, esp",
    "and edx, 63",
    "or rax, rdx",
    "ret",
    "control_words:",
    "stmxcsr [rsp - 8]",
    "fnstcw [rsp - 4]",
    "mov rax, [rsp - 8]",
    "shl rax, 16",
    "shr rax, 16",
    "ret",
    "clobber:",
    "pcmpeqb xmm0, xmm0",
    "pcmpeqb xmm1, xmm1",
    "pcmpeqb xmm2, xmm2",
    "pcmpeqb xmm7, xmm7",
    "pcmpeqb xmm8, xmm8",
    "pcmpeqb xmm15, xmm15",
    "mov dword ptr [rsp - 8], 0x7f80",
    "ldmxcsr [rsp - 8]",
    "fld1",
    "mov r10, -1",
    "mov r11, -1",
    "mov rcx, -1",
    "mov rax, 77",
    "ret",
    "spin:",
    "pause",
    "jmp spin",
    "fault:",
    "mov rax, [0x10]",
    "ret",
    "hot:",
    "lea rax, [rdi + 1]",
    "ret",
);
unsafe extern "C" {
    fn six();
    fn entry_state();
    fn clobber();
    fn spin();
    fn fault();
    fn control_words();
    fn hot(n: u64) -> u64;
}

/// Counts `SPINS` for ever with values in vector registers, flags (DF set) and below the stack pointer; any change of them
/// counts as `BAD`.
fn guard_loop() {
    unsafe {
        asm!(
            // So aligned, a call that forgot the red zone would write its return address to [rsp - 56].
            "and rsp, -64",
            "sub rsp, 16",
            "2:",
            "mov rax, 0x1122334455667788",
            "movq xmm0, rax",
            "movq xmm8, rax",
            "movq xmm15, rax",
            "mov [rsp - 8], rax",
            "mov [rsp - 56], rax",
            "mov [rsp - 120], rax",
            "mov r10, rax",
            "std",
            "mov ecx, 2000",
            "3:",
            "movq rdx, xmm0", "cmp rdx, rax", "jne 4f",
            "movq rdx, xmm8", "cmp rdx, rax", "jne 4f",
            "movq rdx, xmm15", "cmp rdx, rax", "jne 4f",
            "cmp rax, [rsp - 8]", "jne 4f",
            "cmp rax, [rsp - 56]", "jne 4f",
            "cmp rax, [rsp - 120]", "jne 4f",
            "cmp r10, rax", "jne 4f",
            "stmxcsr [rsp - 16]", "mov edx, [rsp - 16]", "and edx, 0xffc0", "cmp edx, 0x1f80", "jne 4f",
            "pushfq", "pop rdx", "test edx, 0x400", "jz 4f",
            // pushfq wrote there.
            "mov [rsp - 8], rax",
            "dec ecx", "jnz 3b",
            "lock inc qword ptr [rdi]",
            "jmp 2b",
            "4:",
            "lock inc qword ptr [rsi]",
            "jmp 2b",
            in("rdi") SPINS.as_ptr(),
            in("rsi") BAD.as_ptr(),
            options(noreturn),
        )
    }
}

extern "C" fn on_signal(_signal: c_int, info: *const u8, _context: usize) {
    // si_value of a queued signal lies at offset 24 of siginfo_t.
    SIGNAL_SUM.fetch_add(i64::from(unsafe { info.add(24).cast::<c_int>().read() }), SeqCst);
    SIGNALS.fetch_add(1, SeqCst);
}

fn set_action(signal: c_int, handler: usize) {
    const SA_SIGINFO: c_int = 4;
    const SA_RESTART: c_int = 0x1000_0000;
    let action =
        SigAction { handler, mask: [0; 16], flags: SA_SIGINFO | SA_RESTART, restorer: 0 };
    assert_eq!(unsafe { sigaction(signal, &action, std::ptr::null_mut()) }, 0);
}

/// Starts a thread and returns its id.
fn thread(body: impl FnOnce() + Send + 'static) -> i64 {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        send.send(tid()).unwrap();
        body();
    });
    receive.recv().unwrap()
}

fn result(line: String) {
    RESULTS.lock().unwrap().push(line);
}

fn blockers() -> String {
    let mut fds = [[0; 2]; 2];
    for pair in &mut fds {
        assert_eq!(unsafe { pipe(pair.as_mut_ptr()) }, 0);
    }
    let [[read_end, write_end], [epoll_read, epoll_write]] = fds;
    let reader = thread(move || {
        let mut byte = 0;
        let got = unsafe { read(read_end, &mut byte, 1) };
        result(format!("read {got} {byte}"));
    });
    let sleeper = thread(|| {
        let started = Instant::now();
        let got = unsafe { nanosleep(&[0, 600_000_000], std::ptr::null_mut()) };
        result(format!("nanosleep {got} {}", started.elapsed() >= Duration::from_millis(600)));
    });
    let futex = thread(|| {
        let got = unsafe { syscall(SYS_FUTEX, FUTEX.as_ptr(), 0_i64, 0_i64, 0_i64) };
        // EAGAIN: the word had changed before a wait that was interrupted was taken up again.
        let woken = got == 0 || errno() == 11;
        result(format!("futex {woken} {}", FUTEX.load(SeqCst)));
    });
    let epoll = thread(move || {
        let epoll = unsafe { epoll_create1(0) };
        let mut event = EpollEvent { events: 1, data: 0 };
        assert_eq!(unsafe { epoll_ctl(epoll, 1, epoll_read, &mut event) }, 0);
        let mut interrupted = 0;
        let got = loop {
            let got = unsafe { epoll_wait(epoll, &mut event, 1, -1) };
            match got {
                -1 if errno() == EINTR => interrupted += 1,
                got => break got,
            }
        };
        result(format!("epoll_wait {got} {interrupted}"));
    });
    thread(move || {
        // Waits for the line `unblock`.
        while FUTEX.load(SeqCst) == 0 {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        unsafe {
            syscall(SYS_FUTEX, FUTEX.as_ptr(), 1_i64, 1_i64);
            write(write_end, &b'x', 1);
            write(epoll_write, &b'x', 1);
        }
    });
    format!("{reader} {sleeper} {futex} {epoll}")
}

/// A thread in vfork, whose child waits for a byte. Returns the thread's id once the child runs.
fn vfork_until_released() -> String {
    let (mut ready, mut release) = ([0; 2], [0; 2]);
    assert_eq!(unsafe { pipe(ready.as_mut_ptr()) | pipe(release.as_mut_ptr()) }, 0);
    let parent = thread(move || unsafe {
        let child = vfork();
        if child == 0 {
            let mut byte = 0;
            write(ready[1], &b'r', 1);
            read(release[0], &mut byte, 1);
            _exit(0);
        }
        waitpid(child, std::ptr::null_mut(), 0);
        result("vfork done".into());
    });
    let mut byte = 0;
    unsafe { read(ready[0], &mut byte, 1) };
    format!("{parent} {}", release[1])
}

/// For a remote call: a function that waits where nothing interrupts it, until a byte comes through the pipe.
extern "C" fn vfork_and_wait(fd: c_int) -> u64 {
    unsafe {
        let child = vfork();
        if child == 0 {
            let mut byte = 0;
            read(fd, &mut byte, 1);
            _exit(0);
        }
        waitpid(child, std::ptr::null_mut(), 0);
    }
    9
}

/// For a remote call: a function that waits for a byte.
extern "C" fn read_one(fd: c_int) -> u64 {
    let mut byte = 0;
    unsafe { read(fd, &mut byte, 1) as u64 }
}

/// Makes the kernel answer `getppid` with SIGSYS, `getuid` with EACCES and `getgid` with SIGKILL on this thread.
fn filter() {
    #[repr(C)]
    struct Step(u16, u8, u8, u32);
    #[repr(C)]
    struct Program(u16, *const Step);
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let steps = [
        Step(LOAD, 0, 0, 0),
        Step(JUMP_IF_EQUAL, 0, 1, 110),
        Step(RETURN, 0, 0, 0x0003_0000),
        Step(JUMP_IF_EQUAL, 0, 1, 102),
        Step(RETURN, 0, 0, 0x0005_000d),
        Step(JUMP_IF_EQUAL, 0, 1, 104),
        Step(RETURN, 0, 0, 0x8000_0000),
        Step(RETURN, 0, 0, 0x7fff_0000),
    ];
    let program = Program(steps.len() as u16, steps.as_ptr());
    unsafe {
        assert_eq!(prctl(38, 1_u64, 0_u64, 0_u64, 0_u64), 0);
        assert_eq!(prctl(22, 2_u64, &program, 0_u64, 0_u64), 0);
    }
}

fn obey(line: &str) -> String {
    let mut words = line.split(' ');
    let command = words.next().unwrap_or_default();
    let number = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    match command {
        "echo" => return line.into(),
        // Threads that only sleep.
        "idle" => {
            for _ in 0..number {
                thread(|| loop {
                    std::thread::park();
                });
            }
        }
        // Threads that sleep and tick.
        "tick" => {
            for _ in 0..number {
                thread(|| {
                    loop {
                        TICKS.fetch_add(1, SeqCst);
                        std::thread::park_timeout(Duration::from_millis(1));
                    }
                });
            }
        }
        // Threads that start threads that end.
        "churn" => {
            for _ in 0..number {
                thread(|| {
                    loop {
                        std::thread::spawn(|| TICKS.fetch_add(1, SeqCst)).join().unwrap();
                    }
                });
            }
        }
        "guard" => return thread(guard_loop).to_string(),
        "hot" => {
            return thread(|| {
                let mut n = 0;
                loop {
                    let next = unsafe { hot(n) };
                    if next != n + 1 {
                        BAD.fetch_add(1, SeqCst);
                    }
                    n = next;
                    TICKS.store(n, SeqCst);
                }
            })
            .to_string();
        }
        "blockers" => return blockers(),
        "unblock" => FUTEX.store(1, SeqCst),
        "results" => {
            while RESULTS.lock().unwrap().len() < number as usize {
                std::thread::yield_now();
            }
            let mut results = RESULTS.lock().unwrap().clone();
            results.sort();
            return results.join(",");
        }
        // A thread that executes a breakpoint of its own.
        "trap" => return thread(|| unsafe { asm!("int3") }).to_string(),
        "catch" => set_action(number as c_int, on_signal as *const () as usize),
        "default" => set_action(number as c_int, 0),
        "signals" => return format!("{} {}", SIGNALS.load(SeqCst), SIGNAL_SUM.load(SeqCst)),
        "filter" => filter(),
        "pipe" => {
            let mut fds = [0; 2];
            assert_eq!(unsafe { pipe(fds.as_mut_ptr()) }, 0);
            return format!("{} {}", fds[0], fds[1]);
        }
        "vfork" => return vfork_until_released(),
        "release" => unsafe {
            write(number as c_int, &b'x', 1);
        },
        // The first thread exits, the process lives on in another thread that obeys.
        "leave" => {
            std::thread::spawn(serve);
            unsafe { syscall(SYS_EXIT, 0_i64) };
        }
        "exec" => unsafe {
            let argv = [b"/bin/cat\0".as_ptr(), std::ptr::null()];
            execv(argv[0], argv.as_ptr());
        },
        "quit" => std::process::exit(0),
        _ => panic!("unknown line {line:?}"),
    }
    "ok".into()
}

fn serve() {
    let mut line = String::new();
    loop {
        line.clear();
        if std::io::stdin().read_line(&mut line).unwrap() == 0 {
            std::process::exit(0);
        }
        // `leave` does not return, and holds no lock here.
        if line.trim() == "leave" {
            println!("ok");
        }
        let answer = obey(line.trim());
        println!("{answer}");
        std::io::stdout().flush().unwrap();
    }
}

fn main() {
    // SIGSEGV is no use here: the C library's or std's handler takes it. SIGUSR1, SIGTRAP and a realtime signal are ours.
    for signal in [10, 5, 36] {
        set_action(signal, on_signal as *const () as usize);
    }
    let facts: [(&str, usize); 13] = [
        ("read_one", read_one as *const () as usize),
        ("vfork_and_wait", vfork_and_wait as *const () as usize),
        ("six", six as *const () as usize),
        ("entry_state", entry_state as *const () as usize),
        ("control_words", control_words as *const () as usize),
        ("clobber", clobber as *const () as usize),
        ("spin", spin as *const () as usize),
        ("fault", fault as *const () as usize),
        ("hot", hot as *const () as usize),
        ("ticks", TICKS.as_ptr() as usize),
        ("spins", SPINS.as_ptr() as usize),
        ("bad", BAD.as_ptr() as usize),
        ("main", main as *const () as usize),
    ];
    for (name, value) in facts {
        println!("{name} {value}");
    }
    println!("ready");
    serve();
}
