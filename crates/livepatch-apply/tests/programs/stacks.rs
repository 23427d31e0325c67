//! Threads in all kinds of places, for ever.
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::sync::mpsc;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn qsort(base: *mut c_void, count: usize, size: usize, compare: extern "C" fn(*const c_void, *const c_void) -> c_int);
    fn signal(signal: c_int, handler: usize) -> usize;
    fn raise(signal: c_int) -> c_int;
}

#[inline(never)]
fn deep(depth: u64) -> u64 {
    let pad = black_box([depth; 8]);
    if depth == 0 { pad[3] } else { black_box(deep(depth - 1)) + pad[1] }
}

#[inline(never)]
fn tiny(x: u64) -> u64 {
    x.wrapping_mul(3)
}

#[inline(never)]
fn tiny_with_push(x: u64, f: fn(u64) -> u64) -> u64 {
    f(x) ^ f(x + 1)
}

extern "C" fn sorter(a: *const c_void, b: *const c_void) -> c_int {
    let (a, b) = unsafe { (*a.cast::<u32>(), *b.cast::<u32>()) };
    let mut spin = 0u32;
    for i in 0..20 {
        spin = black_box(spin.wrapping_add(i));
    }
    a.cmp(&b) as c_int
}

extern "C" fn on_signal(_: c_int) {
    for i in 0..2000 {
        black_box(i);
    }
}

#[inline(never)]
fn hook() {
    for i in 0..2000 {
        black_box(i);
    }
}

#[inline(never)]
fn clock() {
    for _ in 0..1000 {
        black_box(Instant::now());
    }
}

#[inline(never)]
fn waiter() {
    let (lock, condition) = (Mutex::new(()), Condvar::new());
    let mut guard = lock.lock().unwrap();
    loop {
        guard = condition.wait_timeout(guard, Duration::from_millis(1)).unwrap().0;
    }
}

fn main() {
    std::panic::set_hook(Box::new(|_| hook()));
    let (tell, told) = mpsc::channel();
    let spawn = |name: &str, work: fn()| {
        let tell = tell.clone();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                tell.send(()).unwrap();
                loop {
                    work();
                }
            })
            .unwrap();
    };
    spawn("deep", || { black_box(deep(black_box(500))); });
    spawn("tiny", || {
        let mut x = 0;
        for _ in 0..10_000 {
            x = black_box(tiny as fn(u64) -> u64)(x) + tiny_with_push(x, black_box(tiny));
        }
        black_box(x);
    });
    spawn("sort", || {
        let mut data: Vec<u32> = (0..500u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        unsafe { qsort(data.as_mut_ptr().cast(), data.len(), 4, sorter) };
        black_box(data);
    });
    spawn("signal", || unsafe {
        signal(10, on_signal as extern "C" fn(c_int) as usize);
        raise(10);
    });
    spawn("panic", || { let _ = std::panic::catch_unwind(|| panic!("again")); });
    spawn("clock", clock);
    spawn("wait", waiter);
    spawn("alloc", || {
        let data: Vec<Vec<u8>> = (1..200).map(|i| vec![1; i * 97]).collect();
        black_box(format!("{:?}", data.len()));
    });
    spawn("spawn", || { std::thread::spawn(|| black_box(1)).join().unwrap(); });
    for _ in 0..9 {
        told.recv().unwrap();
    }
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    std::process::exit(0);
}
