//! `rollback`: back to the code of the image.
//!
//! Patches are cumulative: a newer one replaces the older as a whole, so rolling back leads to the unpatched program, not to
//! the patch before. The patch stays mapped (statics that it brought in may be referred to), and applying it again uses
//! the same memory.

use crate::apply::millis;
use crate::error::ApplyError;
use crate::guard::Guard;
use crate::registry::live::Found;
use crate::registry::{EntryWrite, PatchState, State};
use crate::repair::repair;
use crate::report::{Clock, Holds, Policy, RollbackReport, Stages};
use crate::session::{View, patch_reports, until_settled};
use crate::switch::{Done, Switch};
use livepatch_patch::RunAddr;
use livepatch_process::{Seized, log, on_tracer_thread};
use std::time::{Duration, Instant};

/// Which patches to take out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The one that was applied last.
    Last,
    /// The one whose id starts with these hexadecimal digits.
    Id(String),
    /// All of all modules.
    All,
}

/// How to roll back.
#[derive(Clone, Copy, Debug)]
pub struct RollbackOptions {
    /// How threads are treated that are inside of the patch.
    pub policy: Policy,
    /// How long to try.
    pub deadline: Duration,
}

impl Default for RollbackOptions {
    fn default() -> Self {
        Self { policy: Policy::Quiescent, deadline: Duration::from_secs(10) }
    }
}

/// Takes patches out of a process.
///
/// # Errors
/// [`ApplyError::NothingToRollBack`] if no applied patch is meant, else as [`crate::apply()`].
pub fn rollback(
    pid: i32,
    selector: &Selector,
    options: &RollbackOptions,
) -> Result<RollbackReport, ApplyError> {
    let started = Instant::now();
    let deadline = started + options.deadline;
    let mut report = RollbackReport {
        pid,
        build_id: String::new(),
        patches: Vec::new(),
        rolled_back: Vec::new(),
        policy: options.policy,
        total_ms: 0.0,
        stages: Stages::default(),
        holds: Holds::default(),
        repaired: None,
    };
    until_settled(deadline, || {
        let clock = Clock::start();
        let view = View::open(pid, deadline)?;
        if let Some(found) = interrupted(&view) {
            let repaired = on_tracer_thread(|| settle(&view, &found, deadline))?;
            let repaired = repaired.map_err(|error| view.blame(error))?;
            report.repaired = repaired.or(report.repaired.take());
            return Ok(None);
        }
        let Some(chosen) = select(&view, selector) else {
            return finish(&view, &mut report, selector, started).map(Some);
        };
        let taken = on_tracer_thread(|| take_out(&view, chosen, options, started, clock))?;
        let taken = taken.map_err(|error| view.blame(error))?;
        let Some((holds, stages, id)) = taken else { return Ok(None) };
        report.holds = merge(report.holds, holds);
        report.stages += stages;
        report.rolled_back.push(id);
        if *selector == Selector::All {
            return Ok(None);
        }
        let told = View::open_to_read(pid).and_then(|view| finish(&view, &mut report, selector, started));
        match told {
            Err(error) if !matches!(error, ApplyError::Lost(_)) => {
                log::warn(format_args!(
                    "it is rolled back, but what the process has now could not be read: {error}"
                ));
                report.total_ms = millis(started);
                Ok(Some(()))
            }
            other => other.map(Some),
        }
    })
    .map_err(|error| error.within(started, options.deadline))?;
    Ok(report)
}

/// What was repaired; `None` if another run came in between.
fn settle(view: &View, found: &Found, deadline: Instant) -> Result<Option<String>, ApplyError> {
    let Some(seized) = view.seize(deadline)? else { return Ok(None) };
    let (seized, what) = repair(view, seized, found, deadline)?;
    seized.leave()?;
    Ok(Some(what))
}

fn interrupted(view: &View) -> Option<Found> {
    let leftover = |f: &Found| f.state.as_ref().is_some_and(|s| s.journal.is_some());
    view.patched().into_iter().map(|(_, found)| found).find(leftover)
}

fn merge(a: Holds, b: Holds) -> Holds {
    Holds {
        world_stopped_us: a.world_stopped_us.max(b.world_stopped_us),
        parked_us: a.parked_us.max(b.parked_us),
        worker_us: a.worker_us.max(b.worker_us),
        threads: a.threads.max(b.threads),
        retries: a.retries + b.retries,
    }
}

fn finish(
    view: &View,
    report: &mut RollbackReport,
    selector: &Selector,
    started: Instant,
) -> Result<(), ApplyError> {
    if report.rolled_back.is_empty() {
        return Err(ApplyError::NothingToRollBack(match selector {
            Selector::Id(id) if id.is_empty() => "an empty id means no patch".into(),
            Selector::Id(id) => format!("no patch with id {id} is applied"),
            Selector::Last | Selector::All => "no patch is applied in this process".into(),
        }));
    }
    for (module, found) in view.patched() {
        if let (Some(id), Some(state)) = (&module.image.build_id, &found.state) {
            report.patches.extend(patch_reports(id, state));
        }
    }
    let taken = |p: &&crate::report::PatchReport| report.rolled_back.contains(&p.id);
    report.build_id = report.patches.iter().find(taken).map(|p| p.build_id.clone()).unwrap_or_default();
    report.total_ms = millis(started);
    Ok(())
}

/// The active patch that is meant.
fn select(view: &View, selector: &Selector) -> Option<(Found, State, usize)> {
    view.patched()
        .into_iter()
        .filter_map(|(_, found)| {
            let state = found.state.clone()?;
            let active = state.active()?;
            Some((found, state, active))
        })
        .filter(|(_, state, active)| match selector {
            Selector::Id(id) => {
                !id.is_empty() && state.patches[*active].id.to_string().starts_with(&id.to_lowercase())
            }
            Selector::Last | Selector::All => true,
        })
        .max_by_key(|(_, state, active)| state.patches[*active].applied_at)
}

/// Takes one patch out; `None` if another run came in between.
fn take_out(
    view: &View,
    (found, mut state, active): (Found, State, usize),
    options: &RollbackOptions,
    started: Instant,
    mut clock: Clock,
) -> Result<Option<(Holds, Stages, String)>, ApplyError> {
    let tables = view.tables()?;
    let deadline = started + options.deadline;
    let mut stages = Stages { prepare_ms: clock.lap(), ..Stages::default() };
    let Some(seized) = view.seize(deadline)? else { return Ok(None) };
    stages.attach_ms = clock.lap();
    log::info(format_args!("attached to {} threads", seized.threads().len()));
    let mut guard = Guard::default();
    guard.patches(options.policy, &state, &[]);
    let record = &state.patches[active];
    log::info(format_args!("patch {} is taken out: {} functions", record.id, record.functions.len()));
    if options.policy == Policy::Immediate {
        for function in &record.functions {
            // Under the jump is no code that could branch: what it is does not matter here.
            guard.function(options.policy, function.old, &[], &function.path, &view.process);
        }
    }
    let entry = |at: RunAddr, before, after| EntryWrite { at, before, after };
    let id = record.id.to_string();
    let switch = Switch {
        process: &view.process,
        location: found.location,
        tables: &tables,
        guard,
        policy: options.policy,
        deadline,
        writes: record.functions.iter().map(|f| entry(f.old, f.jump, f.saved)).collect(),
        before: vec![(active, PatchState::Applied)],
        after: vec![(active, PatchState::RolledBack)],
    };
    match switch.run(seized, &mut state) {
        Ok(Done { seized, holds, look }) => {
            stages.transition(&mut clock, look);
            seized.leave()?;
            Ok(Some((holds, stages, id)))
        }
        Err(failed) => {
            failed.seized.map_or(Ok(()), Seized::leave)?;
            Err(failed.why.into_error(view, started.elapsed(), None))
        }
    }
}
