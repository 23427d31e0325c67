//! The helper's own time limit.
//!
//! While the helper holds the program's threads, the program cannot watch over it. So the kernel does: a timer whose signal is
//! SIGKILL, which ends a helper that loops, waits, or was stopped, and with it everything that it holds.

use nix::errno::Errno;
use nix::libc;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

/// Has this process killed after this time. The timer lives as long as the process.
pub(super) fn arm(limit: Duration) -> Result<(), Errno> {
    let mut timer: libc::timer_t = ptr::null_mut();
    let value = libc::itimerspec {
        it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: libc::timespec {
            tv_sec: limit.as_secs().cast_signed(),
            // A time of zero would disarm the timer.
            tv_nsec: i64::from(limit.subsec_nanos()).max(1),
        },
    };
    // SAFETY: all zero is a value of the struct; signal and kind are set. timer_create writes the timer's id through a pointer
    // to a variable of that type, and timer_settime reads one struct.
    unsafe {
        let mut event: libc::sigevent = MaybeUninit::zeroed().assume_init();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        Errno::result(libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer))?;
        Errno::result(libc::timer_settime(timer, 0, &raw const value, ptr::null_mut()))?;
    }
    Ok(())
}
