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

use crate::error::{Loss, ProcessError, RemoteError};
use crate::sys::{self, SignalInfo, Wait};
use crate::trace::{Goal, LEADER_CHECK, State};
use crate::{Regs, StoppedThread, XState};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use nix::libc::{self, c_int};
use std::time::{Duration, Instant};

/// Bytes below the stack pointer that belong to the running function (System V psABI, section 3.2.2).
const RED_ZONE: i64 = 128;
/// Enough for `__m512` arguments.
const STACK_ALIGNMENT: u64 = 64;
/// How long an interrupted thread may take to come to a stop.
const HALT_LIMIT: Duration = Duration::from_secs(2);
/// Trap, direction and alignment-check flags.
const RFLAGS_CLEARED: u64 = 1 << 8 | 1 << 10 | 1 << 18;
/// Signals that instructions raise.
const FAULTS: [c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

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

/// What has to be put back.
struct Saved {
    regs: Regs,
    mask: u64,
    xstate: Option<XState>,
}

/// Signals that processes sent during a remote call and that could not be blocked because faults raise them, too.
#[derive(Debug)]
pub(crate) struct HeldSignals {
    trap: RunAddr,
    signals: Vec<SignalInfo>,
}

/// How the thread is sent on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// To the end of a call.
    Signal,
    /// To the next entry or exit of a system call.
    Syscall,
    /// To a stop after an interrupt.
    Interrupt,
}

/// Where it came to.
enum Stop {
    Fault(SignalInfo),
    Syscall,
    Interrupted,
    Deadline,
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
            None => Err(RemoteError::Timeout { tid: self.tid, what, waited: started.elapsed() }),
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
            Stop::Syscall => Ok(Some(self.regs()?.0.rax)),
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
        self.held = Some(HeldSignals { trap: call.trap, signals: Vec::new() });
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

    fn save(&mut self, with_xstate: bool) -> Result<Saved, RemoteError> {
        let stopped =
            self.tracees.threads.get(&self.tid).is_some_and(|thread| thread.state == State::Stopped);
        if !stopped {
            return Err(self.unfit("it is not stopped any more".into()));
        }
        let regs = self.regs()?;
        if !regs.is_64_bit() {
            return Err(self.unfit("it executes 32-bit code".into()));
        }
        self.check_rseq(&regs)?;
        let xstate = if with_xstate { Some(self.xstate()?) } else { None };
        Ok(Saved { regs, mask: self.signal_mask()?, xstate })
    }

    fn block_signals(&mut self, mask: u64) -> Result<(), ProcessError> {
        let faults = FAULTS.iter().fold(0, |set, &signal| set | signal_bit(signal));
        self.set_signal_mask(!faults | mask)
    }

    /// Sends the thread on and deals with what is not the end of it.
    fn run(&mut self, until: Until, deadline: Instant) -> Result<Stop, RemoteError> {
        let mut signal = 0;
        loop {
            self.send(until, signal)?;
            signal = 0;
            match self.next_stop(deadline)? {
                None => return Ok(Stop::Deadline),
                Some(Wait::Syscall) if until != Until::Signal => return Ok(Stop::Syscall),
                Some(Wait::Trap) if until == Until::Interrupt => return Ok(Stop::Interrupted),
                Some(Wait::GroupStop) if until == Until::Interrupt => return Ok(Stop::Interrupted),
                Some(Wait::Signal(_)) => match self.sent_signal()? {
                    Ok(sent) => signal = sent,
                    Err(fault) => return Ok(Stop::Fault(fault)),
                },
                Some(_) => {}
            }
        }
    }

    /// At a stop for a signal: if the thread raised it by a fault, its information as `Err`; if somebody sent it, what to
    /// send the thread on with.
    fn sent_signal(&mut self) -> Result<Result<c_int, SignalInfo>, ProcessError> {
        let info = sys::signal_info(self.tid).map_err(|errno| self.error("read a signal of", errno))?;
        let signal = info.signal();
        if FAULTS.contains(&signal) {
            if info.is_from_kernel() {
                return Ok(Err(info));
            }
            if let Some(held) = &mut self.held {
                held.signals.push(info);
                return Ok(Ok(0));
            }
        }
        // Blocked, it goes back into the kernel's queue when it is passed on, information and all.
        let mask = self.signal_mask()?;
        self.set_signal_mask(mask | signal_bit(signal))?;
        Ok(Ok(signal))
    }

    /// Gives held signals back to the kernel's queue. That is possible at a stop for a signal, which takes an `int3`: the signal
    /// is replaced by the held one, which is blocked and therefore queued.
    fn requeue_held(&mut self, saved: &Saved) -> Result<(), RemoteError> {
        let Some(mut held) = self.held.take() else { return Ok(()) };
        while let Some(info) = held.signals.pop() {
            let mut regs = saved.regs;
            regs.set_ip(held.trap);
            regs.0.orig_rax = u64::MAX;
            self.set_regs(&regs)?;
            self.block_signals(saved.mask)?;
            let limit = Instant::now() + HALT_LIMIT;
            let Stop::Fault(_) = self.run(Until::Signal, limit)? else {
                return Err(RemoteError::Stuck { tid: self.tid, what: "giving back a signal".into() });
            };
            self.restore(saved)?;
            self.set_signal_mask(u64::MAX)?;
            sys::set_signal_info(self.tid, &info).map_err(|errno| self.error("set a signal of", errno))?;
            self.send(Until::Interrupt, info.signal())?;
            self.next_stop(limit)?;
        }
        Ok(())
    }

    fn send(&mut self, until: Until, signal: c_int) -> Result<(), ProcessError> {
        if let Some(thread) = self.tracees.threads.get_mut(&self.tid) {
            (thread.goal, thread.state) = (Goal::Raw, State::Running);
        }
        let sent = match until {
            Until::Signal => sys::cont(self.tid, signal),
            Until::Syscall => sys::cont_to_syscall(self.tid, signal),
            Until::Interrupt => sys::interrupt(self.tid).and_then(|()| sys::cont(self.tid, signal)),
        };
        sent.map_err(|errno| self.error("resume", errno))
    }

    /// The next stop of this thread, while the events of the others are dealt with; `None` at the deadline.
    fn next_stop(&mut self, deadline: Instant) -> Result<Option<Wait>, ProcessError> {
        let (tid, pid) = (self.tid, self.process().pid());
        loop {
            let phase = deadline.min(Instant::now() + LEADER_CHECK);
            self.tracees.pump(phase, |tracees| {
                tracees.threads.get(&tid).is_none_or(|thread| matches!(thread.state, State::Raw(_)))
            })?;
            self.tracees.forget_exited_leader();
            match self.tracees.threads.get(&tid).map(|thread| thread.state) {
                Some(State::Raw(Wait::Exec)) => return Err(ProcessError::Lost { pid, how: Loss::Exec }),
                Some(State::Raw(wait)) => return Ok(Some(wait)),
                Some(_) if Instant::now() < deadline => {}
                Some(_) => return Ok(None),
                // A thread ends during remote work only with the process, or because the function ended it.
                None => return Err(ProcessError::ended(pid)),
            }
        }
    }

    /// Brings a running thread to a stop: at an interrupt, or (inside a system call) at its exit.
    fn halt(&mut self, until: Until, what: &str) -> Result<(), RemoteError> {
        let deadline = Instant::now() + HALT_LIMIT;
        self.tracees.request_stop(self.tid)?;
        loop {
            match (self.next_stop(deadline)?, until) {
                (None, _) => return Err(RemoteError::Stuck { tid: self.tid, what: what.to_owned() }),
                (Some(Wait::Syscall), Until::Syscall)
                | (Some(Wait::Trap | Wait::GroupStop), Until::Interrupt) => {
                    return Ok(());
                }
                (Some(Wait::Signal(_)), _) => match self.sent_signal()? {
                    Ok(signal) => self.send_again(until, signal)?,
                    // A fault at the last moment; putting the registers back cancels it.
                    Err(_) => return Ok(()),
                },
                (Some(_), _) => self.send_again(until, 0)?,
            }
        }
    }

    fn send_again(&mut self, until: Until, signal: c_int) -> Result<(), ProcessError> {
        self.tracees.request_stop(self.tid)?;
        self.send(until, signal)
    }

    /// Puts everything back and leads the thread to a canonical stop without executing an instruction.
    fn put_back(&mut self, saved: &Saved, what: &str) -> Result<(), RemoteError> {
        let stuck = RemoteError::Stuck { tid: self.tid, what: what.to_owned() };
        match self.tracees.threads.get(&self.tid).map(|thread| thread.state) {
            Some(State::Running) => return Err(stuck),
            Some(State::Stopped | State::Raw(_)) => {}
            None => return Err(ProcessError::ended(self.process().pid()).into()),
        }
        self.requeue_held(saved)?;
        self.restore(saved)?;
        // The signal that ended the remote work, if any, is cancelled by sending the thread on without one. The
        // interrupt is taken before anything else on the way to user mode.
        let stop = self.run(Until::Interrupt, Instant::now() + HALT_LIMIT)?;
        if !matches!(stop, Stop::Interrupted) {
            return Err(stuck);
        }
        self.restore(saved)?;
        if self.regs()? != saved.regs {
            let mismatch = std::io::Error::other("the kernel does not return the registers that were set");
            return Err(ProcessError::io(self.process().pid(), "put back registers", mismatch).into());
        }
        if let Some(thread) = self.tracees.threads.get_mut(&self.tid) {
            (thread.goal, thread.state) = (Goal::Stop, State::Stopped);
        }
        Ok(())
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), ProcessError> {
        self.set_regs(&saved.regs)?;
        if let Some(xstate) = &saved.xstate {
            self.set_xstate(xstate)?;
        }
        self.set_signal_mask(saved.mask)
    }

    fn fault(&self, what: &str, info: SignalInfo) -> Result<RemoteError, ProcessError> {
        let ip = self.regs()?.ip();
        Ok(RemoteError::Fault {
            tid: self.tid,
            what: what.to_owned(),
            signal: info.signal(),
            ip,
            fault: info.addr(),
        })
    }

    pub(crate) fn unfit(&self, reason: String) -> RemoteError {
        RemoteError::Unfit { tid: self.tid, reason }
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

fn signal_bit(signal: c_int) -> u64 {
    1 << (signal - 1)
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
