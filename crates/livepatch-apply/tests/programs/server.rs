//! Answers commands on standard input, one line each. Every function is reached by name so that a test can redirect it.
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

#[unsafe(no_mangle)]
pub static COUNTER: AtomicU64 = AtomicU64::new(5);
static STOP: AtomicBool = AtomicBool::new(false);

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn value() -> u64 {
    1
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn other() -> u64 {
    10
}

/// Runs the callback inside of a frame of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C-unwind" fn hold(inner: extern "C-unwind" fn()) -> u64 {
    black_box(COUNTER.load(Ordering::Relaxed));
    inner();
    black_box(3)
}

// Branches back into its first five bytes.
std::arch::global_asm!(
    ".section .text.looping,\"ax\",@progbits",
    ".globl looping",
    ".type looping,@function",
    "looping: xor eax, eax",
    "2: inc eax",
    "cmp eax, edi",
    "jne 2b",
    "ret",
    ".size looping, . - looping",
    ".p2align 4, 0xcc",
    ".text",
);

/// How many threads have come to wait, and the news of it.
static WAITING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

extern "C-unwind" fn wait_for_stop() {
    *WAITING.0.lock().unwrap() += 1;
    WAITING.1.notify_all();
    while !STOP.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

fn main() {
    let mut held: Vec<std::thread::JoinHandle<u64>> = Vec::new();
    let mut spinners = Vec::new();
    let out = std::io::stdout();
    let say = |text: String| {
        let mut out = out.lock();
        writeln!(out, "{text}").unwrap();
        out.flush().unwrap();
    };
    say("ready".into());
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "value" => say(black_box(value as extern "C" fn() -> u64)().to_string()),
            "value in a thread" => say(
                std::thread::spawn(|| black_box(value as extern "C" fn() -> u64)()).join().unwrap().to_string(),
            ),
            "other" => say(black_box(other as extern "C" fn() -> u64)().to_string()),
            "counter" => say(COUNTER.load(Ordering::Relaxed).to_string()),
            "hold" => {
                let before = *WAITING.0.lock().unwrap();
                held.push(
                    std::thread::Builder::new().name("holder".into()).spawn(|| hold(wait_for_stop)).unwrap(),
                );
                let waiting = WAITING.0.lock().unwrap();
                drop(WAITING.1.wait_while(waiting, |waiting| *waiting == before).unwrap());
                say("held".into());
            }
            "release" => {
                STOP.store(true, Ordering::Relaxed);
                for thread in held.drain(..) {
                    thread.thread().unpark();
                    thread.join().unwrap();
                }
                say("released".into());
            }
            "spin" => {
                spinners.push(std::thread::spawn(|| {
                    let mut sum = 0u64;
                    while !STOP.load(Ordering::Relaxed) {
                        sum = sum.wrapping_add(black_box(value as extern "C" fn() -> u64)());
                    }
                    sum
                }));
                say("spinning".into());
            }
            "looping" => say(unsafe { looping(3) }.to_string()),
            "spare" => say(format!("{:#x}", spare())),
            "panic" => {
                let result = std::panic::catch_unwind(|| {
                    hold(throw);
                });
                say(format!("caught {}", result.is_err()));
            }
            other => match other.strip_prefix("kill for ") {
                Some(number) => say(kill_for(number.parse().unwrap()).to_string()),
                None => say(format!("? {other}")),
            },
        }
    }
}

unsafe extern "C" {
    fn looping(times: u32) -> u32;
    fn prctl(option: i32, ...) -> i32;
    fn syscall(number: i64, ...) -> i64;
    fn mmap(addr: usize, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> usize;
}

/// From here on the system call of this number kills the process, whichever thread makes it.
fn kill_for(number: u32) -> i64 {
    #[repr(C)]
    struct Step(u16, u8, u8, u32);
    #[repr(C)]
    struct Filter(u16, *const Step);
    let steps = [
        Step(0x20, 0, 0, 0),
        Step(0x15, 0, 1, number),
        Step(0x06, 0, 0, 0x8000_0000),
        Step(0x06, 0, 0, 0x7fff_0000),
    ];
    let filter = Filter(steps.len() as u16, steps.as_ptr());
    unsafe {
        prctl(38, 1_u64, 0_u64, 0_u64, 0_u64);
        syscall(317, 1_u64, 1_u64, &filter)
    }
}

/// A page that nobody uses, apart from all others.
fn spare() -> usize {
    unsafe { mmap(0x1234_5000_0000, 4096, 0, 0x22, -1, 0) }
}

extern "C-unwind" fn throw() {
    panic!("thrown");
}
