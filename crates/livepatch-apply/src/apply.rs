//! `apply` and `check`.

mod earlier;
mod leave;
mod libraries;
mod record;

use crate::bind::{self, Bound};
use crate::error::{ApplyError, Mismatch};
use crate::guard::Guard;
use crate::landing::Landing;
use crate::library::Library;
use crate::load::{self, Loader};
use crate::options::ApplyOptions;
use crate::registry::live::{self, Found};
use crate::registry::{EntryWrite, FrameStep, FunctionRecord, Journal, Location, PatchState, Record, State};
use crate::repair::repair;
use crate::report::{ApplyReport, Clock, Holds, Policy, Stages};
use crate::safepoint::{self, Rules};
use crate::scope::Scope;
use crate::session::{UNDO_LIMIT, View, patch_reports, until_settled};
use crate::switch::{Done, Switch, Why};
use crate::target::{self, Module};
use crate::transition::Failed;
use crate::transition::drain;
use crate::transition::entries::Entries;
use crate::unwind::Tables;
use livepatch_patch::link::{Plan, plan};
use livepatch_patch::{BuildId, Digest, Patch, RunAddr, Selected, SymbolId};
use livepatch_process::{Seized, log, on_tracer_thread};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Applies a patch file to a process.
///
/// A patch that is applied already is left as it is ([`ApplyReport::already_applied`]). An older patch of the same
/// module is replaced in the same switch; statics and thread-locals that it brought in keep their values.
///
/// # Errors
/// See [`ApplyError`]. But for [`ApplyError::NotUndone`] the process runs as before; what may remain of a failed attempt
/// is memory that nothing refers to.
pub fn apply(pid: i32, patch_bytes: &[u8], options: &ApplyOptions) -> Result<ApplyReport, ApplyError> {
    let damaged = |error: livepatch_patch::ContainerError| Mismatch::Patch(error.to_string());
    let patch = Patch::from_bytes(patch_bytes).map_err(damaged)?;
    let id = Patch::id_of(patch_bytes).map_err(damaged)?;
    let selected = patch.select(id, &options.selection)?;
    let left = leave::chosen(&selected.patch, options)?;
    let started = Instant::now();
    let deadline = started + options.deadline;
    let job = Job {
        pid,
        patch: &selected.patch,
        selected: &selected,
        left,
        id: selected.id,
        options,
        started,
        deadline,
    };
    job.run()
}

/// Everything that [`apply`] checks before its first write, and whether the process is quiescent at this moment.
///
/// # Errors
/// As [`apply`].
pub fn check(pid: i32, patch_bytes: &[u8], options: &ApplyOptions) -> Result<ApplyReport, ApplyError> {
    apply(pid, patch_bytes, &ApplyOptions { dry_run: true, ..options.clone() })
}

struct Job<'a> {
    pid: i32,
    patch: &'a Patch,
    selected: &'a Selected,
    /// Functions whose calls under way may go on (indices of redirects).
    left: BTreeSet<usize>,
    id: Digest,
    options: &'a ApplyOptions,
    started: Instant,
    deadline: Instant,
}

/// What was found out before anything was stopped.
struct Prepared<'a> {
    view: &'a View,
    module: &'a Module,
    found: Option<Found>,
    /// Code of each redirected function as the image has it.
    code: Vec<Vec<u8>>,
    plan: Plan,
    scope: Scope<'a>,
}

/// What attempts have done that were followed by another.
#[derive(Default)]
struct Past {
    repaired: Option<String>,
    /// Libraries that were loaded for the patch.
    libraries: Option<Vec<Library>>,
}

/// What the report says of the way to where the work is.
struct SoFar {
    repaired: Option<String>,
    libraries: Vec<String>,
    stages: Stages,
    clock: Clock,
}

impl Job<'_> {
    fn run(&self) -> Result<ApplyReport, ApplyError> {
        let mut past = Past::default();
        let report = until_settled(self.deadline, || on_tracer_thread(|| self.attempt(&mut past))?);
        report.map_err(|error| error.within(self.started, self.options.deadline))
    }

    /// The report; `None` if the state of the process changed meanwhile.
    fn attempt(&self, past: &mut Past) -> Result<Option<ApplyReport>, ApplyError> {
        let clock = Clock::start();
        let view = View::open(self.pid, self.deadline)?;
        self.attempt_on(&view, clock, past).map_err(|error| view.blame(error))
    }

    fn attempt_on(
        &self,
        view: &View,
        mut clock: Clock,
        past: &mut Past,
    ) -> Result<Option<ApplyReport>, ApplyError> {
        let module = view.modules.with_build_id(&self.patch.meta.target.build_id)?;
        let found = view.registry(module);
        let state = found.as_ref().and_then(|found| found.state.as_ref());
        if let Some(found) = found.as_ref().filter(|_| state.is_some_and(|s| s.journal.is_some())) {
            // A half-done switch has breakpoints in the code: nothing can be said about the entries before it is settled.
            if self.options.dry_run {
                let what = "a killed run left something that has to be repaired first: run apply or rollback";
                return Err(ApplyError::refused(what));
            }
            let Some(seized) = view.seize(self.deadline)? else { return Ok(None) };
            let (seized, what) = repair(view, seized, found, self.deadline)?;
            seized.leave()?;
            past.repaired = Some(what);
            return Ok(None);
        }
        let code = target::verify(&view.process, module, &self.patch.meta, state)?;
        if let Some(state) = state.filter(|s| s.active().is_some_and(|i| s.patches[i].id == self.id)) {
            let so_far = SoFar::new(past, Stages::default(), clock);
            let mut report = self.report(state, Holds::default(), so_far);
            report.already_applied = true;
            return Ok(Some(report));
        }
        let plan = plan(self.patch)?;
        let brought = past.libraries.as_deref().unwrap_or_default();
        let scope = Scope::of(&view.process, &view.modules, module)?.with(&view.modules, brought)?;
        let mut bound = bind::bind(&view.process, module, &scope, self.patch, state)?;
        if let Some(state) = state {
            self.keep_addresses(state, &mut bound.bindings);
        }
        load::trial_link(&view.process, module, self.patch, &plan, &bound.bindings)?;
        load::unwinder(&view.process, &view.modules, module, &scope)?;
        let prepared = Prepared { view, module, found, code, plan, scope };
        self.check_entries(&prepared)?;
        self.check_earlier(&prepared)?;
        log::info(format_args!(
            "patch {} fits process {}: {} functions to replace, {} bytes to map",
            self.id,
            self.pid,
            prepared.code.len(),
            prepared.plan.total()
        ));
        let tables = view.tables()?;
        let rules = Rules::new(&view.process, &view.modules)?;
        let mut stages = Stages { prepare_ms: clock.lap(), ..Stages::default() };
        let libraries = self.libraries_to_bring(&prepared, &bound, past)?;
        let Some(mut seized) = view.seize(self.deadline)? else { return Ok(None) };
        safepoint::check_filters(&mut seized, self.deadline)?;
        stages.attach_ms = clock.lap();
        log::info(format_args!("attached to {} threads", seized.threads().len()));
        if !libraries.is_empty() && !self.options.dry_run {
            log::info(format_args!("the program loads {}", libraries.join(", ")));
            past.libraries = Some(self.bring(&prepared, &tables, &rules, seized, libraries)?);
            return Ok(None);
        }
        let mut so_far = SoFar::new(past, stages, clock);
        so_far.libraries.extend(libraries.iter().cloned());
        if self.options.dry_run {
            return self.snapshot(&prepared, &tables, seized, so_far).map(Some);
        }
        self.carry_out(&prepared, &tables, &rules, bound, seized, so_far).map(Some)
    }

    fn guard(&self, prepared: &Prepared<'_>, state: &State) -> Guard {
        let mut guard = Guard::default();
        guard.patches(self.options.policy, state, &self.same_as_earlier(state));
        for (index, (redirect, code)) in self.patch.meta.redirects.iter().zip(&prepared.code).enumerate() {
            let at = redirect.old.at(prepared.module.image.bias);
            let policy = self.policy_for(index);
            guard.function(policy, at, code, &redirect.path, &prepared.view.process);
        }
        for orphan in &self.patch.meta.orphans {
            let at = orphan.old.at(prepared.module.image.bias);
            let is_left = |function: &u32| self.policy_for(*function as usize) == Policy::Immediate;
            if !orphan.from.iter().all(is_left) {
                guard.orphan(at, orphan.old_size, &orphan.path);
            }
        }
        guard
    }

    fn snapshot(
        &self,
        prepared: &Prepared<'_>,
        tables: &Tables,
        seized: Seized,
        mut so_far: SoFar,
    ) -> Result<ApplyReport, ApplyError> {
        let state = prepared.state();
        let guard = self.guard(prepared, &state);
        let process = &prepared.view.process;
        let nowhere = Landing::of(Location { at: RunAddr(0) });
        let entries = Entries::new(process, nowhere, &[], &[], &BTreeMap::new())?;
        let job = drain::Job { process, entries: &entries, tables, guard: &guard, deadline: self.deadline };
        match drain::survey(seized, job) {
            Ok((seized, progress)) => {
                so_far.stages.transition_ms = so_far.clock.lap();
                let holds = progress.holds(&seized);
                seized.leave()?;
                let mut report = self.report(&state, holds, so_far);
                report.dry_run = true;
                report.mapped_bytes = prepared.plan.total();
                Ok(report)
            }
            Err(Failed::Error(error) | Failed::Unable(_, error)) => Err(error),
            Err(Failed::Busy(busy)) => {
                let (seized, why) = Why::busy(*busy);
                seized.leave()?;
                Err(self.explain(prepared, why))
            }
        }
    }

    fn explain(&self, prepared: &Prepared<'_>, why: Why) -> ApplyError {
        let patch = Some((prepared.module, self.patch.meta.redirects.as_slice()));
        self.advise(prepared, why.into_error(prepared.view, self.started.elapsed(), patch))
    }

    fn carry_out(
        &self,
        prepared: &Prepared<'_>,
        tables: &Tables,
        rules: &Rules,
        bound: Bound,
        mut seized: Seized,
        mut so_far: SoFar,
    ) -> Result<ApplyReport, ApplyError> {
        let mut state = prepared.state();
        let location = self.location(prepared, &mut seized, &state)?;
        let loader = self.loader(prepared, tables, rules, location);
        let known = state.find(&self.id);
        let index = match known {
            Some(index) => {
                load::check_contents(loader.process, &state, index)?;
                let texts: Vec<_> = state.patches.iter().map(|record| record.mapping.text_range()).collect();
                let record = &state.patches[index];
                let code = record.code();
                let at = |symbol: SymbolId| {
                    let name = &self.patch.symbols[symbol.0 as usize].name;
                    code.iter().find(|function| function.symbol == *name).map(|function| function.start)
                };
                let earlier = self.earlier(prepared, &state, &at)?;
                let record = &mut state.patches[index];
                record.forget_earlier(&texts);
                record.functions.extend(earlier);
                record.applied_at = now();
                log::info(format_args!("the patch is mapped already"));
                index
            }
            None => {
                let loaded =
                    loader.load(&mut seized, &mut state, self.patch, &self.id, &prepared.plan, bound)?;
                let record = self.record(prepared, &state, loaded)?;
                log::info(format_args!("mapped and linked at {}", record.mapping.base));
                state.patches.push(record);
                state.patches.len() - 1
            }
        };
        so_far.stages.load_ms = so_far.clock.lap();
        let active = state.active();
        let switch = self.switch(prepared, location, tables, &state, index);
        let in_vain = known.is_none().then(|| state.patches[index].clone());
        match switch.run(seized, &mut state) {
            Ok(Done { seized, holds, look }) => {
                so_far.stages.transition(&mut so_far.clock, look);
                let (left, still_inside) = self.leave(prepared, tables, seized);
                let mut report = self.report(&state, holds, so_far);
                report.still_inside = still_inside;
                report.replaced = active.iter().map(|i| state.patches[*i].id.to_string()).collect();
                report.mapped_bytes = if known.is_some() { 0 } else { prepared.plan.total() };
                left?;
                report.total_ms = millis(self.started);
                Ok(report)
            }
            Err(failed) => {
                let undone = !matches!(failed.why, Why::Error(ApplyError::NotUndone { .. }));
                if let Some(mut seized) = failed.seized {
                    if let Some(record) = in_vain.filter(|_| undone) {
                        self.take_back(&loader, prepared, &mut seized, state, record)?;
                    }
                    seized.leave()?;
                }
                Err(self.explain(prepared, failed.why))
            }
        }
    }

    fn loader<'p>(
        &self,
        prepared: &'p Prepared<'_>,
        tables: &'p Tables,
        rules: &'p Rules,
        location: Location,
    ) -> Loader<'p> {
        Loader {
            process: &prepared.view.process,
            modules: &prepared.view.modules,
            module: prepared.module,
            scope: &prepared.scope,
            rules,
            tables,
            location,
            deadline: self.deadline,
        }
    }

    /// Unmaps a patch that was loaded in vain. A TLS carrier stays for the next attempt, because it cannot be unloaded.
    fn take_back(
        &self,
        loader: &Loader<'_>,
        prepared: &Prepared<'_>,
        seized: &mut Seized,
        mut state: State,
        record: Record,
    ) -> Result<(), ApplyError> {
        state.patches.retain(|other| other.id != record.id);
        match record.eh_frame {
            Some(region) => loader.step(&mut state, record.mapping, region.start, FrameStep::Revoking)?,
            None => {
                let journal =
                    Journal::Loading { mapping: record.mapping, eh_frame: None, step: FrameStep::None };
                state.journal = Some(journal);
                loader.location.commit(&mut &*loader.process, &state)?;
            }
        }
        let unwinder = load::unwinder(loader.process, loader.modules, prepared.module, loader.scope)?;
        let patient = Loader { deadline: Instant::now() + UNDO_LIMIT, ..*loader };
        patient.unload(seized, &mut state, unwinder).map(drop)
    }

    fn location(
        &self,
        prepared: &Prepared<'_>,
        seized: &mut Seized,
        state: &State,
    ) -> Result<Location, ApplyError> {
        if let Some(found) = &prepared.found {
            return Ok(found.location);
        }
        let view = prepared.view;
        if let Some(location) = live::unused(&view.process, &view.registries, &state.build_id) {
            location.commit(&mut &view.process, state)?;
            return Ok(location);
        }
        let same = view.registries.iter().filter(|f| f.header.build_id == state.build_id);
        let generation = same.map(|f| f.header.generation).max().unwrap_or(0) + 1;
        safepoint::on_any_thread(seized, self.deadline, |thread| {
            live::create(thread, prepared.module.image.span(), state, generation, self.deadline)
        })
    }

    /// The switch from what is active to the patch at `index`.
    fn switch<'p>(
        &self,
        prepared: &'p Prepared<'_>,
        location: Location,
        tables: &'p Tables,
        state: &State,
        index: usize,
    ) -> Switch<'p> {
        let record = &state.patches[index];
        let active = state.active();
        let old: &[FunctionRecord] = active.map_or(&[], |i| &state.patches[i].functions);
        // What ends comes first: of two patches that lead on to each other's code, only one does at a time.
        let dropped = old.iter().filter(|o| record.functions.iter().all(|f| f.old != o.old));
        let dropped = dropped.map(|o| EntryWrite { at: o.old, before: o.jump, after: o.saved });
        let written = record.functions.iter().map(|f| EntryWrite {
            at: f.old,
            before: old.iter().find(|o| o.old == f.old).map_or(f.saved, |o| o.jump),
            after: f.jump,
        });
        let writes: Vec<EntryWrite> = dropped.chain(written).collect();
        let rest = match record.state {
            PatchState::Applying => PatchState::RolledBack,
            other => other,
        };
        let mut before = vec![(index, rest)];
        let mut after = vec![(index, PatchState::Applied)];
        if let Some(active) = active {
            before.push((active, PatchState::Applied));
            after.push((active, PatchState::Replaced));
        }
        let mut guard = self.guard(prepared, state);
        self.guard_earlier(prepared, state, index, &mut guard);
        Switch {
            process: &prepared.view.process,
            location,
            tables,
            guard,
            policy: self.options.policy,
            deadline: self.deadline,
            writes,
            before,
            after,
        }
    }

    fn report(&self, state: &State, holds: Holds, so_far: SoFar) -> ApplyReport {
        ApplyReport {
            pid: self.pid,
            build_id: state.build_id.to_string(),
            patches: patch_reports(&state.build_id, state),
            policy: self.options.policy,
            total_ms: millis(self.started),
            stages: so_far.stages,
            holds,
            already_applied: false,
            dry_run: false,
            replaced: Vec::new(),
            repaired: so_far.repaired,
            libraries: so_far.libraries,
            notes: self.patch.meta.told().into_iter().chain(self.notes_on_earlier(state)).collect(),
            only_initialises: self.patch.meta.only_initialises(),
            still_inside: Vec::new(),
            mapped_bytes: 0,
        }
    }
}

impl SoFar {
    fn new(past: &mut Past, stages: Stages, clock: Clock) -> Self {
        let libraries = past.libraries.iter().flatten().map(|library| library.name.clone()).collect();
        Self { repaired: past.repaired.take(), libraries, stages, clock }
    }
}

impl Prepared<'_> {
    /// The module's state, or a fresh one.
    fn state(&self) -> State {
        let known = self.found.as_ref().and_then(|found| found.state.clone());
        known.unwrap_or_else(|| {
            let id = self.module.image.build_id.clone().unwrap_or_else(|| BuildId::new([]));
            State::new(id, self.module.image.bias)
        })
    }
}

pub(crate) fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}
