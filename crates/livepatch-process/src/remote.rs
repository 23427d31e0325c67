//! Making a stopped thread of the target execute a system call or a function, unnoticed by the program.
//!
//! 1. Registers, vector state and signal mask are saved, here and in a signal frame in the target (see `sigframe.rs`): below the
//!    red zone of the thread's stack for a system call, at the end of the call site's stack for a function.
//! 2. The registers are set, in one request. From then on whatever the thread executes ends at an `rt_sigreturn` of that
//!    frame, so that the thread is as before, whether or not this tool still lives. `orig_rax` becomes −1, so that the kernel
//!    does not treat our instruction pointer as an interrupted system call.
//! 3. Every signal that the kernel can hold back is blocked, except those that faults raise: forcing a blocked one would reset
//!    its handler. One of those that a process sends meanwhile is blocked, too, and so goes back into the kernel's queue.
//! 4. A system call runs from an existing `syscall; ret` between two system-call stops: no signal is involved. A function's
//!    end is the system-call stop at the entry of `rt_sigreturn`; there the call is turned into one that does nothing, and if
//!    the tool dies, the thread comes to `rt_sigreturn` again.
//! 5. Everything is put back, and the thread is led to a canonical stop again without executing an instruction. There the
//!    kernel has yet to decide about the restart of the interrupted system call, as at the stop before.
//!
//! A tool that is killed leaves the program one thing to notice: a thread whose interrupted system call would have been
//! continued with the time left gets `EINTR` from it.

use crate::drive::{HALT_LIMIT, Saved, Stop, Until};
use crate::error::RemoteError;
use crate::ready::Ready;
use crate::sigframe::SignalFrame;
use crate::trace::State;
use crate::wayback::SYSCALL_SIZE;
use crate::{CallProgress, CallSite, Regs, StoppedThread, XState};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use nix::libc;
use std::time::Instant;

/// Trap, direction and alignment-check flags.
const RFLAGS_CLEARED: u64 = 1 << 8 | 1 << 10 | 1 << 18;

/// A call of a function in the target by the C calling convention.
#[derive(Clone, Copy, Debug)]
pub struct RemoteCall<'a> {
    /// What to call it in messages.
    pub name: &'a str,
    /// The function's entry.
    pub function: RunAddr,
    /// Integer and pointer arguments.
    pub args: [u64; 6],
    /// Where it is called from. No other thread may be there.
    pub site: CallSite,
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
        let mut ready = self.take_ready()?;
        let status = ready.status.take().map_or_else(|| self.process().thread_status(self.tid), Ok)?;
        self.check_syscall_at(&status, number, args, ready.gadgets.syscall.offset(SYSCALL_SIZE))?;
        let Ready { gadgets, saved, stack, .. } = &ready;
        let started = Instant::now();
        stack.write(self.process())?;
        let mut regs = saved.regs;
        regs.set_ip(gadgets.syscall);
        regs.set_sp(stack.sp);
        (regs.0.rax, regs.0.orig_rax) = (number as u64, u64::MAX);
        regs.0.eflags &= !RFLAGS_CLEARED;
        [regs.0.rdi, regs.0.rsi, regs.0.rdx, regs.0.r10, regs.0.r8, regs.0.r9] = args;
        let result = match self.run_syscall(&regs, saved.mask, deadline, &what) {
            Err(RemoteError::Process(error)) if error.is_lost() => return Err(error.into()),
            result => result,
        };
        self.put_back(saved, &what)?;
        stack.unmark(self.process())?;
        let result = result?;
        self.ready = Some(ready);
        match result {
            Some(rax) if (-4095..0).contains(&(rax as i64)) => Ok(Err(Errno::from_raw(-(rax as i64) as i32))),
            Some(rax) => Ok(Ok(rax)),
            None => {
                let name = self.process().thread_name(self.tid).unwrap_or_default();
                Err(RemoteError::Slow { tid: self.tid, name, number, waited: started.elapsed() })
            }
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
        self.ready = None;
        self.check_call(call)?;
        let mut saved = self.save()?;
        let frame = SignalFrame::below(call.site.range().end, &saved)
            .ok_or_else(|| self.unfit("its vector state has a form that is not known".into()))?;
        self.process().write(frame.at, &frame.bytes)?;
        call.site.set_progress(self.process(), CallProgress::Prepared)?;
        let started = Instant::now();
        let regs = call_registers(call, &saved.regs, frame.at);
        let mut way_back = regs;
        way_back.set_ip(call.site.back());
        saved.way_back = Some(way_back);
        let result = match self.run_call(call, &regs, &saved, deadline) {
            Err(RemoteError::Process(error)) if error.is_lost() => return Err(error.into()),
            Err(RemoteError::Process(error)) if self.is_on_its_way() => {
                self.tracees.let_finish(self.tid);
                return Err(error.into());
            }
            result => result,
        };
        self.put_back(&saved, call.name)?;
        if !matches!(result, Ok(Some(()))) {
            call.site.set_progress(self.process(), CallProgress::BrokenOff)?;
        }
        match result? {
            Some(()) => Ok(call.site.result(self.process())?),
            None => Err(RemoteError::Timeout {
                tid: self.tid,
                what: call.name.to_owned(),
                waited: started.elapsed(),
            }),
        }
    }

    /// Whether the remote work has begun: the thread has left the canonical stop.
    fn is_on_its_way(&self) -> bool {
        self.tracees.threads.get(&self.tid).is_some_and(|thread| thread.state != State::Stopped)
    }

    fn check_call(&self, call: &RemoteCall<'_>) -> Result<(), RemoteError> {
        if !call.site.is_ready(self.process()) {
            return Err(self.unfit(format!("the call site at {} is damaged", call.site.entry())));
        }
        let (number, args) = NOTHING;
        let status = self.process().thread_status(self.tid)?;
        self.check_syscall_at(&status, number, args, call.site.sigreturn_end())?;
        self.check_way_back(&status, call.site.sigreturn_end())
    }

    /// From the entry to the stop behind the `rt_sigreturn` that was not made; `None` if the deadline passed.
    fn run_call(
        &mut self,
        call: &RemoteCall<'_>,
        regs: &Regs,
        saved: &Saved,
        deadline: Instant,
    ) -> Result<Option<()>, RemoteError> {
        self.set_regs(regs)?;
        self.set_xstate(&saved.xstate.with_initial_control())?;
        self.block_signals(saved.mask)?;
        loop {
            match self.run(Until::Syscall, deadline)? {
                Stop::Syscall => {}
                Stop::Fault(info) => return Err(self.fault(call.name, info)?),
                Stop::Interrupted | Stop::Deadline => {
                    return self.halt(Until::Interrupt, call.name).map(|_| None);
                }
            }
            let mut at = self.regs()?;
            let returned = at.ip() == call.site.sigreturn_end() && at.sp() == regs.sp();
            if returned && at.syscall() == Some(libc::SYS_rt_sigreturn as u64) {
                let (number, args) = NOTHING;
                at.0.orig_rax = number as u64;
                (at.0.rdi, at.0.rsi) = (args[0], args[1]);
                self.set_regs(&at)?;
                return match self.run(Until::Syscall, deadline.max(Instant::now() + HALT_LIMIT))? {
                    Stop::Syscall => Ok(Some(())),
                    Stop::Fault(info) => Err(self.fault(call.name, info)?),
                    Stop::Interrupted | Stop::Deadline => {
                        self.halt(Until::Syscall, call.name).map(|_| Some(()))
                    }
                };
            }
        }
    }
}

/// A system call that does nothing, and that whoever loads a patch must be free to make: `munmap` of no page at no page's
/// address. (−1, which the kernel skips, is nothing that a seccomp filter need let pass.)
const NOTHING: (libc::c_long, [u64; 6]) = (libc::SYS_munmap, [1, 0, 0, 0, 0, 0]);

fn call_registers(call: &RemoteCall<'_>, saved: &Regs, frame: RunAddr) -> Regs {
    let mut regs = *saved;
    regs.set_ip(call.site.entry());
    regs.set_sp(frame);
    (regs.0.rax, regs.0.r11, regs.0.orig_rax) = (0, call.function.0, u64::MAX);
    regs.0.eflags &= !RFLAGS_CLEARED;
    [regs.0.rdi, regs.0.rsi, regs.0.rdx, regs.0.rcx, regs.0.r8, regs.0.r9] = call.args;
    regs
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
