//! Before the first breakpoint: every thread takes SIGTRAP, and none is in a `fork` that the kernel will not tell of.
//!
//! Whether a child will be traced is decided when `fork` begins (`kernel_clone` of Linux), and the child gets the signal actions
//! before the memory (`copy_process`). A `fork` that began before its thread was traced can thus end after the breakpoints
//! were written, in a child with copies of them, without the net, and with nobody who would look after it. So every thread is seen
//! outside of such a call once since it is traced: asleep somewhere else, or stopped. Those that are born traced never were in one.

use super::{Drain, NAP};
use crate::error::ApplyError;
use crate::stacks;
use crate::transition::PROCESS_MAKERS;
use crate::transition::net::SIGTRAP_BIT;
use crate::transition::standing::{self, Standing};
use crate::unwind::Tables;
use livepatch_process::{Asleep, Event, Pause, ProcessError, StoppedThread, Tid, log, numbered, processors};
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How long a thread may be held beyond its look for each that waits for its processor, so that these come to their stops. Who goes on at
/// once computes until its time slice ends, and each of the others waits for that: of 64 such threads on two processors the last one
/// for a fifth of a second. Where so many want to run, each of them waits much longer than this for its turn anyway.
const LINGER: Duration = Duration::from_micros(100);
const LONGEST_LINGER: Duration = Duration::from_millis(3);

/// How long threads that want to run may take to stop, all together, so that their signal mask can be set.
const PATIENCE: Duration = Duration::from_secs(1);

impl Drain<'_> {
    /// False at the deadline; the roster names the threads that did not stop.
    pub(super) fn prepare(&mut self) -> Result<bool, ApplyError> {
        let mut unsettled: BTreeSet<Tid> = self.seized.threads().into_iter().collect();
        loop {
            // Who is asked to stop is held until all have been looked at, so that comes first.
            unsettled.retain(|tid| !self.is_settled(*tid));
            for tid in std::mem::take(&mut unsettled) {
                self.asked.insert(tid, Instant::now());
                self.seized.request_stop(tid)?;
            }
            if !self.settle_stopped()? {
                return Ok(false);
            }
            unsettled.extend(self.seized.seize_untraced(self.job.deadline)?);
            if unsettled.is_empty() {
                return Ok(true);
            }
        }
    }

    /// A thread that blocks SIGTRAP would lose the net for all at a breakpoint.
    fn is_settled(&self, tid: Tid) -> bool {
        let process = self.job.process;
        let makes_none = |asleep: &Asleep| asleep.syscall.is_none_or(|call| !PROCESS_MAKERS.contains(&call));
        let slept = self.slept.get(&tid);
        let was_elsewhere = slept.is_some_and(|slept| makes_none(&slept.asleep));
        if !was_elsewhere && !process.asleep(tid).is_some_and(|asleep| makes_none(&asleep)) {
            return false;
        }
        slept.is_some_and(|slept| slept.takes_traps && process.slept_since(tid, &slept.asleep))
            || standing::takes_traps(process, tid)
    }

    /// Waits for those that were asked to stop, and lets each go on at once, or, if more of them want to run than can, in a moment.
    fn settle_stopped(&mut self) -> Result<bool, ApplyError> {
        let processors = processors();
        let queued = self.asked.len().saturating_sub(processors) / processors;
        let linger = LONGEST_LINGER.min(LINGER * queued as u32);
        let mut lingering = VecDeque::new();
        let settled = loop {
            let released = self.go_on(&mut lingering, |since| since.elapsed() < linger);
            if let Err(error) = released {
                break Err(error);
            }
            if self.asked.is_empty() {
                break Ok(true);
            }
            match self.settle_some(&mut lingering) {
                Ok(true) => {}
                end => break end,
            }
        };
        self.go_on(&mut lingering, |_| false)?;
        settled
    }

    /// Lets threads go on, the longest held first, until one is to `stay`.
    fn go_on(
        &mut self,
        lingering: &mut VecDeque<(Tid, Instant)>,
        stay: impl Fn(Instant) -> bool,
    ) -> Result<(), ApplyError> {
        while let Some((tid, since)) = lingering.front().copied().filter(|(_, since)| !stay(*since)) {
            lingering.pop_front();
            if let Some(thread) = self.seized.held(tid) {
                thread.resume()?;
                self.progress.held(since.elapsed());
            }
        }
        Ok(())
    }

    /// Settles those that have stopped; false at the deadline.
    fn settle_some(&mut self, lingering: &mut VecDeque<(Tid, Instant)>) -> Result<bool, ApplyError> {
        let polled = Instant::now();
        let awaited: Vec<Tid> = self.asked.keys().copied().collect();
        let events = self.seized.poll(awaited)?;
        if polled >= self.job.deadline {
            for tid in std::mem::take(&mut self.asked).into_keys() {
                self.roster.stands(tid, Standing::Unknown);
            }
            return Ok(false);
        }
        match events.is_empty() {
            // This thread has a processor, too, that those which are asked may wait for.
            true if !lingering.is_empty() => numbered::sleep(LINGER / 4),
            true => self.pause.take(polled + NAP),
            false => self.pause = Pause::default(),
        }
        for event in events {
            match event {
                Event::Stopped { tid } => lingering.push_back((tid, self.settle(tid)?)),
                Event::Exited { tid } => drop(self.asked.remove(&tid)),
                other => self.on_event_at_rest(other)?,
            }
        }
        self.still_on_the_way(polled);
        Ok(true)
    }

    /// Returns since when the thread may have been held.
    fn settle(&mut self, tid: Tid) -> Result<Instant, ApplyError> {
        let since = self.asked.remove(&tid).unwrap_or_else(Instant::now);
        if let Some(mut thread) = self.seized.held(tid) {
            self.unblocked.extend(unblock(&mut thread, self.job.tables)?.map(|mask| (tid, mask)));
        }
        Ok(since)
    }

    /// A thread with another mask than it was left with has set one since, and what it wants is in that one: C libraries block all
    /// signals for a moment, to fork or to make a thread, and put back the mask from before. In doubt SIGTRAP stays unblocked:
    /// then the thread only takes a signal that nobody sends, while the other way its children would inherit the block.
    pub(super) fn block_again(&mut self) {
        let limit = Instant::now() + PATIENCE;
        for (tid, left_with) in std::mem::take(&mut self.unblocked) {
            let blocked = self.seized.interrupt_one(tid, limit).ok().map(|mut thread| {
                match thread.signal_mask()? == left_with {
                    true => thread.set_signal_mask(left_with | SIGTRAP_BIT),
                    false => Ok(()),
                }
            });
            let blocked = blocked.is_some_and(|result| result.is_ok());
            log::trace(format_args!("thread {tid} blocks SIGTRAP again: {blocked}"));
        }
    }
}

/// Makes a thread take SIGTRAP; the mask that it has then, if it did not before and is to block it again. In a signal handler it is
/// the kernel that blocks signals, and the handler's end that lets them in: to block SIGTRAP again behind that end would make the
/// next trap of the program's own its death.
pub(super) fn unblock(thread: &mut StoppedThread<'_>, tables: &Tables) -> Result<Option<u64>, ProcessError> {
    let mask = thread.signal_mask()?;
    if mask & SIGTRAP_BIT == 0 {
        return Ok(None);
    }
    let stack = stacks::of_one(&thread.process().clone(), thread.tid(), thread.regs()?, tables);
    let in_handler = stack.walk.end.is_err() || stack.walk.frames.iter().any(|frame| frame.signal);
    thread.set_signal_mask(mask & !SIGTRAP_BIT)?;
    Ok((!in_handler).then_some(mask & !SIGTRAP_BIT))
}
