//! Driving one thread through remote work: from the canonical stop, through the stops on the way, and back.

use crate::collect::RECHECK;
use crate::error::{Loss, ProcessError, RemoteError};
use crate::sys::{self, SignalInfo, Wait, signal_bit};
use crate::trace::{Goal, State, Tracees};
use crate::{Regs, StoppedThread, Tid, XState};
use nix::errno::Errno;
use nix::libc::{self, c_int};
use std::time::{Duration, Instant};

/// How long an interrupted thread may take to come to a stop.
pub(crate) const HALT_LIMIT: Duration = Duration::from_secs(2);
/// Signals that instructions raise.
pub(crate) const FAULTS: [c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

/// What has to be put back.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub regs: Regs,
    pub mask: u64,
    pub xstate: XState,
    /// After a call, which may have changed the vector state: registers with which the thread would do nothing but put
    /// everything back by itself.
    pub way_back: Option<Regs>,
}

impl Saved {
    /// Puts it back into a thread at any stop. A tool that dies on the way leaves a thread that either goes on as before, or
    /// puts the rest back by itself. Hence the order.
    pub fn restore(&self, tid: Tid) -> Result<(), Errno> {
        if let Some(way_back) = &self.way_back {
            sys::set_regs(tid, way_back)?;
            sys::set_xstate(tid, &self.xstate)?;
        }
        sys::set_sigmask(tid, self.mask)?;
        sys::set_regs(tid, &self.regs)
    }
}

/// How the thread is sent on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// To a signal that it raises.
    Signal,
    /// To the next entry or exit of a system call.
    Syscall,
    /// To a stop after an interrupt.
    Interrupt,
}

/// Where it came to.
pub(crate) enum Stop {
    Fault(SignalInfo),
    Syscall,
    Interrupted,
    Deadline,
}

impl StoppedThread<'_> {
    pub(crate) fn save(&mut self) -> Result<Saved, RemoteError> {
        if !self.is_stopped() {
            return Err(self.unfit("it is not stopped any more".into()));
        }
        let regs = self.regs()?;
        if !regs.is_64_bit() {
            return Err(self.unfit("it executes 32-bit code".into()));
        }
        // Remote work would take the signal for one of its own.
        if self.has_fault_pending()? {
            return Err(self.unfit("a signal of its own doing is about to be delivered".into()));
        }
        self.check_rseq(&regs)?;
        Ok(Saved { regs, mask: self.signal_mask()?, xstate: self.xstate()?, way_back: None })
    }

    pub(crate) fn block_signals(&mut self, mask: u64) -> Result<(), ProcessError> {
        let faults = FAULTS.iter().fold(0, |set, &signal| set | signal_bit(signal));
        self.set_signal_mask(!faults | mask)
    }

    /// Sends the thread on and deals with what is not the end of it.
    pub(crate) fn run(&mut self, until: Until, deadline: Instant) -> Result<Stop, RemoteError> {
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
        if FAULTS.contains(&signal) && info.is_from_kernel() {
            return Ok(Err(info));
        }
        // Blocked, it goes back into the kernel's queue when it is passed on, information and all.
        let mask = self.signal_mask()?;
        self.set_signal_mask(mask | signal_bit(signal))?;
        Ok(Ok(signal))
    }

    fn send(&mut self, until: Until, signal: c_int) -> Result<(), ProcessError> {
        let sent = match until {
            Until::Signal => sys::cont(self.tid, signal),
            Until::Syscall => sys::cont_to_syscall(self.tid, signal),
            Until::Interrupt => sys::interrupt(self.tid).and_then(|()| sys::cont(self.tid, signal)),
        };
        // A thread that could not be sent on is where it was, and can be put back there.
        if matches!(sent, Ok(()) | Err(Errno::ESRCH))
            && let Some(thread) = self.tracees.threads.get_mut(&self.tid)
        {
            (thread.goal, thread.state) = (Goal::Raw, State::Running);
        }
        sent.map_err(|errno| self.error("resume", errno))
    }

    /// The next stop of this thread, while the events of the others are dealt with; `None` at the deadline.
    fn next_stop(&mut self, deadline: Instant) -> Result<Option<Wait>, ProcessError> {
        let (tid, pid) = (self.tid, self.process().pid());
        let stopped = |tracees: &Tracees| {
            tracees.threads.get(&tid).is_none_or(|thread| matches!(thread.state, State::Raw(_)))
        };
        self.tracees.await_one(tid, deadline, stopped)?;
        loop {
            let phase = deadline.min(Instant::now() + RECHECK);
            if !self.tracees.pump(phase, stopped)? {
                self.tracees.recheck()?;
            }
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
    pub(crate) fn halt(&mut self, until: Until, what: &str) -> Result<(), RemoteError> {
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
    pub(crate) fn put_back(&mut self, saved: &Saved, what: &str) -> Result<(), RemoteError> {
        let result = self.lead_back(saved, what);
        match &result {
            Ok(()) => {}
            Err(RemoteError::Process(error)) if error.is_lost() => {}
            Err(_) => self.tracees.put_back_later(self.tid, saved.clone()),
        }
        result
    }

    fn lead_back(&mut self, saved: &Saved, what: &str) -> Result<(), RemoteError> {
        let stuck = || RemoteError::Stuck { tid: self.tid, what: what.to_owned() };
        match self.tracees.threads.get(&self.tid).map(|thread| thread.state) {
            Some(State::Running) => return Err(stuck()),
            Some(State::Raw(Wait::Syscall)) => self.skip_syscall()?,
            Some(State::Stopped | State::Raw(_)) => {}
            None => return Err(ProcessError::ended(self.process().pid()).into()),
        }
        self.restore(saved)?;
        // The signal that ended the remote work, if any, is cancelled by sending the thread on without one. The
        // interrupt is taken before anything else on the way to user mode.
        let stop = self.run(Until::Interrupt, Instant::now() + HALT_LIMIT)?;
        if !matches!(stop, Stop::Interrupted) {
            return Err(RemoteError::Stuck { tid: self.tid, what: what.to_owned() });
        }
        // Nothing was executed meanwhile; only the registers are the kernel's to change at the stop before.
        self.set_regs(&saved.regs)?;
        if self.regs()? != saved.regs {
            let mismatch = std::io::Error::other("the kernel does not return the registers that were set");
            return Err(ProcessError::io(self.process().pid(), "put back registers", mismatch).into());
        }
        if let Some(thread) = self.tracees.threads.get_mut(&self.tid) {
            (thread.goal, thread.state) = (Goal::Stop, State::Stopped);
        }
        Ok(())
    }

    /// At the entry of a system call: leads to its exit without making it. With other registers put back there, the kernel
    /// would make the call that those name.
    fn skip_syscall(&mut self) -> Result<(), RemoteError> {
        let at_entry =
            sys::at_syscall_entry(self.tid).map_err(|errno| self.error("read the stop of", errno))?;
        if !at_entry {
            return Ok(());
        }
        let mut regs = self.regs()?;
        regs.0.orig_rax = u64::MAX;
        self.set_regs(&regs)?;
        match self.run(Until::Syscall, Instant::now() + HALT_LIMIT)? {
            Stop::Syscall => Ok(()),
            _ => Err(RemoteError::Stuck { tid: self.tid, what: "a system call".into() }),
        }
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), ProcessError> {
        saved.restore(self.tid).map_err(|errno| self.error("put back the registers of", errno))
    }

    /// After a system call: if a seccomp filter answered it with SIGSYS, takes the signal away and returns it. It is pending
    /// then, in front of all others, and would be delivered to the program.
    pub(crate) fn take_seccomp_signal(&mut self) -> Result<Option<SignalInfo>, RemoteError> {
        let pending =
            sys::pending_signals(self.tid).map_err(|errno| self.error("read the signals of", errno))?;
        if !pending.iter().any(|info| info.signal() == libc::SIGSYS && info.is_from_kernel()) {
            return Ok(None);
        }
        match self.run(Until::Signal, Instant::now() + HALT_LIMIT)? {
            Stop::Fault(info) => Ok(Some(info)),
            _ => Err(RemoteError::Stuck { tid: self.tid, what: "a seccomp filter".into() }),
        }
    }

    pub(crate) fn fault(&self, what: &str, info: SignalInfo) -> Result<RemoteError, ProcessError> {
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
}
