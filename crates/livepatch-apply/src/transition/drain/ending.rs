//! The end of a drain: the switch, or everything as it was.

use super::{Drain, Drained, Parked, UNDO};
use crate::error::ApplyError;
use crate::transition::entries::SwitchError;
use crate::transition::{Failed, NotSwitched, Switched, net};
use livepatch_process::{Breakpoints, Seized, Sharers, log};
use std::time::Instant;

impl Drain<'_> {
    /// Lets the parked threads go on, at the entry that they came to. No breakpoint is left there.
    pub(super) fn release(&mut self) -> Result<(), ApplyError> {
        for (tid, Parked { since, .. }) in std::mem::take(&mut self.parked) {
            if let Some(thread) = self.seized.held(tid) {
                thread.resume()?;
                self.calm.insert(tid);
            }
            self.progress.parked(since.elapsed());
        }
        self.seized.release_sharers();
        Ok(())
    }

    /// At the deadline, with the breakpoints away.
    pub(super) fn give_up(mut self) -> Failed {
        if let Err(error) = self.end() {
            return Failed::Error(error);
        }
        self.who_is_inside()
    }

    /// After an error: everything back as it was.
    pub(super) fn abandon(mut self, error: ApplyError) -> (Option<Seized>, ApplyError) {
        let process = self.job.process;
        if !process.is_alive() {
            return (None, error);
        }
        let lost = |error: ApplyError| (None, error);
        if let Err(second) = self.job.entries.disarm() {
            let what = error.to_string();
            return lost(match second {
                ApplyError::NotUndone { undo, .. } => ApplyError::NotUndone { what, undo },
                other => other,
            });
        }
        if let Err(second) = self.release().and_then(|()| self.end()) {
            log::warn(format_args!("after an error, the threads are let go: {second}"));
        }
        (Some(self.seized), error)
    }

    /// The entries are as they stay: no breakpoint is left.
    pub(super) fn end(&mut self) -> Result<(), ApplyError> {
        if self.seized.has_own_traps()
            && let Err(error) = self.keep_net()
        {
            log::debug(format_args!("a SIGTRAP of the program's own meets no action: {error}"));
        }
        // One that still comes to its stop at an entry would be held there, and who waits for it in `vfork` cannot stop.
        self.seized.treat_sharers(Sharers::LetGo);
        let process = self.job.process;
        let resting = std::mem::take(&mut self.resting).into_iter();
        let rests =
            resting.filter(|(tid, asleep)| asleep.syscall.is_some() && process.slept_since(*tid, asleep));
        self.calm.extend(rests.map(|(tid, _)| tid));
        let (landing, limit) = (self.job.entries.landing(), Instant::now() + UNDO);
        let mut events = Vec::new();
        if let Err(error) = net::remove(&mut self.seized, landing, &self.calm, &mut events, limit) {
            log::debug(format_args!("the net stays: {error}"));
        }
        events.into_iter().try_for_each(|event| self.on_event_at_rest(event))?;
        self.clean_all_children()?;
        self.seized.let_all_run()?;
        self.block_again();
        self.seized.set_breakpoints(Breakpoints::new());
        Ok(())
    }
}

impl Drained<'_> {
    /// Switches all entries and lets all threads go on. `done` is called as soon as the entries are final.
    ///
    /// # Errors
    /// Before the commit everything is undone; after it, what is missing is left to the next run.
    pub fn switch(self, done: impl FnOnce()) -> Result<Switched, Box<NotSwitched>> {
        let Self(mut drain) = self;
        let mut events = Vec::new();
        let limit = Instant::now() + UNDO;
        let (seized, how) = (&mut drain.seized, &mut drain.serialiser);
        let switched = drain.job.entries.switch(|| net::serialise(seized, how, limit, &mut events));
        match switched {
            Ok(()) => {}
            Err(SwitchError::Before(error)) => {
                let (seized, error) = drain.abandon(error);
                return Err(Box::new(NotSwitched { seized, error, committed: false }));
            }
            Err(SwitchError::After(error)) => {
                // The net leads everybody to the new world.
                let released = drain.release();
                drain.job.process.warn_of_rest(format_args!(
                    "the entries could not be completed: {error}; threads let go: {}",
                    released.is_ok()
                ));
                return Err(Box::new(NotSwitched { seized: None, error, committed: true }));
            }
        }
        done();
        let finished = drain.release().and_then(|()| {
            events.into_iter().try_for_each(|event| drain.on_event_at_rest(event))?;
            drain.end()
        });
        match finished {
            Ok(()) => Ok(Switched { seized: drain.seized, progress: drain.progress }),
            Err(error) => {
                log::warn(format_args!("after the switch: {error}"));
                Ok(Switched { seized: drain.seized, progress: drain.progress })
            }
        }
    }
}
