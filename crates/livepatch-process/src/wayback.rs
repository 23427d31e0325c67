//! Instructions of the target that lead a thread through a system call and back into its own state.
//!
//! ```text
//! sp → address of the restorer      the thread executes `syscall; ret`,
//!      signal frame …               then `mov $15, %eax; syscall` with sp at the frame
//! ```
//!
//! Every C library has both: `syscall; ret` ends its small system call functions, and the restorer is what signal handlers
//! return to. A program that has no restorer has a `pop %rax; ret` somewhere, which does with two more words.

use crate::drive::Saved;
use crate::error::{ProcessError, RemoteError};
use crate::sigframe::{LINK_AT, SignalFrame};
use crate::{Mapping, PAGE_SIZE, Process, Seized, Status, StoppedThread};
use livepatch_patch::RunAddr;
use nix::libc;

/// `syscall; ret`.
const SYSCALL_RET: [u8; 3] = [0x0f, 0x05, 0xc3];
/// Size of `syscall`.
pub(crate) const SYSCALL_SIZE: i64 = 2;
/// `mov $15, %rax; syscall` and `mov $15, %eax; syscall`.
const RESTORERS: [&[u8]; 2] =
    [&[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05], &[0xb8, 15, 0, 0, 0, 0x0f, 0x05]];
/// `pop %rax; ret`.
const POP_RET: [u8; 2] = [0x58, 0xc3];
/// How much code is looked at in one piece.
const PIECE: u64 = 256 << 10;

/// Bytes below the stack pointer that belong to the running function (System V psABI, section 3.2.2).
pub(crate) const RED_ZONE: i64 = 128;
/// Free space below what is laid down on a stack, so that a signal finds room, too.
const SPARE: i64 = PAGE_SIZE as i64;

/// Where the instructions are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gadgets {
    /// `syscall; ret`.
    pub syscall: RunAddr,
    back: Back,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Back {
    Restorer { at: RunAddr, code: &'static [u8] },
    Pop(RunAddr),
}

impl Gadgets {
    /// Searches the executable memory, small files first: the C library comes before a large program.
    fn find(process: &Process, maps: &[Mapping]) -> Option<Self> {
        let mut code: Vec<_> = maps.iter().filter(|map| map.perms.execute && map.perms.read).collect();
        code.sort_by_key(|map| (map.path().is_none(), map.len()));
        let mut search = Search::default();
        for map in &code {
            search.mapping(process, map);
            if let Search { syscall: Some(syscall), restorer: Some((at, code)), .. } = search {
                return Some(Self { syscall, back: Back::Restorer { at, code } });
            }
        }
        Some(Self { syscall: search.syscall?, back: Back::Pop(search.pop?) })
    }

    /// Whether they are still there.
    fn hold(&self, process: &Process) -> bool {
        let is = |at: RunAddr, code: &[u8]| process.read_vec(at, code.len()).is_ok_and(|found| found == code);
        is(self.syscall, &SYSCALL_RET)
            && match self.back {
                Back::Restorer { at, code } => is(at, code),
                Back::Pop(at) => is(at, &POP_RET),
            }
    }

    /// What stands on the stack below the frame.
    fn words(&self) -> Vec<u64> {
        match self.back {
            Back::Restorer { at, .. } => vec![at.0],
            Back::Pop(at) => vec![at.0, libc::SYS_rt_sigreturn as u64, self.syscall.0],
        }
    }

    /// The address behind the `syscall` of `rt_sigreturn`, as seccomp filters see it.
    fn sigreturn_end(&self) -> RunAddr {
        match self.back {
            Back::Restorer { at, code } => at.offset(code.len() as i64),
            Back::Pop(_) => self.syscall.offset(SYSCALL_SIZE),
        }
    }
}

#[derive(Default)]
struct Search {
    syscall: Option<RunAddr>,
    restorer: Option<(RunAddr, &'static [u8])>,
    pop: Option<RunAddr>,
}

impl Search {
    fn mapping(&mut self, process: &Process, map: &Mapping) {
        // Pieces overlap, so that nothing is cut in two.
        const OVERLAP: u64 = 16;
        let mut at = map.range.start;
        while at < map.range.end && (self.syscall.is_none() || self.restorer.is_none()) {
            let len = (map.range.end.0 - at.0).min(PIECE + OVERLAP);
            let Ok(bytes) = process.read_vec(at, len as usize) else { return };
            self.piece(at, &bytes);
            at = at.offset(PIECE as i64);
        }
    }

    fn piece(&mut self, at: RunAddr, bytes: &[u8]) {
        let find = |code: &[u8]| {
            bytes.windows(code.len()).position(|window| window == code).map(|place| at.offset(place as i64))
        };
        self.syscall = self.syscall.or_else(|| find(&SYSCALL_RET));
        self.pop = self.pop.or_else(|| find(&POP_RET));
        let restorer = || RESTORERS.iter().find_map(|code| Some((find(code)?, *code)));
        self.restorer = self.restorer.or_else(restorer);
    }
}

/// A frame on the thread's own stack, with what leads there.
#[derive(Debug)]
pub(crate) struct OnStack {
    /// Stack pointer for the system call.
    pub sp: RunAddr,
    frame: RunAddr,
    bytes: Vec<u8>,
}

impl OnStack {
    pub fn write(&self, process: &Process) -> Result<(), ProcessError> {
        process.write(self.sp, &self.bytes)
    }

    /// Takes the mark away, so that nobody takes what is left below the stack pointer for work under way.
    pub fn unmark(&self, process: &Process) -> Result<(), ProcessError> {
        process.write(self.frame.offset(LINK_AT), &[0; 8])
    }
}

impl Seized {
    /// Searches the program's memory for what remote work needs, while nobody is held for it. `maps` is its memory map.
    pub fn prepare_work(&mut self, maps: &[Mapping]) {
        // Without the instructions, the work itself says so.
        self.tracees.gadgets = Gadgets::find(&self.tracees.process, maps);
    }
}

impl StoppedThread<'_> {
    /// The instructions for system calls, searched once for a process.
    pub(crate) fn gadgets(&mut self) -> Result<Gadgets, RemoteError> {
        if let Some(known) = self.tracees.gadgets.as_ref().filter(|known| known.hold(self.process())) {
            return Ok(known.clone());
        }
        let found = Gadgets::find(self.process(), &self.process().maps()?);
        self.tracees.gadgets = found;
        self.tracees.gadgets.clone().ok_or_else(|| {
            self.unfit(
                "the process has no instructions `syscall; ret` and `pop %rax; ret` in its memory".into(),
            )
        })
    }

    /// Makes sure that the thread may return from a signal frame.
    ///
    /// # Errors
    /// [`RemoteError::Forbidden`] by a seccomp filter, [`RemoteError::Unfit`] for a shadow stack.
    pub(crate) fn check_way_back(&self, status: &Status, sigreturn_end: RunAddr) -> Result<(), RemoteError> {
        self.check_syscall_at(status, libc::SYS_rt_sigreturn, [0; 6], sigreturn_end)?;
        match status.shadow_stack {
            true => Err(self.unfit("it has a shadow stack, which no made-up return may leave".into())),
            false => Ok(()),
        }
    }

    /// Lays out the frame below the thread's red zone.
    pub(crate) fn frame_on_stack(
        &self,
        gadgets: &Gadgets,
        saved: &Saved,
        status: &Status,
    ) -> Result<OnStack, RemoteError> {
        self.check_way_back(status, gadgets.sigreturn_end())?;
        let regs = &saved.regs;
        let frame = SignalFrame::below(regs.sp().offset(-RED_ZONE), saved)
            .ok_or_else(|| self.unfit("its vector state has a form that is not known".into()))?;
        let words = gadgets.words();
        let sp = frame.at.offset(-8 * words.len() as i64);
        let stack = self.process().mapping_at(regs.sp())?;
        let stack = stack.filter(|map| map.perms.read && map.perms.write && !map.perms.shared);
        // The kernel names the first thread's stack. C libraries put the thread pointer's block at the upper end of the
        // stack. Anything else is a stack that the program made: for a coroutine, for signal handlers. What lies below it is
        // not known.
        let own = stack.filter(|map| {
            map.is_special("[stack]")
                || map.contains(regs.thread_pointer()) && regs.sp() < regs.thread_pointer()
        });
        let Some(own) = own else {
            return Err(self.unfit("it runs on a stack that is not a thread's own".into()));
        };
        if sp.offset(-SPARE) < own.range.start {
            return Err(self.unfit("its stack is nearly full".into()));
        }
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(frame.bytes);
        Ok(OnStack { sp, frame: frame.at, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(bytes: &[u8]) -> Search {
        let mut search = Search::default();
        search.piece(RunAddr(0x1000), bytes);
        search
    }

    #[test]
    fn instructions_are_found_at_any_place() {
        let found = search(&[&[0x90, 0x0f, 0x05, 0x90][..], &SYSCALL_RET, RESTORERS[0], &POP_RET].concat());
        assert_eq!(found.syscall, Some(RunAddr(0x1004)));
        assert_eq!(found.restorer, Some((RunAddr(0x1007), RESTORERS[0])));
        assert_eq!(found.pop, Some(RunAddr(0x1010)));
        assert_eq!(search(RESTORERS[1]).restorer, Some((RunAddr(0x1000), RESTORERS[1])));
        let nothing = search(&[0x0f, 0x05, 0x90, 0xb8, 15, 0, 0, 0, 0x0f, 0x34]);
        assert!(nothing.syscall.is_none() && nothing.restorer.is_none() && nothing.pop.is_none());
    }

    #[test]
    fn without_a_restorer_two_more_words_do() {
        let pop = Gadgets { syscall: RunAddr(0x10), back: Back::Pop(RunAddr(0x20)) };
        assert_eq!(pop.words(), [0x20, 15, 0x10]);
        assert_eq!(pop.sigreturn_end(), RunAddr(0x12));
        let back = Back::Restorer { at: RunAddr(0x30), code: RESTORERS[0] };
        let restorer = Gadgets { syscall: RunAddr(0x10), back };
        assert_eq!(restorer.words(), [0x30]);
        assert_eq!(restorer.sigreturn_end(), RunAddr(0x39));
    }
}
