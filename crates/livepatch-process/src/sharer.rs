//! Children in the same memory, while there are breakpoints: of `vfork`, until they call `execve`, and of `clone` with `CLONE_VM` but without
//! `CLONE_THREAD`.
//!
//! Such a child meets the process's own breakpoints, and has what was the handler of SIGTRAP when it was made. It stays traced, begins
//! outside of everything, and is held at the first breakpoint that it meets, so that nobody is inside who is in no thread list. It is
//! taken there to a canonical stop like a thread: when this tool dies, it executes the `int3` anew.

use crate::error::ProcessError;
use crate::met::breakpoint_met;
use crate::sys::{self, Wait};
use crate::trace::Tracees;
use crate::{Seized, Tid};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use nix::libc;

/// What is done with children in the same memory that come into being.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharers {
    /// They are let go at their first stop.
    #[default]
    LetGo,
    /// They are held there, before their first instruction.
    Hold,
    /// They run, and are held at the first breakpoint that they meet.
    Watch,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharer {
    /// Who made it, if that one waits until it has left the memory.
    waited_for_by: Option<Tid>,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// On its way to its first stop.
    Coming,
    /// At its first stop.
    Start,
    Running,
    /// On its way to be held at a breakpoint.
    Meeting(RunAddr),
    Breakpoint(RunAddr),
}

/// A child that is held at a breakpoint.
#[derive(Clone, Copy, Debug)]
pub struct HeldSharer {
    /// The child.
    pub child: Tid,
    /// Where it is held, the `int3` not executed.
    pub addr: RunAddr,
    /// Who made it, if that one waits in `vfork`.
    pub waited_for_by: Option<Tid>,
}

impl Sharer {
    /// Whether it may have executed anything.
    pub(crate) fn is_at_large(&self) -> bool {
        self.at != At::Start
    }
}

impl Tracees {
    pub(crate) fn add_sharer(&mut self, child: Tid, parent: Tid, how: Wait) {
        let waited_for_by = Some(parent).filter(|_| how == Wait::Vfork);
        self.sharers.insert(child, Sharer { waited_for_by, at: At::Coming });
    }

    /// Answers a stop of such a child.
    pub(crate) fn handle_sharer(&mut self, child: Tid, wait: Wait) -> Result<(), ProcessError> {
        let signal = if let Wait::Signal(signal) = wait { signal } else { 0 };
        if wait == Wait::Exec || self.sharer_mode == Sharers::LetGo {
            let met = signal == libc::SIGTRAP && self.goes_back(child)?.is_some();
            self.sharers.remove(&child);
            self.may_be_shared |= wait != Wait::Exec;
            let signal = if met { 0 } else { signal };
            return self.accept_death(child, "detach from", sys::detach(child, signal));
        }
        if matches!(wait, Wait::Clone | Wait::Fork | Wait::Vfork) {
            self.add_child_of(child, wait)?;
        }
        let met = if signal == libc::SIGTRAP { self.goes_back(child)? } else { None };
        let hold = self.sharer_mode == Sharers::Hold;
        let Some(sharer) = self.sharers.get_mut(&child) else { return Ok(()) };
        match (sharer.at, wait) {
            (At::Coming, Wait::Trap) if hold => {
                sharer.at = At::Start;
                return Ok(());
            }
            (At::Meeting(addr), Wait::Trap | Wait::GroupStop) => {
                sharer.at = At::Breakpoint(addr);
                return Ok(());
            }
            (At::Coming, _) => sharer.at = At::Running,
            _ => {}
        }
        if let Some(addr) = met {
            sharer.at = At::Meeting(addr);
        }
        let interrupts = matches!(sharer.at, At::Meeting(_));
        if wait == Wait::GroupStop {
            return self.accept_death(child, "resume", sys::listen(child));
        }
        if interrupts {
            self.request_stop(child)?;
        }
        let signal = if met.is_some() { 0 } else { signal };
        self.accept_death(child, "resume", sys::cont(child, signal))
    }

    /// If it executed a breakpoint: takes it back to before.
    fn goes_back(&mut self, child: Tid) -> Result<Option<RunAddr>, ProcessError> {
        let moved = || {
            let Some((mut regs, addr)) = breakpoint_met(&self.breakpoints, child)? else { return Ok(None) };
            regs.set_ip(addr);
            sys::set_regs(child, &regs).map(|()| Some(addr))
        };
        match moved() {
            Err(Errno::ESRCH) => Ok(None),
            moved => moved.map_err(|errno| ProcessError::ptrace(self.process.pid(), child, "move", errno)),
        }
    }

    /// Lets some go on that are held. One that is gone needs nothing.
    fn resume_sharers(&mut self, which: impl Fn(Tid, At) -> bool) {
        for (child, sharer) in self.sharers.iter_mut().filter(|(child, sharer)| which(**child, sharer.at)) {
            sharer.at = At::Running;
            let _ = sys::insist(|| sys::cont(*child, 0));
        }
    }

    pub(crate) fn let_go_of_sharers(&mut self) {
        self.sharer_mode = Sharers::LetGo;
        let is_held = |sharer: &Sharer| matches!(sharer.at, At::Start | At::Breakpoint(_));
        let held: Vec<Tid> =
            self.sharers.iter().filter(|(_, sharer)| is_held(sharer)).map(|(child, _)| *child).collect();
        self.may_be_shared |= !held.is_empty();
        for child in held {
            self.sharers.remove(&child);
            let _ = sys::detach(child, 0);
        }
    }
}

impl Seized {
    /// What is done from now on with children in the same memory. Those that are held at their first stop go on with
    /// [`Sharers::Watch`], all that are held with [`Sharers::LetGo`].
    pub fn treat_sharers(&mut self, how: Sharers) {
        self.tracees.sharer_mode = how;
        match how {
            Sharers::LetGo => self.tracees.let_go_of_sharers(),
            Sharers::Hold => {}
            Sharers::Watch => self.tracees.resume_sharers(|_, at| at == At::Start),
        }
    }

    /// Those that are held at breakpoints.
    pub fn held_sharers(&self) -> Vec<HeldSharer> {
        let held = self.tracees.sharers.iter().filter_map(|(&child, sharer)| match sharer.at {
            At::Breakpoint(addr) => Some(HeldSharer { child, addr, waited_for_by: sharer.waited_for_by }),
            _ => None,
        });
        held.collect()
    }

    /// Lets one go on that is held at a breakpoint, from an address.
    ///
    /// # Errors
    /// The kernel refused; a child that is gone is no error.
    pub fn resume_sharer(&mut self, child: Tid, from: RunAddr) -> Result<(), ProcessError> {
        let moved = sys::get_regs(child).and_then(|mut regs| {
            regs.set_ip(from);
            sys::set_regs(child, &regs)
        });
        self.tracees.accept_death(child, "move", moved)?;
        self.tracees.resume_sharers(|held, at| held == child && matches!(at, At::Breakpoint(_)));
        Ok(())
    }

    /// Lets all go on that are held at breakpoints, which are not there any more.
    pub fn release_sharers(&mut self) {
        self.tracees.resume_sharers(|_, at| matches!(at, At::Breakpoint(_)));
    }
}
