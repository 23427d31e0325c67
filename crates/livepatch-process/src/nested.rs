//! Signals that interrupt their own handlers (`SA_NODEFER`).
//!
//! Under tracing each delivery is a stop, and time goes by in it. Where a timer fires within that time, the next signal comes on top of the
//! handler before an instruction of it was executed, and the next one on top of that, until the stack is full. Such a signal is
//! blocked for the handler that it would interrupt, as the kernel does where `SA_NODEFER` is not set: the kernel keeps it, and the
//! handler's return, which puts back the mask from before, lets it in. The same goes for several signals that take turns, also if the handlers of
//! some run meanwhile and return. A handler that leaves by `longjmp` puts back nothing, so in the end it is made sure that the signal is
//! not blocked any more.

use crate::sys;
use crate::trace::Tracees;
use crate::{Seized, Tid};
use livepatch_patch::RunAddr;
use nix::libc;
use std::time::{Duration, Instant};

/// Signals that instructions raise: blocked, they end the process.
const OF_INSTRUCTIONS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
/// Where the kernel stores the stack pointer in a signal frame (`struct rt_sigframe`); the instruction pointer follows.
const SP_IN_FRAME: i64 = 168;
/// How long a thread may take to stop in the end.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a thread was doing when a signal was delivered to it, and the signals that were since it last executed something but handlers on top of
/// that one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivered {
    signals: u64,
    sp: RunAddr,
    ip: RunAddr,
}

impl Delivered {
    /// As the kernel stores it in the frame of the handler.
    fn state(&self) -> u128 {
        u128::from(self.sp.0) | u128::from(self.ip.0) << 64
    }
}

impl Tracees {
    /// Before a signal is delivered to a thread at its stop for it.
    pub(crate) fn before_delivery(&mut self, tid: Tid, signal: i32) {
        // A thread that is gone needs nothing, and neither does one of which nothing can be read.
        let Ok(regs) = sys::get_regs(tid) else { return };
        let bit = 1 << (signal - 1);
        let saved: Result<[u8; 16], _> = self.process.read_array(regs.sp().offset(SP_IN_FRAME));
        let saved = saved.ok().map(u128::from_le_bytes);
        let deliveries = self.delivered.entry(tid).or_default();
        // Handlers that came on top of that one, and ran, are left.
        while deliveries.last().is_some_and(|last| Some(last.state()) != saved) {
            deliveries.pop();
        }
        let before = deliveries.last().map_or(0, |last| last.signals);
        if before & bit == 0 || OF_INSTRUCTIONS.contains(&signal) {
            deliveries.push(Delivered { signals: before | bit, sp: regs.sp(), ip: regs.ip() });
            return;
        }
        let Ok(mask) = sys::get_sigmask(tid) else { return };
        if sys::set_sigmask(tid, mask | bit).is_ok() {
            let held = self.held_back.get(&tid).filter(|held| held.0 == mask).map_or(0, |held| held.1);
            self.held_back.insert(tid, (mask | bit, held | bit));
        }
    }
}

impl Seized {
    /// Lets signals in that are still blocked although their handlers are left: threads with the mask that they were given.
    pub(crate) fn let_held_back_in(&mut self) {
        for (tid, (mask, bits)) in std::mem::take(&mut self.tracees.held_back) {
            let Ok(mut thread) = self.interrupt_one(tid, Instant::now() + PATIENCE) else { continue };
            if thread.signal_mask().is_ok_and(|now| now == mask) {
                // One that is gone needs nothing.
                let _ = thread.set_signal_mask(mask & !bits);
            }
        }
    }
}
