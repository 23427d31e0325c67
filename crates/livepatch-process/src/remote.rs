//! Making a stopped thread of the target execute a system call or a function, unnoticed by the program.
//!
//! 1. Registers, vector state and signal mask are saved. Every signal that the kernel can hold back is blocked, except those
//!    that faults raise: forcing a blocked one would reset its handler. If a process sends one of those during a call, it is held
//!    here and given back to the kernel's queue at the end.
//! 2. `orig_rax` becomes −1, so that the kernel does not treat our instruction pointer as an interrupted system call.
//! 3. A system call runs from an existing `syscall` instruction between two system-call stops: no signal is involved. A function
//!    runs until it returns to an `int3`.
//! 4. Everything is put back, and the thread is led to a canonical stop again without executing an instruction. There the
//!    kernel has yet to decide about the restart of the interrupted system call, as at the stop before.

use crate::drive::{HeldSignals, Saved, Stop, Until};
use crate::error::RemoteError;
use crate::{Regs, StoppedThread, XState};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use nix::libc;
use std::time::Instant;

/// Bytes below the stack pointer that belong to the running function (System V psABI, section 3.2.2).
const RED_ZONE: i64 = 128;
/// Enough for `__m512` arguments.
const STACK_ALIGNMENT: u64 = 64;
/// Trap, direction and alignment-check flags.
const RFLAGS_CLEARED: u64 = 1 << 8 | 1 << 10 | 1 << 18;
/// Which stack a remote call runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStack {
    /// The thread's own, below its red zone. The thread may be on a small stack: a coroutine, a signal handler.
    OfThread,
    /// Memory of the caller's, given by its end (the highest address, exclusive).
    EndingAt(RunAddr),
}

/// A call of a function in the target by the C calling convention.
#[derive(Clone, Copy, Debug)]
pub struct RemoteCall<'a> {
    /// What to call it in messages.
    pub name: &'a str,
    /// The function's entry.
    pub function: RunAddr,
    /// Integer and pointer arguments.
    pub args: [u64; 6],
    /// An `int3` in executable memory, where the function returns to.
    pub trap: RunAddr,
    /// The stack.
    pub stack: CallStack,
}

impl StoppedThread<'_> {
    /// Executes a system call on this thread. Other threads stay as they are: running or stopped.
    ///
    /// The result is what the kernel returned, errors as `Err(Errno)` inside.
    ///
    /// # Errors
    /// After every error but [`RemoteError::Stuck`] and a lost process the thread is as it was before.
    pub fn remote_syscall(
        &mut self,
        number: libc::c_long,
        args: [u64; 6],
        deadline: Instant,
    ) -> Result<Result<u64, Errno>, RemoteError> {
        let what = format!("system call {number}");
        let at = self.syscall_instruction()?;
        self.check_syscall_at(number, args, at.offset(2))?;
        let saved = self.save(false)?;
        let started = Instant::now();
        let mut regs = saved.regs;
        regs.set_ip(at);
        (regs.0.rax, regs.0.orig_rax) = (number as u64, u64::MAX);
        regs.0.eflags &= !RFLAGS_CLEARED;
        [regs.0.rdi, regs.0.rsi, regs.0.rdx, regs.0.r10, regs.0.r8, regs.0.r9] = args;
        let result = self.run_syscall(&regs, saved.mask, deadline, &what);
        self.put_back(&saved, &what)?;
        match result? {
            Some(rax) if (-4095..0).contains(&(rax as i64)) => Ok(Err(Errno::from_raw(-(rax as i64) as i32))),
            Some(rax) => Ok(Ok(rax)),
            None => Err(RemoteError::Slow { tid: self.tid, number, waited: started.elapsed() }),
        }
    }

    /// From before the `syscall` instruction to the system-call stop behind it; `None` if the deadline passed.
    fn run_syscall(
        &mut self,
        regs: &Regs,
        mask: u64,
        deadline: Instant,
        what: &str,
    ) -> Result<Option<u64>, RemoteError> {
        self.set_regs(regs)?;
        self.block_signals(mask)?;
        match self.run(Until::Syscall, deadline)? {
            Stop::Syscall => {}
            Stop::Fault(info) => return Err(self.fault(what, info)?),
            // Before the entry: nothing has happened.
            Stop::Deadline | Stop::Interrupted => return self.halt(Until::Interrupt, what).map(|_| None),
        }
        match self.run(Until::Syscall, deadline)? {
            Stop::Syscall => {
                let result = self.regs()?.0.rax;
                match self.take_seccomp_signal()? {
                    None => Ok(Some(result)),
                    Some(info) => Err(self.fault(what, info)?),
                }
            }
            Stop::Fault(info) => Err(self.fault(what, info)?),
            // Inside: registers must not be put back before the exit, or the kernel would take them for the call's.
            Stop::Deadline | Stop::Interrupted => self.halt(Until::Syscall, what).map(|_| None),
        }
    }

    /// Calls a function of the target on this thread and returns `rax`. Other threads stay as they are: running or stopped; if
    /// they are stopped and the function waits for one of them (for a lock, say), the deadline ends it.
    ///
    /// # Errors
    /// After every error but [`RemoteError::Stuck`] and a lost process the thread has its registers, vector state and signal mask
    /// back. After a timeout or a fault what the function did until then remains.
    pub fn remote_call(&mut self, call: &RemoteCall<'_>, deadline: Instant) -> Result<u64, RemoteError> {
        self.check_call(call)?;
        let saved = self.save(true)?;
        self.held = Some(HeldSignals::until_return_to(call.trap));
        let started = Instant::now();
        let result = self.run_call(call, &saved, deadline);
        self.put_back(&saved, call.name)?;
        result?.ok_or_else(|| RemoteError::Timeout {
            tid: self.tid,
            what: call.name.to_owned(),
            waited: started.elapsed(),
        })
    }

    fn check_call(&self, call: &RemoteCall<'_>) -> Result<(), RemoteError> {
        const INT3: u8 = 0xcc;
        if self.process().read_array(call.trap)? != [INT3] {
            return Err(self.unfit(format!("there is no int3 at {} to return to", call.trap)));
        }
        if self.process().thread_status(self.tid)?.shadow_stack {
            return Err(
                self.unfit("it has a shadow stack, which a made-up return address would violate".into())
            );
        }
        Ok(())
    }

    fn run_call(
        &mut self,
        call: &RemoteCall<'_>,
        saved: &Saved,
        deadline: Instant,
    ) -> Result<Option<u64>, RemoteError> {
        let top = match call.stack {
            CallStack::OfThread => saved.regs.sp().offset(-RED_ZONE),
            CallStack::EndingAt(end) => end,
        };
        let sp = RunAddr(top.0 & !(STACK_ALIGNMENT - 1)).offset(-8);
        self.process().write(sp, &call.trap.0.to_le_bytes())?;
        let mut regs = saved.regs;
        regs.set_ip(call.function);
        regs.set_sp(sp);
        (regs.0.rax, regs.0.orig_rax) = (0, u64::MAX);
        regs.0.eflags &= !RFLAGS_CLEARED;
        [regs.0.rdi, regs.0.rsi, regs.0.rdx, regs.0.rcx, regs.0.r8, regs.0.r9] = call.args;
        self.set_regs(&regs)?;
        if let Some(xstate) = &saved.xstate {
            self.set_xstate(&xstate.with_initial_control())?;
        }
        self.block_signals(saved.mask)?;
        match self.run(Until::Signal, deadline)? {
            Stop::Fault(info) if info.signal() == libc::SIGTRAP => {
                let regs = self.regs()?;
                // The return took the address off the stack; a trap with another stack pointer is not our return.
                match regs.ip() == call.trap.offset(1) && regs.sp() == sp.offset(8) {
                    true => Ok(Some(regs.0.rax)),
                    false => Err(self.fault(call.name, info)?),
                }
            }
            Stop::Fault(info) => Err(self.fault(call.name, info)?),
            Stop::Syscall | Stop::Interrupted | Stop::Deadline => {
                self.halt(Until::Interrupt, call.name).map(|_| None)
            }
        }
    }

    /// An instruction `syscall` in executable memory of the target, searched once.
    fn syscall_instruction(&mut self) -> Result<RunAddr, RemoteError> {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        if let Some(at) = self.tracees.syscall_instruction
            && self.process().read_array(at).is_ok_and(|bytes: [u8; 2]| bytes == SYSCALL)
        {
            return Ok(at);
        }
        let maps = self.process().maps()?;
        let mut candidates: Vec<_> =
            maps.iter().filter(|mapping| mapping.perms.execute && mapping.perms.read).collect();
        // The vDSO cannot be unmapped or changed by accident; program files come next, generated code last.
        candidates.sort_by_key(|mapping| (!mapping.is_special("[vdso]"), mapping.path().is_none()));
        for mapping in candidates {
            let Ok(bytes) = self.process().read_vec(mapping.range.start, mapping.len() as usize) else {
                continue;
            };
            if let Some(offset) = bytes.windows(2).position(|pair| pair == SYSCALL) {
                let at = mapping.range.start.offset(offset as i64);
                self.tracees.syscall_instruction = Some(at);
                return Ok(at);
            }
        }
        Err(self.unfit("the process has no syscall instruction in its memory".into()))
    }
}

impl XState {
    /// The same state with x87 unit and SSE control word as a function may expect them at its entry (psABI, section 3.2.3):
    /// default rounding and masks, x87 stack empty.
    fn with_initial_control(&self) -> Self {
        const MXCSR: std::ops::Range<usize> = 24..28;
        const XSTATE_BV: usize = 512;
        const DEFAULT_MXCSR: u32 = 0x1f80;
        let mut bytes = self.0.clone();
        if let Some(mxcsr) = bytes.get_mut(MXCSR) {
            mxcsr.copy_from_slice(&DEFAULT_MXCSR.to_le_bytes());
        }
        if let Some(components) = bytes.get_mut(XSTATE_BV) {
            // Bit 0: x87 state, initial if clear.
            *components &= !1;
        }
        Self(bytes)
    }
}
