//! Threads that executed a breakpoint.

use crate::error::ProcessError;
use crate::passing::Breakpoints;
use crate::sys;
use crate::trace::{Goal, Tracees};
use crate::{Regs, Tid};
use livepatch_patch::RunAddr;
use nix::errno::Errno;

impl Tracees {
    /// If the thread executed a registered breakpoint: takes it back to before, to be held there, or past it if it passes.
    pub fn park(&mut self, tid: Tid) -> Result<bool, ProcessError> {
        if self.breakpoints.is_empty() {
            return Ok(false);
        }
        let pid = self.process.pid();
        let runs = self.threads.get(&tid).is_some_and(|thread| thread.goal == Goal::Run);
        let passing = &mut self.passing;
        let breakpoints = &self.breakpoints;
        let mut moved = || {
            let Some((mut regs, addr)) = breakpoint_met(breakpoints, tid)? else { return Ok(None) };
            let past = breakpoints[&addr]
                .filter(|_| runs && passing.get_mut(&tid).is_some_and(|passing| passing.passes(regs.sp())));
            regs.set_ip(past.unwrap_or(addr));
            sys::set_regs(tid, &regs).map(|()| Some((addr, past.is_some())))
        };
        let addr = match moved() {
            Ok(addr) => addr,
            Err(Errno::ESRCH) => None,
            Err(errno) => return Err(ProcessError::ptrace(pid, tid, "move", errno)),
        };
        if let (Some((addr, false)), Some(thread)) = (addr, self.threads.get_mut(&tid)) {
            (thread.parked, thread.goal) = (Some(addr), Goal::Stop);
        }
        Ok(addr.is_some())
    }
}

/// Whether a thread or child that reports a SIGTRAP executed one of these: its registers, and which.
pub(crate) fn breakpoint_met(breakpoints: &Breakpoints, tid: Tid) -> Result<Option<(Regs, RunAddr)>, Errno> {
    // An `int3` reports SI_KERNEL; a SIGTRAP that a process sent has a code of 0 or below.
    if !sys::signal_info(tid)?.is_from_kernel() {
        return Ok(None);
    }
    let regs = sys::get_regs(tid)?;
    let addr = regs.ip().offset(-1);
    Ok(breakpoints.contains_key(&addr).then_some((regs, addr)))
}
