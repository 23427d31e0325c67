//! Looking at a sleeping thread without stopping it.
//!
//! The kernel tells where a thread that is off the processor will go on in user mode: instruction and stack pointer, in
//! `/proc/PID/task/TID/syscall`. The stack can be read through the process's memory. All of that belongs together as long as the
//! thread has not run since, which the counters in `/proc/PID/task/TID/schedstat` show: time on a processor in nanoseconds, and
//! how often it got one (proc(5), `Documentation/scheduler/sched-stats.rst` of the kernel). So the counters are read first
//! and once more at the end.

use crate::counters::Counters;
use crate::tasks::read_line;
use crate::{Process, Tid};
use livepatch_patch::RunAddr;
use std::fs::File;

/// A thread off the processor.
#[derive(Debug)]
pub struct Asleep {
    /// Its stack pointer in user mode.
    pub sp: RunAddr,
    /// Its next instruction in user mode.
    pub ip: RunAddr,
    /// The number of the system call that it is in. Outside one it waits for something that it does not know of: a page, a
    /// debugger.
    pub syscall: Option<u64>,
    runs: Runs,
    counters: Counters,
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
        let counters = self.counters(tid)?;
        let runs = runs(&counters)?;
        let (sp, ip, syscall) = self.in_user_mode(tid)?;
        Some(Asleep { sp, ip, syscall, runs, counters: Counters::keep(counters) })
    }

    /// Whether the thread has not run since it was looked at, so that what was read of its stack meanwhile is its stack.
    pub fn slept_since(&self, tid: Tid, asleep: &Asleep) -> bool {
        let now = match asleep.counters.file() {
            Some(file) => runs(file),
            None => self.counters(tid).and_then(|file| runs(&file)),
        };
        now == Some(asleep.runs)
    }

    /// Whether a thread is off the processor and in a system call.
    pub fn in_system_call(&self, tid: Tid) -> bool {
        self.in_user_mode(tid).is_some_and(|(_, _, syscall)| syscall.is_some())
    }

    fn counters(&self, tid: Tid) -> Option<File> {
        self.inner.tasks.file(tid, "schedstat").ok()
    }

    fn in_user_mode(&self, tid: Tid) -> Option<Place> {
        let mut buffer = [0; 512];
        parse_syscall(read_line(&self.inner.tasks.file(tid, "syscall").ok()?, &mut buffer)?)
    }
}

/// Stack pointer, instruction pointer, and the number of the system call.
type Place = (RunAddr, RunAddr, Option<u64>);

fn runs(counters: &File) -> Option<Runs> {
    parse_schedstat(read_line(counters, &mut [0; 128])?)
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
fn parse_syscall(text: &[u8]) -> Option<Place> {
    let fields: Vec<&str> = std::str::from_utf8(text).ok()?.split_ascii_whitespace().collect();
    let number: i64 = fields.first()?.parse().ok()?;
    let [.., sp, ip] = fields[..] else { return None };
    if fields.len() < 3 {
        return None;
    }
    let address = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok().map(RunAddr);
    Some((address(sp)?, address(ip)?, u64::try_from(number).ok()))
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
        let waits = parse_syscall(b"232 0x3 0x7f 0x1 0x2 0x0 0x8 0x7ffe10 0x7f55aa\n").unwrap();
        assert_eq!(waits, (RunAddr(0x7ffe10), RunAddr(0x7f55aa), Some(232)));
        let faults = parse_syscall(b"-1 0x7ffe10 0x7f55aa\n").unwrap();
        assert_eq!((faults.1, faults.2), (RunAddr(0x7f55aa), None));
        assert_eq!(parse_syscall(b"running\n"), None);
        assert_eq!(parse_syscall(b"-1 0x7ffe10\n"), None);
    }
}
