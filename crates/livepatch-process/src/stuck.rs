//! Threads that work failed on: put back at their next stop, or left to find back by themselves.

use crate::Tid;
use crate::drive::Saved;
use crate::error::ProcessError;
use crate::log;
use crate::sys::{self, Wait};
use crate::trace::{Goal, Notice, State, Tracees};

impl Tracees {
    /// Notes what to put back into a thread that did not come to a canonical stop, or could not be worked with there. It is
    /// stopped, or an interrupt is pending: it executes nothing of the program until then.
    pub fn put_back_later(&mut self, tid: Tid, saved: Saved) {
        let Some(thread) = self.threads.get_mut(&tid) else { return };
        // Who was told of its stop finds it there.
        thread.goal = if thread.notice == Notice::Given { Goal::Stop } else { self.goal };
        self.stuck.insert(tid, saved);
        self.go_on_from_stop(tid);
    }

    /// In the middle of a function: the thread runs to the function's end, and finds back by itself. To break it off would leave
    /// what it has begun half done, locks included.
    pub fn let_finish(&mut self, tid: Tid) {
        let Some(thread) = self.threads.get_mut(&tid) else { return };
        thread.goal = self.goal;
        self.go_on_from_stop(tid);
    }

    fn go_on_from_stop(&mut self, tid: Tid) {
        let Some(thread) = self.threads.get(&tid) else { return };
        let wait = match (thread.state, thread.group_stop) {
            (State::Running, _) => return,
            (State::Raw(wait), _) => wait,
            (State::Stopped, true) => Wait::GroupStop,
            (State::Stopped, false) => Wait::Trap,
        };
        if let Err(error) = self.deal_with(tid, wait) {
            log::debug(format_args!("thread {tid} stays at its stop: {error}"));
        }
    }

    /// Leads a thread that was stuck in remote work to a canonical stop and puts its state back. True once that is done.
    pub fn unstick(&mut self, tid: Tid, wait: Wait) -> Result<bool, ProcessError> {
        if matches!(wait, Wait::Trap | Wait::GroupStop) {
            let Some(saved) = self.stuck.remove(&tid) else { return Ok(true) };
            self.accept_death(tid, "put back the registers of", saved.restore(tid))?;
            return Ok(true);
        }
        let on = match wait {
            Wait::Signal(_) => sys::requeue_sent_signal(tid),
            _ => Ok(0),
        };
        self.request_stop(tid)?;
        self.accept_death(tid, "resume", on.and_then(|signal| sys::cont(tid, signal)))?;
        Ok(false)
    }
}
