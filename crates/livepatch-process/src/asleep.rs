//! Looking at a sleeping thread without stopping it.
//!
//! The kernel tells where a thread that is off the processor will go on in user mode: instruction and stack pointer, in
//! `/proc/PID/task/TID/syscall`. The stack can be read through the process's memory. All of that belongs together as long as the
//! thread has not run since, which the counters in `/proc/PID/task/TID/schedstat` show: time on a processor in nanoseconds, and
//! how often it got one (proc(5), `Documentation/scheduler/sched-stats.rst` of the kernel). So the counters are read first
//! and once more at the end.

use crate::{Process, Tid};
use livepatch_patch::RunAddr;
use std::fs::File;
use std::io::Read;

/// A thread off the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asleep {
    /// Its stack pointer in user mode.
    pub sp: RunAddr,
    /// Its next instruction in user mode.
    pub ip: RunAddr,
    /// The number of the system call that it is in. Outside one it waits for something that it does not know of: a page, a
    /// debugger.
    pub syscall: Option<u64>,
    runs: Runs,
}

/// How often and how long a thread has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Runs {
    time: u64,
    times: u64,
}

impl Asleep {
    /// How often the thread got a processor in its life.
    pub fn times(&self) -> u64 {
        self.runs.times
    }
}

impl Process {
    /// Where a thread will go on; `None` if it runs or wants to, is gone, or the kernel does not tell.
    pub fn asleep(&self, tid: Tid) -> Option<Asleep> {
        let runs = self.runs(tid)?;
        self.read_line(tid, "syscall", |text| parse_syscall(text, runs))
    }

    /// Whether the thread has not run since it was looked at, so that what was read of its stack meanwhile is its stack.
    pub fn slept_since(&self, tid: Tid, asleep: &Asleep) -> bool {
        self.runs(tid) == Some(asleep.runs)
    }

    /// Whether a thread is off the processor and in a system call.
    pub fn in_system_call(&self, tid: Tid) -> bool {
        let nothing = Runs { time: 0, times: 0 };
        let asleep = self.read_line(tid, "syscall", |text| parse_syscall(text, nothing));
        asleep.is_some_and(|asleep| asleep.syscall.is_some())
    }

    fn runs(&self, tid: Tid) -> Option<Runs> {
        self.read_line(tid, "schedstat", parse_schedstat)
    }

    /// Reads a file that the kernel prints at once, with as few system calls as possible.
    fn read_line<T>(&self, tid: Tid, name: &str, parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        let mut buffer = [0; 512];
        let mut file = File::open(format!("/proc/{}/task/{tid}/{name}", self.pid())).ok()?;
        let len = file.read(&mut buffer).ok()?;
        parse(&buffer[..len])
    }
}

fn parse_schedstat(text: &[u8]) -> Option<Runs> {
    let mut numbers = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let time = numbers.next()?.parse().ok()?;
    let times = numbers.nth(1)?.parse().ok()?;
    // A kernel that does not count says 0 0 0; every living thread has run.
    (times != 0).then_some(Runs { time, times })
}

/// `running`, or the number of the system call with six arguments (−1 outside one, without arguments), stack pointer and
/// instruction pointer.
fn parse_syscall(text: &[u8], runs: Runs) -> Option<Asleep> {
    let fields: Vec<&str> = std::str::from_utf8(text).ok()?.split_ascii_whitespace().collect();
    let number: i64 = fields.first()?.parse().ok()?;
    let [.., sp, ip] = fields[..] else { return None };
    if fields.len() < 3 {
        return None;
    }
    let address = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok().map(RunAddr);
    Some(Asleep { sp: address(sp)?, ip: address(ip)?, syscall: u64::try_from(number).ok(), runs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_prints() {
        let runs = parse_schedstat(b"123 45 6\n").unwrap();
        assert_eq!(runs, Runs { time: 123, times: 6 });
        assert_eq!(parse_schedstat(b"0 0 0\n"), None);
        assert_eq!(parse_schedstat(b""), None);
        let waits = parse_syscall(b"232 0x3 0x7f 0x1 0x2 0x0 0x8 0x7ffe10 0x7f55aa\n", runs).unwrap();
        assert_eq!((waits.sp, waits.ip, waits.syscall), (RunAddr(0x7ffe10), RunAddr(0x7f55aa), Some(232)));
        let faults = parse_syscall(b"-1 0x7ffe10 0x7f55aa\n", runs).unwrap();
        assert_eq!((faults.ip, faults.syscall), (RunAddr(0x7f55aa), None));
        assert_eq!(parse_syscall(b"running\n", runs), None);
        assert_eq!(parse_syscall(b"-1 0x7ffe10\n", runs), None);
    }
}
