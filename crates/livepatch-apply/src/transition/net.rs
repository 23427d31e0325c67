//! The net: the target's own way from a breakpoint on, for the time that no tracer looks after it.
//!
//! It is a handler of SIGTRAP (its code is in [`crate::landing`]), put in place before the first breakpoint and taken away after
//! the last one, when no thread can be on its way from a breakpoint to the handler any more.

use crate::error::ApplyError;
use crate::landing::{Landing, Site};
use crate::safepoint;
use crate::stops::visit;
use livepatch_process::{Event, RemoteError, Seized, StoppedThread, Tid, Visitors, log};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// `SIGTRAP` of `<signal.h>` on x86-64.
pub const SIGTRAP: u64 = 5;
/// Its bit in a signal mask.
pub const SIGTRAP_BIT: u64 = 1 << (SIGTRAP - 1);
/// System calls of x86-64.
const SYS_RT_SIGACTION: i64 = 13;
const SYS_MEMBARRIER: i64 = 324;
/// Size of the kernel's `sigset_t`.
const SIGSET: u64 = 8;
/// Commands of `<linux/membarrier.h>`.
const PRIVATE_EXPEDITED_SYNC_CORE: u64 = 1 << 5;
const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: u64 = 1 << 6;

/// How long the tool's threads may take to come to their processors, and to run there once. It is a matter of microseconds, but for
/// a processor that a real-time thread holds.
const VISIT_LIMIT: Duration = Duration::from_millis(20);

/// How all cores are made to fetch changed code: by visits of the tool, else by `membarrier` in the target, else by a stop of every
/// running thread.
#[derive(Debug, Default)]
pub struct Serialiser {
    visitors: Option<Visitors>,
    membarrier: bool,
}

impl Serialiser {
    /// Sends the tool's threads to their processors.
    pub fn start() -> Self {
        Self { visitors: Visitors::start(), membarrier: false }
    }

    /// Makes sure that there is a way before anybody waits for it. Without visits, the process is registered for `membarrier`: the
    /// first time in its life that waits until all cores have been in the kernel (milliseconds).
    fn prepare(&mut self, seized: &mut Seized, deadline: Instant) -> Result<(), ApplyError> {
        self.visitors = self.visitors.take().filter(|visitors| visitors.are_there(VISIT_LIMIT));
        if self.visitors.is_none() {
            self.register(seized, deadline)?;
        }
        Ok(())
    }

    fn register(&mut self, seized: &mut Seized, deadline: Instant) -> Result<(), ApplyError> {
        self.membarrier = safepoint::on_any_thread(seized, deadline, |thread| {
            membarrier(thread, REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, deadline)
        })?;
        Ok(())
    }
}

fn action(thread: &mut StoppedThread<'_>, new: u64, old: u64, deadline: Instant) -> Result<(), ApplyError> {
    let result = thread.remote_syscall(SYS_RT_SIGACTION, [SIGTRAP, new, old, SIGSET, 0, 0], deadline)?;
    result
        .map(drop)
        .map_err(|errno| RemoteError::Syscall { name: "rt_sigaction", source: errno.into() }.into())
}

/// Whether the kernel did it.
fn membarrier(thread: &mut StoppedThread<'_>, command: u64, deadline: Instant) -> Result<bool, ApplyError> {
    match thread.remote_syscall(SYS_MEMBARRIER, [command, 0, 0, 0, 0, 0], deadline) {
        Ok(result) => Ok(result.is_ok()),
        Err(RemoteError::Forbidden { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Tells the net about the sites of a transition, and that the old world is the one. This comes before the journal that makes a
/// later run ask for the world.
///
/// # Errors
/// A net that an earlier run had to leave in place is in use, or the memory cannot be written.
pub fn announce(
    seized: &mut Seized,
    landing: Landing,
    sites: &[Site],
    deadline: Instant,
) -> Result<(), ApplyError> {
    if is_installed(seized)? {
        calm(seized, landing, &BTreeSet::new(), &mut Vec::new(), deadline)?;
    }
    Ok(landing.write_sites(&seized.process().clone(), sites)?)
}

/// Puts the net in place, and makes sure that cores can be serialised.
///
/// # Errors
/// [`ApplyError::Refused`] if a seccomp filter forbids it.
pub fn install(
    seized: &mut Seized,
    landing: Landing,
    serialiser: &mut Serialiser,
    deadline: Instant,
) -> Result<(), ApplyError> {
    let process = seized.process().clone();
    landing.write_action(&process)?;
    // The action that is in force is known before the net is: from then on a trap of the program's own goes there.
    safepoint::on_any_thread(seized, deadline, |thread| {
        action(thread, 0, landing.last_action().0, deadline)?;
        landing.keep_last_action(&process)?;
        action(thread, landing.new_action().0, landing.last_action().0, deadline)
    })?;
    landing.keep_last_action(&process)?;
    serialiser.prepare(seized, deadline)
}

/// Puts the net in place again after the kernel took it away: it does so when a thread comes to a breakpoint with SIGTRAP blocked.
///
/// # Errors
/// No thread could be used for it.
pub fn install_again(seized: &mut Seized, landing: Landing, deadline: Instant) -> Result<(), ApplyError> {
    safepoint::on_any_thread(seized, deadline, |thread| action(thread, landing.new_action().0, 0, deadline))
}

/// Whether the process has a handler for SIGTRAP.
///
/// # Errors
/// The process is gone.
pub fn is_installed(seized: &Seized) -> Result<bool, ApplyError> {
    Ok(seized.process().status()?.caught & SIGTRAP_BIT != 0)
}

/// Makes every core fetch changed code anew before it executes it.
///
/// # Errors
/// No thread could be used for it.
pub fn serialise(
    seized: &mut Seized,
    how: &mut Serialiser,
    deadline: Instant,
    others: &mut Vec<Event>,
) -> Result<(), ApplyError> {
    if let Some(visitors) = &mut how.visitors {
        if visitors.visit(VISIT_LIMIT) {
            return Ok(());
        }
        let registered = how.register(seized, deadline);
        let instead = if registered.is_ok() && how.membarrier { "membarrier" } else { "stops" };
        log::debug(format_args!("not every processor could be visited: cores are serialised by {instead}"));
    }
    if how.membarrier {
        let done = safepoint::on_any_thread(seized, deadline, |thread| {
            membarrier(thread, PRIVATE_EXPEDITED_SYNC_CORE, deadline)
        })?;
        if done {
            return Ok(());
        }
    }
    // A thread that does not run goes through the kernel before it does, and a core that takes it up serialises.
    let process = seized.process().clone();
    let running = |tid: &Tid| process.asleep(*tid).is_none();
    let tids: BTreeSet<Tid> = seized.threads().into_iter().filter(running).collect();
    visit(seized, tids, deadline, others, &mut |_| true)
}

/// Waits until no thread is on the way from a breakpoint to its destination. No breakpoint may be left in the code.
///
/// # Errors
/// [`ApplyError::Busy`] if some thread could not be looked at in time; the net has to stay.
///
/// `known` are threads that were stopped or in a system call after the last breakpoint was gone.
fn calm(
    seized: &mut Seized,
    landing: Landing,
    known: &BTreeSet<Tid>,
    others: &mut Vec<Event>,
    deadline: Instant,
) -> Result<(), ApplyError> {
    let process = seized.process().clone();
    let on_its_way = |tid: &Tid| !known.contains(tid) && !process.in_system_call(*tid);
    let tids: BTreeSet<Tid> = seized.threads().into_iter().filter(on_its_way).collect();
    let away = &mut |thread: &StoppedThread<'_>| {
        let trapped = thread.has_fault_pending().unwrap_or(true);
        !trapped && thread.regs().is_ok_and(|regs| !landing.net().contains(&regs.ip()))
    };
    visit(seized, tids, deadline, others, away)
}

/// Takes the net away when no breakpoint is left in the code, unless the program has installed an action of its own meanwhile.
///
/// # Errors
/// No thread could be used for it: the net stays, which changes nothing for the program.
pub fn remove(
    seized: &mut Seized,
    landing: Landing,
    known: &BTreeSet<Tid>,
    others: &mut Vec<Event>,
    deadline: Instant,
) -> Result<(), ApplyError> {
    seized.hold_own_traps(false);
    calm(seized, landing, known, others, deadline)?;
    let process = seized.process().clone();
    landing.keep_last_action(&process)?;
    safepoint::on_any_thread(seized, deadline, |thread| {
        action(thread, landing.old_action().0, landing.last_action().0, deadline)?;
        if !landing.last_was_net(&process)? {
            action(thread, landing.last_action().0, 0, deadline)?;
        }
        Ok(())
    })?;
    Ok(())
}
