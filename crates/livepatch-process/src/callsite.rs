//! Memory of ours in the target from which functions are called: a few instructions, marks, room for strings, a stack.
//!
//! ```text
//! 0x0000  code, r-x: begun = 1; call *%r11; result = rax; begun = 2; back: rt_sigreturn; jump back
//! 0x1000  mark (u64) · result (u64) · strings from 0x1010                                   rw-
//! 0x2000  stack; at its end the signal frame of the thread that calls                        rw-
//! ```
//!
//! The thread sets the marks itself, so that a later run of the tool knows how far the call of a killed one came.

use crate::error::{ProcessError, RemoteError};
use crate::sigframe::{LINK_AT, MARK};
use crate::{PAGE_SIZE, Process, Protection, StoppedThread, Tid};
use livepatch_patch::RunAddr;
use std::ops::Range;
use std::time::Instant;

const MARK_AT: i64 = PAGE_SIZE as i64;
const RESULT_AT: i64 = MARK_AT + 8;
const TEXT_AT: i64 = MARK_AT + 16;
const STACK_AT: i64 = 2 * PAGE_SIZE as i64;

/// The instructions. Displacements are from the end of each to the marks.
const CODE: [u8; 33] = [
    0xc6, 0x05, 0xf9, 0x0f, 0, 0, 1, // 0: movb $1, mark(%rip)
    0x41, 0xff, 0xd3, // 7: call *%r11
    0x48, 0x89, 0x05, 0xf7, 0x0f, 0, 0, // 10: mov %rax, result(%rip)
    0xc6, 0x05, 0xe8, 0x0f, 0, 0, 2, // 17: movb $2, mark(%rip)
    0xb8, 15, 0, 0, 0, // 24: mov $15, %eax
    0x0f, 0x05, // 29: syscall
    0xeb, 0xf7, // 31: jmp 24
];
const BACK_AT: i64 = 24;
const SIGRETURN_END: i64 = 31;

/// How far the last call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallProgress {
    /// It was prepared. Unless a thread is on its way there, it was never begun.
    Prepared,
    /// The function was entered and has not returned.
    Begun,
    /// The function has returned.
    Returned,
    /// There was none since this was noted.
    None,
    /// It was broken off: the function was entered, perhaps, and did not come to its end.
    BrokenOff,
}

/// A place from which functions of the target are called, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSite {
    base: RunAddr,
}

impl CallSite {
    /// Size of its memory.
    pub const SIZE: u64 = 256 << 10;

    /// The call site at the start of mapped memory of [`Self::SIZE`] bytes.
    pub fn at(base: RunAddr) -> Self {
        Self { base }
    }

    /// Its memory.
    pub fn range(&self) -> Range<RunAddr> {
        self.base..self.base.offset(Self::SIZE as i64)
    }

    /// Protects the memory (which may be protected in any way) and writes the instructions.
    ///
    /// # Errors
    /// As [`StoppedThread::remote_syscall`].
    pub fn prepare(&self, thread: &mut StoppedThread<'_>, deadline: Instant) -> Result<(), RemoteError> {
        let data = self.base.offset(MARK_AT);
        thread.protect(data, Self::SIZE - PAGE_SIZE, Protection::ReadWrite, deadline)?;
        thread.protect(self.base, PAGE_SIZE, Protection::ReadExecute, deadline)?;
        self.set_progress(thread.process(), CallProgress::None)?;
        Ok(thread.process().write(self.base, &CODE)?)
    }

    /// Whether the instructions are there.
    pub fn is_ready(&self, process: &Process) -> bool {
        process.read_array(self.base).is_ok_and(|found| found == CODE)
    }

    /// Puts a zero-terminated string there, for the arguments of the next call. It replaces the one before.
    ///
    /// # Errors
    /// It is longer than a page.
    pub fn put_string(&self, process: &Process, text: &[u8]) -> Result<RunAddr, ProcessError> {
        let at = self.base.offset(TEXT_AT);
        if text.len() as i64 >= STACK_AT - TEXT_AT {
            let long = std::io::Error::from(std::io::ErrorKind::InvalidInput);
            return Err(ProcessError::io(process.pid(), "put a string of that length into the memory", long));
        }
        process.write(at, &[text, &[0]].concat())?;
        Ok(at)
    }

    /// How far the last call came.
    pub fn progress(&self, process: &Process) -> Result<CallProgress, ProcessError> {
        Ok(match process.read_u64(self.base.offset(MARK_AT))? {
            0 => CallProgress::Prepared,
            1 => CallProgress::Begun,
            2 => CallProgress::Returned,
            3 => CallProgress::None,
            _ => CallProgress::BrokenOff,
        })
    }

    /// Notes how far the last call came. The caller knows that no thread is here.
    pub fn set_progress(&self, process: &Process, progress: CallProgress) -> Result<(), ProcessError> {
        let mark: u64 = match progress {
            CallProgress::Prepared => 0,
            CallProgress::Begun => 1,
            CallProgress::Returned => 2,
            CallProgress::None => 3,
            CallProgress::BrokenOff => 4,
        };
        process.write(self.base.offset(MARK_AT), &mark.to_le_bytes())
    }

    pub(crate) fn result(&self, process: &Process) -> Result<u64, ProcessError> {
        process.read_u64(self.base.offset(RESULT_AT))
    }

    pub(crate) fn entry(&self) -> RunAddr {
        self.base
    }

    /// Where a thread goes on with nothing but `rt_sigreturn`.
    pub(crate) fn back(&self) -> RunAddr {
        self.base.offset(BACK_AT)
    }

    /// The instruction pointer at the stops of `rt_sigreturn`.
    pub(crate) fn sigreturn_end(&self) -> RunAddr {
        self.base.offset(SIGRETURN_END)
    }
}

impl Process {
    /// Whether a thread that is off the processor is in remote work, as [`StoppedThread::in_remote_work`]; `None` if it runs or wants to.
    pub fn sleeps_in_remote_work(&self, tid: Tid, site: &CallSite) -> Option<bool> {
        let asleep = self.asleep(tid)?;
        let inside = is_remote_work(self, site, asleep.ip, asleep.sp);
        self.slept_since(tid, &asleep).then_some(inside)
    }
}

impl StoppedThread<'_> {
    /// Whether the thread still is in remote work of a tool that was killed: in a call from this site, or in a system call. It
    /// gets out of it by itself when it runs, and no other thread gets into it.
    pub fn in_remote_work(&self, site: &CallSite) -> Result<bool, ProcessError> {
        let regs = self.regs()?;
        Ok(is_remote_work(self.process(), site, regs.ip(), regs.sp()))
    }
}

fn is_remote_work(process: &Process, site: &CallSite, ip: RunAddr, sp: RunAddr) -> bool {
    site.range().contains(&sp) || site.range().contains(&ip) || has_frame(process, sp)
}

/// Whether the stack pointer is at a signal frame of ours, or at most three words below it.
fn has_frame(process: &Process, sp: RunAddr) -> bool {
    let mut words = [0; 5 * 8];
    let read = process.read(sp, &mut words).is_ok();
    let at = |word: i64| words[(word * 8 + LINK_AT) as usize..][..8] == MARK.to_le_bytes();
    read && (0..=3).any(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displacements_lead_to_the_marks() {
        let displacement = |at: usize| i64::from(i32::from_le_bytes(*CODE[at..].first_chunk().unwrap()));
        assert_eq!(7 + displacement(2), MARK_AT);
        assert_eq!(17 + displacement(13), RESULT_AT);
        assert_eq!(24 + displacement(19), MARK_AT);
        assert_eq!(CODE.len() as i64 + i64::from(CODE[32] as i8), BACK_AT);
        assert_eq!(CODE[29..SIGRETURN_END as usize], [0x0f, 0x05]);
    }
}
