//! The helper's own time limit.
//!
//! While the helper holds the program's threads, the program cannot watch over it. So the kernel does: a timer whose signal is
//! SIGKILL, which ends a helper that loops, waits, or was stopped, and with it everything that it holds.

use nix::errno::Errno;
use nix::libc;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

/// Has this process killed after this time. The timer lives as long as the process.
pub(super) fn arm(limit: Duration) -> io::Result<()> {
    // The kernel's own kind of id.
    let mut timer: libc::c_int = 0;
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
        let clock = libc::CLOCK_MONOTONIC;
        Errno::result(libc::syscall(libc::SYS_timer_create, clock, &raw mut event, &raw mut timer))?;
        let none = ptr::null_mut::<libc::itimerspec>();
        Errno::result(libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const value, none))?;
    }
    Ok(())
}
