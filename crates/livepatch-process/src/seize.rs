//! Attaching to the threads of a process, and to tasks that come into being.

use crate::error::ProcessError;
use crate::event::Event;
use crate::process::check_tracers;
use crate::sys::{self, Wait};
use crate::trace::{Goal, Notice, State, Thread, Tracees};
use crate::{Tid, numbered, procfs};
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// So often the kernel must refuse to attach, with nobody to be seen who traces the thread, before that is its answer.
const REFUSALS: u32 = 16;
/// Long enough for a tracer that is on its way out.
const BETWEEN_REFUSALS: Duration = Duration::from_millis(1);

impl Tracees {
    /// Attaches every thread that is not attached yet, until a look at the thread list shows no other. New threads of
    /// attached ones are attached by the kernel. Returns those that were found.
    pub fn seize_new(&mut self, deadline: Instant) -> Result<Vec<Tid>, ProcessError> {
        let started = Instant::now();
        let mut found = Vec::new();
        loop {
            let before = found.len();
            for tid in self.process.threads()? {
                let new = !self.threads.contains_key(&tid) && !self.process.inner.tasks.is_worker(tid);
                if new && self.seize_thread(tid)? {
                    found.push(tid);
                }
            }
            if found.len() == before {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                let (pid, what) = (self.process.pid(), "an end of new threads".to_owned());
                return Err(ProcessError::Timeout { pid, what, waited: started.elapsed() });
            }
        }
    }

    /// Attaches one thread. False if it is gone or was attached on its creation.
    ///
    /// The kernel's EPERM does not say whether the thread has another tracer, and a tracer may end between the refusal and the
    /// look at who it was: what counts is an answer that stays the same.
    fn seize_thread(&mut self, tid: Tid) -> Result<bool, ProcessError> {
        let pid = self.process.pid();
        let mut refused = 0;
        loop {
            match sys::seize(tid) {
                Ok(()) => {
                    self.add(tid);
                    if self.goal == Goal::Stop {
                        self.request_stop(tid)?;
                    }
                    return Ok(true);
                }
                Err(Errno::ESRCH) => return Ok(false),
                Err(Errno::EPERM) => {}
                Err(errno) => return Err(ProcessError::io(pid, format!("attach to thread {tid}"), errno)),
            }
            let Ok(status) = procfs::status(pid, tid) else { return Ok(false) };
            if status.state.has_exited() {
                return Ok(false);
            }
            match status.tracer {
                // Attached on creation: its first stop is still to be collected.
                Some(tracer) if tracer == numbered::own_tid() => {
                    self.started(tid);
                    return Ok(false);
                }
                Some(_) => check_tracers(pid)?,
                None => refused += 1,
            }
            if refused == REFUSALS {
                return Err(crate::process::access_error(pid, &status, "attach", Errno::EPERM.into()));
            }
            numbered::sleep(BETWEEN_REFUSALS);
        }
    }

    fn add(&mut self, tid: Tid) {
        let thread = Thread {
            goal: self.goal,
            state: State::Running,
            group_stop: false,
            parked: None,
            notice: Notice::No,
        };
        self.threads.entry(tid).or_insert(thread);
    }

    /// A thread that was attached on its creation: it has not executed anything.
    pub fn started(&mut self, tid: Tid) {
        self.add(tid);
        self.events.push(Event::Started { tid });
    }

    /// At the event of a new task: a thread of the process, or something else.
    pub fn add_child_of(&mut self, tid: Tid, how: Wait) -> Result<(), ProcessError> {
        let child = match sys::event_tid(tid) {
            Ok(child) => child,
            Err(Errno::ESRCH) => return Ok(()),
            Err(errno) => {
                return Err(ProcessError::ptrace(self.process.pid(), tid, "read the event of", errno));
            }
        };
        if self.threads.contains_key(&child) {
            return Ok(());
        }
        if procfs::task_dir(self.process.pid(), child).exists() {
            self.started(child);
        } else {
            self.add_process(child, (tid, how));
        }
        // Its events may have been dealt with before its creator's; then it is gone already, or let go.
        self.collect(child).map(drop)
    }
}
