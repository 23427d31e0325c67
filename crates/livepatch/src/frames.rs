//! The calling thread's own stack, as a hint only: whether the thread is inside a changed function is for the engine to decide.

use nix::libc::{c_int, c_void};

/// Frames that are looked at.
const MOST: usize = 512;

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

/// Return addresses of the calling thread, innermost first.
pub(crate) fn own() -> Vec<u64> {
    let mut frames: Vec<u64> = Vec::with_capacity(MOST);
    // SAFETY: `visit` does not unwind and gets back the pointer to `frames`, which outlives the call.
    unsafe { _Unwind_Backtrace(visit, (&raw mut frames).cast()) };
    frames
}

extern "C-unwind" fn visit(context: *mut c_void, data: *mut c_void) -> c_int {
    // SAFETY: `data` is the vector that `own` lent to `_Unwind_Backtrace`, on this thread, for the duration of the call.
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
        let below = if levels == 0 { own().len() } else { deep(levels - 1) };
        std::hint::black_box(below)
    }

    #[test]
    fn frames_are_found_and_bounded() {
        assert!(deep(20) > deep(0) + 15);
        assert_eq!(deep(2 * MOST as u32), MOST);
    }
}
