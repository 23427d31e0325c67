//! Stopping threads one by one without waiting for each: many may be on their way at once, and each is held only as long as the
//! caller looks at it.

use crate::error::ProcessError;
use crate::event::Event;
use crate::trace::{Notice, State};
use crate::{Seized, Tid};
use std::time::{Duration, Instant};

/// How often to ask for any event at all, for each traced thread: the kernel looks through all of them every time.
const ASK_FOR_ANY: Duration = Duration::from_nanos(400);
/// The shortest of these pauses.
const ASK_AT_LEAST: Duration = Duration::from_micros(20);
/// With so many threads that takes as long as a stop, and a thread that stops meanwhile is held for it: while stops are awaited
/// the pause is longer by as much as there are more threads, and begins anew when the first one is awaited.
const FEW: u32 = 100;
/// The longest pause then.
const ASK_AT_MOST: Duration = Duration::from_millis(20);

impl Seized {
    /// Asks a running thread to stop. [`Event::Stopped`] tells that it did, unless a breakpoint or its end comes first. A thread
    /// that is held already stays as it is and tells nothing.
    ///
    /// # Errors
    /// The kernel refused. A thread that is gone is no error.
    pub fn request_stop(&mut self, tid: Tid) -> Result<(), ProcessError> {
        if let Some(thread) = self.tracees.threads.get_mut(&tid)
            && thread.state == State::Running
        {
            thread.notice = Notice::Due;
            self.tracees.ask_to_stop(tid)?;
        }
        Ok(())
    }

    /// Lets every thread go on that was asked to stop or came to a breakpoint, or will when it comes to its stop: nobody looks after
    /// them any more. No breakpoint is left.
    ///
    /// # Errors
    /// A held thread could not be resumed.
    pub fn let_all_run(&mut self) -> Result<(), ProcessError> {
        self.tracees.resume_all()
    }

    /// Deals with what the threads report, at once, and returns the events; without waiting. `awaited` are threads that were
    /// asked to stop: they are asked after first.
    ///
    /// # Errors
    /// [`ProcessError::Lost`], or the kernel refused something.
    pub fn poll(&mut self, awaited: impl IntoIterator<Item = Tid>) -> Result<Vec<Event>, ProcessError> {
        self.ask_expected()?;
        let mut awaits = false;
        for tid in awaited {
            awaits |= !self.tracees.collect(tid)?;
        }
        let threads = self.tracees.threads.len() as u32;
        let asked_for_any = self.tracees.asked_for_any;
        let (since, pause) = match awaits && threads > FEW {
            true => {
                let awaits_since = *self.tracees.awaits_since.get_or_insert_with(Instant::now);
                let pause = (ASK_FOR_ANY * threads * (threads / FEW)).min(ASK_AT_MOST);
                (asked_for_any.max(awaits_since), pause)
            }
            false => {
                self.tracees.awaits_since = None;
                (asked_for_any, (ASK_FOR_ANY * threads).max(ASK_AT_LEAST))
            }
        };
        if self.tracees.events.is_empty() && since.elapsed() >= pause {
            let asked = Instant::now();
            while self.tracees.collect_one()? {}
            self.tracees.asked_for_any = asked;
        }
        match self.tracees.lost {
            Some(how) => Err(ProcessError::Lost { pid: self.process().pid(), how }),
            None => Ok(std::mem::take(&mut self.tracees.events)),
        }
    }

    /// When [`Seized::poll`] last asked for the events of all threads: what it had not told by then has happened since.
    pub fn polled_all(&self) -> Instant {
        self.tracees.asked_for_any
    }

    /// Whether the thread is traced by this tool.
    pub fn traces(&self, tid: Tid) -> bool {
        self.tracees.threads.contains_key(&tid)
    }

    /// Attaches threads that came into being past the kernel's automatic attachment (`CLONE_UNTRACED`). Returns
    /// them.
    ///
    /// # Errors
    /// As [`Seized::seize_all`].
    pub fn seize_untraced(&mut self, deadline: Instant) -> Result<Vec<Tid>, ProcessError> {
        self.tracees.forget_exited_leader();
        self.tracees.seize_new(deadline)
    }

    /// Ends the work without touching the threads: they stay traced until the OS thread that attached ends, which lets go of
    /// all of them without interrupting a single one. Threads that are held are resumed first.
    ///
    /// # Errors
    /// A held thread could not be resumed.
    pub fn leave(mut self) -> Result<(), ProcessError> {
        self.let_held_back_in();
        self.tracees.let_go_of_children();
        self.tracees.let_go_of_own_traps();
        self.tracees.resume_all()?;
        self.tracees.threads.clear();
        Ok(())
    }
}
