//! A shared object with state of its own, loaded by a host that knows nothing of it.
use std::cell::Cell;

thread_local!(static CALLS: Cell<u64> = const { Cell::new(40) });

#[unsafe(no_mangle)]
pub extern "C" fn calls() -> u64 {
    CALLS.with(|calls| {
        calls.set(calls.get() + 1);
        calls.get()
    })
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn answer() -> u64 {
    1
}

/// Reached through `answer`'s caller as any plugin function is.
#[unsafe(no_mangle)]
pub extern "C" fn entry() -> u64 {
    std::hint::black_box(answer as extern "C" fn() -> u64)()
}
