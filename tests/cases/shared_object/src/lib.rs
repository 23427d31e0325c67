use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

static CALLS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static CALLS_OF_THREAD: Cell<u32> = const { Cell::new(0) };
}

fn vat(net: u64) -> u64 {
    net * 19 / 100 //-
    (net * 19 + 50) / 100 //+
}

#[unsafe(no_mangle)]
pub extern "C" fn total(net: u64) -> u64 {
    CALLS.fetch_add(1, Ordering::Relaxed);
    CALLS_OF_THREAD.set(CALLS_OF_THREAD.get() + 1);
    net + vat(net)
}

/// The calls so far; 0 if the two counters disagree, which they never may.
#[unsafe(no_mangle)]
pub extern "C" fn calls() -> u32 {
    let calls = CALLS.load(Ordering::Relaxed);
    if calls == CALLS_OF_THREAD.get() { calls } else { 0 }
}
