//! All threads of a process: traced and running ([`Seized`]), or all stopped ([`Stopped`]).

use crate::collect::RECHECK;
use crate::error::{InterruptError, ProcessError, StuckThread};
use crate::event::Event;
use crate::sys;
use crate::thread::StoppedThread;
use crate::trace::{Goal, Notice, State, Tracees};
use crate::{Process, Regs, Tid, procfs};
use std::time::{Duration, Instant};

/// How long letting go of all threads may take.
const DETACH_LIMIT: Duration = Duration::from_secs(5);

/// Every thread of the process is traced and runs, but for single threads that were interrupted and kept.
///
/// Signals and new threads wait for this tool while it does something else: call [`Self::pump`] while waiting. No other thread
/// of this tool may wait for the traced process meanwhile (`waitpid` takes events away from the tracer).
///
/// Dropping it resumes and detaches every thread.
#[derive(Debug)]
pub struct Seized {
    pub(crate) tracees: Tracees,
    last_stop: Option<Duration>,
}

/// Every thread of the process is stopped with no signal in flight; none executes an instruction or runs in a system call.
///
/// Processes that share the address space without being threads of the process are not covered, see
/// [`Process::address_space_sharers`]. Dropping it resumes and detaches every thread.
#[derive(Debug)]
pub struct Stopped {
    pub(crate) tracees: Tracees,
    since: Instant,
}

impl Seized {
    /// Attaches to all threads of the process while they run: none is stopped.
    ///
    /// # Errors
    /// [`ProcessError::AlreadyTraced`], [`ProcessError::Permission`], [`ProcessError::Lost`], or [`ProcessError::Timeout`] if
    /// new threads kept coming. The process is detached then.
    pub fn seize_all(process: &Process, deadline: Instant) -> Result<Self, ProcessError> {
        let own_child = process.status()?.parent == crate::numbered::own_pid();
        let mut tracees = Tracees::new(process.clone(), own_child);
        tracees.seize_new(deadline)?;
        Ok(Self { tracees, last_stop: None })
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.tracees.process
    }

    /// The threads that are traced.
    pub fn threads(&self) -> Vec<Tid> {
        self.tracees.threads.keys().copied().collect()
    }

    /// The thread that was last chosen for work that any thread can do, if it still lives.
    pub fn worker(&self) -> Option<Tid> {
        self.tracees.worker.filter(|tid| self.tracees.threads.contains_key(tid))
    }

    /// Names the thread to be chosen first for such work, if none was chosen yet.
    pub fn suggest_worker(&mut self, tid: Tid) {
        if self.worker().is_none() {
            self.tracees.worker = Some(tid);
        }
    }

    /// The longest time that a thread was held to do something with it alone ([`Seized::interrupt_one`]), from the request on.
    pub fn longest_stop(&self) -> Duration {
        self.tracees.longest_stop
    }

    /// The longest time that a thread was held to see where it is ([`StoppedThread::resume_after_look`]).
    pub fn longest_look(&self) -> Duration {
        self.tracees.longest_look
    }

    /// How long the threads were held the last time that all were stopped: from the first interrupt to the last resume.
    pub fn last_stop(&self) -> Option<Duration> {
        self.last_stop
    }

    /// Deals with the events of running threads until the given time, or until a thread is held at a breakpoint. Returns
    /// what happened since the last call.
    pub fn pump(&mut self, until: Instant) -> Result<Vec<Event>, ProcessError> {
        let held = |event: &Event| {
            matches!(event, Event::Breakpoint { .. } | Event::Stopped { .. } | Event::Forked { .. })
        };
        self.tracees.pump(until, |tracees| tracees.events.iter().any(held))?;
        Ok(std::mem::take(&mut self.tracees.events))
    }

    /// Deals with the events of running threads until the given time. What happened is told by the next [`Self::pump`] or
    /// [`Self::poll`].
    ///
    /// # Errors
    /// As [`Self::pump`].
    pub fn attend(&mut self, until: Instant) -> Result<(), ProcessError> {
        self.tracees.pump(until, |_| false).map(drop)
    }

    /// Stops all threads. Threads that are created or exit on the way are taken into account.
    ///
    /// # Errors
    /// When a thread does not stop by the deadline, all are resumed and [`InterruptError::Stuck`] names it. The process
    /// stays seized: the value is handed back.
    #[expect(clippy::result_large_err, reason = "the error carries the tracing state on")]
    pub fn interrupt_all(mut self, deadline: Instant) -> Result<Stopped, (Seized, InterruptError)> {
        self.tracees.forget_exited_leader();
        let since = Instant::now();
        match self.stop_all(since, deadline) {
            Ok(()) => Ok(Stopped { tracees: self.tracees, since }),
            Err(error) => {
                let resumed = self.resume_everything();
                self.last_stop = Some(since.elapsed());
                Err((self, resumed.err().map_or(error, InterruptError::from)))
            }
        }
    }

    fn stop_all(&mut self, since: Instant, deadline: Instant) -> Result<(), InterruptError> {
        self.tracees.goal = Goal::Stop;
        for tid in self.threads() {
            self.tracees.ask_to_stop(tid)?;
        }
        loop {
            let phase = deadline.min(Instant::now() + RECHECK);
            let stopped = self.tracees.pump(phase, Tracees::all_stopped)?;
            // With all known threads stopped, a thread that is not known can only have been created past the
            // kernel's automatic attachment (CLONE_UNTRACED).
            if stopped && self.tracees.seize_new(deadline)?.is_empty() && self.tracees.all_stopped() {
                return Ok(());
            }
            self.tracees.recheck()?;
            if Instant::now() >= deadline && !self.tracees.all_stopped() {
                return Err(InterruptError::Stuck { threads: self.stuck(), waited: since.elapsed() });
            }
        }
    }

    fn stuck(&self) -> Vec<StuckThread> {
        let pid = self.tracees.process.pid();
        let on_the_way = self.tracees.threads.iter().filter(|(_, thread)| thread.state != State::Stopped);
        on_the_way.map(|(&tid, _)| stuck_thread(pid, tid)).collect()
    }

    fn resume_everything(&mut self) -> Result<(), ProcessError> {
        self.tracees.goal = Goal::Run;
        self.tracees.resume_all()
    }

    /// Stops one thread while the others run on. It runs again when the returned value is dropped, unless it was
    /// [kept](StoppedThread::keep) or held before, or an [`Event`] tells of its stop: it comes to a breakpoint, or was
    /// [asked](Self::request_stop) to stop. Who gets that event finds it held there.
    ///
    /// # Errors
    /// [`InterruptError::Stuck`] at the deadline, [`InterruptError::NoThread`] if it is gone.
    pub fn interrupt_one(
        &mut self,
        tid: Tid,
        deadline: Instant,
    ) -> Result<StoppedThread<'_>, InterruptError> {
        let since = Instant::now();
        let tracees = &mut self.tracees;
        let was_held = tracees.threads.get(&tid).is_some_and(|thread| thread.state == State::Stopped);
        tracees.ask_to_stop(tid)?;
        let stopped = |tracees: &Tracees| tracees.threads.get(&tid).is_none_or(|t| t.state == State::Stopped);
        tracees.await_one(tid, deadline, stopped)?;
        loop {
            let phase = deadline.min(Instant::now() + RECHECK);
            if !tracees.pump(phase, stopped)? {
                tracees.recheck()?;
            }
            match tracees.threads.get_mut(&tid) {
                None => return Err(InterruptError::NoThread { tid }),
                Some(thread) if thread.state == State::Stopped => break,
                Some(thread) if Instant::now() >= deadline => {
                    // A stop that comes late is answered with a resume, if nobody else waits for it.
                    if thread.notice == Notice::No && thread.parked.is_none() {
                        thread.goal = Goal::Run;
                    }
                    let threads = vec![stuck_thread(tracees.process.pid(), tid)];
                    return Err(InterruptError::Stuck { threads, waited: since.elapsed() });
                }
                Some(_) => {}
            }
        }
        Ok(StoppedThread::new(tracees, tid, (!was_held).then_some(since)))
    }

    /// A thread that is held: at a breakpoint, or [kept](StoppedThread::keep). `None` if it runs. Dropping the value leaves it held.
    pub fn held(&mut self, tid: Tid) -> Option<StoppedThread<'_>> {
        let stopped = self.tracees.threads.get(&tid)?.state == State::Stopped;
        stopped.then(|| StoppedThread::new(&mut self.tracees, tid, None))
    }

    /// Whether job control (SIGSTOP and the like) has stopped all threads: the kernel tells that of each. A thread that waits at a stop for
    /// this tool looks the same from outside.
    pub fn is_stopped_by_program(&self) -> bool {
        let threads = &self.tracees.threads;
        !threads.is_empty() && threads.values().all(|thread| thread.group_stop)
    }

    /// Lets every thread go. Running threads are interrupted one by one for that, as ptrace requires.
    ///
    /// # Errors
    /// [`ProcessError::Timeout`] names threads that could not be detached (uninterruptible); they are when the tool ends.
    pub fn detach(mut self) -> Result<(), ProcessError> {
        self.tracees.detach_everything()
    }
}

impl Stopped {
    /// The process.
    pub fn process(&self) -> &Process {
        &self.tracees.process
    }

    /// All threads of the process. A first thread that has exited is not among them.
    pub fn threads(&self) -> Vec<Tid> {
        self.tracees.threads.keys().copied().collect()
    }

    /// The registers of a thread.
    pub fn regs(&self, tid: Tid) -> Result<Regs, ProcessError> {
        sys::get_regs(tid)
            .map_err(|errno| ProcessError::ptrace(self.process().pid(), tid, "read the registers of", errno))
    }

    /// When the first thread was interrupted.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// A thread, for remote work. Only this one runs during the work; `None` if there is no such thread.
    pub fn thread(&mut self, tid: Tid) -> Option<StoppedThread<'_>> {
        let known = self.tracees.threads.contains_key(&tid);
        known.then(|| StoppedThread::new(&mut self.tracees, tid, None))
    }

    /// Resumes all threads, still traced. [`Seized::last_stop`] tells how long they were held.
    pub fn resume_all(self) -> Result<Seized, ProcessError> {
        let mut seized = Seized { tracees: self.tracees, last_stop: None };
        seized.resume_everything()?;
        seized.last_stop = Some(self.since.elapsed());
        Ok(seized)
    }

    /// Resumes all threads and lets them go in one step. Returns how long they were held. After an error it is
    /// unknown how many were let go; the rest follows when the tool ends.
    pub fn detach(mut self) -> Result<Duration, ProcessError> {
        self.tracees.detach_everything()?;
        Ok(self.since.elapsed())
    }
}

impl Tracees {
    pub fn ask_to_stop(&mut self, tid: Tid) -> Result<(), ProcessError> {
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        thread.goal = Goal::Stop;
        match thread.state {
            State::Running => self.request_stop(tid),
            State::Stopped => Ok(()),
            // Work on it failed and left it there.
            State::Raw(wait) => self.deal_with(tid, wait),
        }
    }

    pub fn resume_all(&mut self) -> Result<(), ProcessError> {
        let tids: Vec<Tid> = self.threads.keys().copied().collect();
        for tid in tids {
            let Some(thread) = self.threads.get_mut(&tid) else { continue };
            thread.is_to_run();
            if thread.state == State::Stopped {
                self.resume(tid)?;
            }
        }
        Ok(())
    }

    fn detach_everything(&mut self) -> Result<(), ProcessError> {
        let pid = self.process.pid();
        let left = self.detach_all(Instant::now() + DETACH_LIMIT);
        match (self.lost, left.as_slice()) {
            (Some(how), _) => Err(ProcessError::Lost { pid, how }),
            (None, []) => Ok(()),
            (None, left) => {
                let threads: Vec<String> =
                    left.iter().map(|&tid| stuck_thread(pid, tid).to_string()).collect();
                let what = format!("threads {} to stop for detaching", threads.join(", "));
                Err(ProcessError::Timeout { pid, what, waited: DETACH_LIMIT })
            }
        }
    }
}

fn stuck_thread(pid: crate::Pid, tid: Tid) -> StuckThread {
    StuckThread { tid, state: procfs::thread_state(pid, tid), wait_channel: procfs::wait_channel(pid, tid) }
}
