//! The calling thread's own stack, as a hint only: whether the thread is inside a changed function is for the engine to decide.

use nix::libc::{c_int, c_void};

/// Frames that are looked at.
const MOST: usize = 1 << 16;

/// `_URC_NO_REASON` and `_URC_END_OF_STACK` of `<unwind.h>`.
const CONTINUE: c_int = 0;
const END: c_int = 5;

unsafe extern "C-unwind" {
    fn _Unwind_Backtrace(
        visit: extern "C-unwind" fn(*mut c_void, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// The places that the calling thread's frames return to, each once.
pub(crate) fn own() -> Vec<u64> {
    let mut frames = walk();
    // The outermost function returns nowhere.
    frames.retain(|frame| *frame != 0);
    frames.sort_unstable();
    frames.dedup();
    frames
}

fn walk() -> Vec<u64> {
    let mut frames: Vec<u64> = Vec::new();
    // SAFETY: `visit` does not unwind and gets back the pointer to `frames`, which outlives the call.
    unsafe { _Unwind_Backtrace(visit, (&raw mut frames).cast()) };
    frames
}

extern "C-unwind" fn visit(context: *mut c_void, data: *mut c_void) -> c_int {
    // SAFETY: `data` is the vector that `walk` lent to `_Unwind_Backtrace`, on this thread, for the duration of the call.
    let frames = unsafe { &mut *data.cast::<Vec<u64>>() };
    if frames.len() == MOST {
        return END;
    }
    // SAFETY: the unwinder passes a context that is valid during this call.
    frames.push(unsafe { _Unwind_GetIP(context) } as u64);
    CONTINUE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn deep(levels: u32) -> usize {
        let below = if levels == 0 { walk().len() } else { deep(levels - 1) };
        std::hint::black_box(below)
    }

    #[test]
    fn frames_are_found_and_bounded() {
        assert!(deep(20) > deep(0) + 15);
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(|| deep(2 * MOST as u32));
        assert_eq!(thread.expect("a thread").join().expect("no panic"), MOST);
    }

    #[test]
    fn every_place_is_in_some_code() {
        let frames = own();
        assert!(!frames.is_empty() && !frames.contains(&0));
    }
}
