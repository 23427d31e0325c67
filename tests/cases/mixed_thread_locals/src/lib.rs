use std::cell::Cell;

thread_local! {
    static CALLS: Cell<u32> = const { Cell::new(0) };
    static LAST: Cell<u64> = const { Cell::new(0) }; //+
}

#[unsafe(no_mangle)]
pub extern "C" fn total(net: u64) -> u64 {
    CALLS.set(CALLS.get() + 1);
    net + 85 //-
    net + 85 + LAST.replace(net) //+
}

#[unsafe(no_mangle)]
pub extern "C" fn calls() -> u32 {
    CALLS.get()
}
