//! What the threads tell, with breakpoints in place and without.

use super::{BREATH, Drain, FIRST_STOP};
use crate::error::ApplyError;
use livepatch_process::{Event, Pause, Tid, log};
use std::time::Instant;

impl Drain<'_> {
    pub(super) fn take_events(&mut self) -> Result<(), ApplyError> {
        let polled = Instant::now();
        let awaited: Vec<Tid> = self.asked.keys().copied().collect();
        let events = self.seized.poll(awaited)?;
        if !events.is_empty() {
            self.last_event = polled;
            self.pause = Pause::default();
        }
        let began = Instant::now();
        for &event in &events {
            self.on_event(event)?;
        }
        self.stalls.worked(began.elapsed());
        for (tid, sp) in self.seized.passed() {
            (self.last_event, self.pause) = (polled, Pause::default());
            self.progress.parked(self.polled.elapsed());
            self.stalls.passes(tid, sp);
        }
        self.still_on_the_way(polled);
        self.polled = self.polled.max(self.seized.polled_all());
        Ok(())
    }

    /// Whoever was asked to stop and did not tell that it has was not stopped at this time.
    pub(super) fn still_on_the_way(&mut self, polled: Instant) {
        for seen in self.asked.values_mut() {
            *seen = (*seen).max(polled);
        }
    }

    pub(super) fn on_event(&mut self, event: Event) -> Result<(), ApplyError> {
        match event {
            Event::Stopped { tid } => self.on_stop(tid),
            Event::Breakpoint { tid, addr } => self.on_breakpoint(tid, addr),
            Event::Started { tid } => {
                self.outside(tid);
                Ok(())
            }
            Event::Exited { tid } => {
                self.forget(tid);
                Ok(())
            }
            Event::Forked { child } => self.clean_child(child),
            _ => Ok(()),
        }
    }

    pub(super) fn forget(&mut self, tid: Tid) {
        self.roster.forget(tid);
        self.asked.remove(&tid);
        self.parked.remove(&tid);
    }

    /// Breakpoints are away: whoever came to one before is sent back to the entry.
    pub(super) fn on_event_at_rest(&mut self, event: Event) -> Result<(), ApplyError> {
        match event {
            Event::Stopped { tid } | Event::Breakpoint { tid, .. } => {
                if let Some(thread) = self.seized.held(tid) {
                    thread.resume()?;
                }
            }
            Event::Forked { child } => self.clean_child(child)?,
            _ => {}
        }
        Ok(())
    }

    pub(super) fn clean_child(&mut self, child: Tid) -> Result<(), ApplyError> {
        let cleaned =
            self.seized.forked_memory(child).and_then(|memory| self.job.entries.clean_child(&memory));
        if let Err(error) = cleaned {
            log::debug(format_args!(
                "the forked child {child} keeps the breakpoints, which its copy of the net serves: {error}"
            ));
        }
        Ok(self.seized.release_forked(child)?)
    }

    /// Puts in order what the children got that were made while there were breakpoints. Those still on the way to their first stop
    /// are waited for.
    pub(super) fn clean_all_children(&mut self) -> Result<(), ApplyError> {
        let limit = Instant::now() + FIRST_STOP;
        while self.seized.has_forked_on_the_way() && Instant::now() < limit {
            for event in self.seized.pump(Instant::now() + BREATH)? {
                self.on_event_at_rest(event)?;
            }
        }
        for child in self.seized.forked() {
            self.clean_child(child)?;
        }
        self.seized.hold_forked(false);
        Ok(())
    }
}
