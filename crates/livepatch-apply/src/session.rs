//! What the operations have in common: looking at the process, one switch of entries, and the repair of a killed run.

use crate::error::{ApplyError, Mismatch};
use crate::guard::{Guard, Inside};
use crate::landing::{Landing, Pad, World};
use crate::load::Loader;
use crate::registry::live::{self, Found};
use crate::registry::{Code, EntryWrite, Journal, Location, PatchState, State};
use crate::report::{Holds, PatchReport, Policy};
use crate::safepoint::Rules;
use crate::scope::Scope;
use crate::symbolise::Symboliser;
use crate::target::{Module, Modules};
use crate::transition::drain::{self, Job};
use crate::transition::entries::{Entries, read_code};
use crate::transition::net::{self, Serialiser};
use crate::transition::{Failed, NotQuiescent, snapshot};
use crate::unwind::{Tables, modules};
use livepatch_patch::{BuildId, Redirect, RunAddr};
use livepatch_process::{Pid, Process, ProcessError, Seized, log, numbered};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Time that undoing may take beyond the deadline.
pub(crate) const UNDO_LIMIT: Duration = Duration::from_secs(5);

/// Largest function that a registry is believed about.
const MAX_FUNCTION: u64 = 16 << 20;

/// A process as it was found, nothing stopped.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) process: Process,
    pub(crate) modules: Modules,
    pub(crate) registries: Vec<Found>,
}

impl View {
    /// Opens a process that is to be changed. Waits for another run of livepatch to let go of it, and for nobody else.
    pub(crate) fn open(pid: i32, deadline: Instant) -> Result<Self, ApplyError> {
        Self::of(unless_held(deadline, || Process::open(Pid(pid)))?)
    }

    /// Opens a process for looking only, whoever traces it. Its registries are those of before or after each step of a run
    /// that is under way.
    pub(crate) fn open_to_read(pid: i32) -> Result<Self, ApplyError> {
        let process = Process::open_to_read(Pid(pid))?;
        // Two commits during one read make nonsense of it; the next read finds one of them.
        Self::of(process.clone()).or_else(|_| Self::of(process))
    }

    fn of(process: Process) -> Result<Self, ApplyError> {
        let modules = Modules::read(&process)?;
        let registries = live::find_all(&process, &modules.maps)?;
        Ok(Self { process, modules, registries })
    }

    /// The registry of a module, if it has one.
    pub(crate) fn registry(&self, module: &Module) -> Option<Found> {
        live::of_module(&self.registries, module.image.build_id.as_ref()?, module.image.bias)
    }

    /// Every module with its registry.
    pub(crate) fn patched(&self) -> Vec<(&Module, Found)> {
        self.modules.list.iter().filter_map(|module| Some((module, self.registry(module)?))).collect()
    }

    /// Unwind tables of all modules and patches.
    pub(crate) fn tables(&self) -> Result<Tables, ApplyError> {
        let states: Vec<&State> = self.registries.iter().filter_map(|found| found.state.as_ref()).collect();
        let tables = modules::gather(&self.process, &self.modules, &states)?;
        for state in states {
            tables.know_pads(&state.pads);
        }
        Ok(tables)
    }

    /// Attaches to all threads, and makes sure that no other run changed the registries since they were read. `None` if
    /// one did. Waits for another run to let go of the process.
    pub(crate) fn seize(&self, deadline: Instant) -> Result<Option<Seized>, ApplyError> {
        let limit = deadline.max(Instant::now() + Duration::from_secs(1));
        let mut seized = unless_held(deadline, || Seized::seize_all(&self.process, limit))?;
        let (current, alone) = std::thread::scope(|scope| -> Result<_, ApplyError> {
            let look = || self.process.address_space_sharers().is_ok_and(|found| found.is_empty());
            let look = std::thread::Builder::new().spawn_scoped(scope, look);
            let maps = self.process.maps()?;
            seized.prepare_work(&maps);
            let current = live::find_all(&self.process, &maps)?;
            Ok((current, look.is_ok_and(|look| look.join().unwrap_or(false))))
        })?;
        if alone {
            seized.note_unshared();
        }
        Ok((current == self.registries).then_some(seized))
    }
}

/// How often the work starts afresh, whatever the time, because the state of the process changed meanwhile.
const RESTARTS: u32 = 8;

/// Attempts until one gives a result, or it is time to give up because other runs keep changing the process.
pub(crate) fn until_settled<T>(
    deadline: Instant,
    mut attempt: impl FnMut() -> Result<Option<T>, ApplyError>,
) -> Result<T, ApplyError> {
    for number in 1.. {
        if let Some(result) = attempt()? {
            return Ok(result);
        }
        log::debug(format_args!("the state of the process changed, starting afresh"));
        if number >= RESTARTS && Instant::now() >= deadline {
            break;
        }
    }
    let what = "other runs of livepatch keep changing this process".into();
    Err(ApplyError::Environment { what, source: None })
}

/// How often a process that another run holds is looked at.
const HELD_PAUSE: Duration = Duration::from_millis(2);

/// Tries again as long as another run of livepatch holds the process. A debugger is not waited for: people hold it.
///
/// Runs that attach at the same time do so in the order of the thread list, so that one of them gets all threads.
fn unless_held<T>(deadline: Instant, attempt: impl Fn() -> Result<T, ProcessError>) -> Result<T, ApplyError> {
    let started = Instant::now();
    loop {
        match attempt() {
            Err(ProcessError::AlreadyTraced { pid, tracer, .. }) => {
                let now = Instant::now();
                if !tracer.livepatch || now >= deadline {
                    let waited_ms = (now - started).as_millis() as u64;
                    return Err(ApplyError::Held { pid: pid.0, by: tracer, waited_ms });
                }
                numbered::sleep(HELD_PAUSE.min(deadline - now));
            }
            other => return Ok(other?),
        }
    }
}

/// What may be written where, and who must not be there.
#[derive(Debug)]
pub(crate) struct Switch<'a> {
    pub(crate) process: &'a Process,
    pub(crate) location: Location,
    pub(crate) tables: &'a Tables,
    pub(crate) guard: Guard,
    pub(crate) policy: Policy,
    pub(crate) deadline: Instant,
    pub(crate) writes: Vec<EntryWrite>,
    pub(crate) before: Vec<(usize, PatchState)>,
    pub(crate) after: Vec<(usize, PatchState)>,
}

/// A switch that did not happen. The entries and the registry are as before.
#[derive(Debug)]
pub(crate) struct NotDone {
    pub(crate) seized: Option<Seized>,
    pub(crate) why: Why,
}

#[derive(Debug)]
pub(crate) enum Why {
    Busy { inside: Vec<Inside>, stuck: Option<String> },
    Error(ApplyError),
}

impl Switch<'_> {
    /// Notes the intention, switches, notes the result.
    pub(crate) fn run(&self, seized: Seized, state: &mut State) -> Result<(Seized, Holds), Box<NotDone>> {
        let landing = Landing::of(self.location);
        let originals = originals(state);
        let pads = match self.policy {
            Policy::Snapshot => None,
            Policy::Quiescent | Policy::Immediate => match self.pads(landing, state, &originals) {
                Ok(pads) => pads,
                Err(error) => {
                    return Err(Box::new(NotDone { seized: Some(seized), why: Why::Error(error) }));
                }
            },
        };
        let Some(pads) = pads else { return self.at_once(seized, state) };
        self.tables.know_pads(&pads);
        state.pads = pads;
        let entries = Entries::new(self.process, landing, &self.writes, &state.pads, &originals);
        match entries {
            Ok(entries) => self.by_breakpoints(seized, state, &entries),
            Err(error) => Err(Box::new(NotDone { seized: Some(seized), why: Why::Error(error) })),
        }
    }

    /// Pads for all entries; `None` if some entry cannot have one.
    fn pads(
        &self,
        landing: Landing,
        state: &State,
        originals: &BTreeMap<RunAddr, Code>,
    ) -> Result<Option<Vec<Pad>>, ApplyError> {
        let mut pads = state.pads.clone();
        let mut functions = Vec::new();
        for write in &self.writes {
            let Some(original) = originals.get(&write.at) else { return Ok(None) };
            let size = state.patches.iter().flat_map(|record| &record.functions);
            let size = size.filter(|f| f.old == write.at).map(|f| f.old_size).max().unwrap_or_default();
            let len = size.clamp(original.0.len() as u64, LONGEST_INSTRUCTION);
            let mut code = self.process.read_vec(write.at, len as usize)?;
            code[..original.0.len()].copy_from_slice(&original.0);
            code.truncate(size.max(1) as usize);
            functions.push((write.at, code));
        }
        match landing.make_pads(self.process, &mut pads, &functions)? {
            Ok(()) => Ok(Some(pads)),
            Err((entry, unfit)) => {
                log::info(format_args!(
                    "all threads are stopped at once, because there is no breakpoint for the function at {entry}: {unfit}"
                ));
                Ok(None)
            }
        }
    }

    fn begin(&self, state: &mut State, by_breakpoints: bool) -> Result<(), ApplyError> {
        state.journal = Some(Journal::Switching {
            writes: self.writes.clone(),
            after: self.after.clone(),
            before: self.before.clone(),
            by_breakpoints,
        });
        let noted = self.location.commit(&mut &*self.process, state);
        noted.map_err(|error| {
            state.settle(&self.before);
            error.into()
        })
    }

    fn by_breakpoints(
        &self,
        mut seized: Seized,
        state: &mut State,
        entries: &Entries<'_>,
    ) -> Result<(Seized, Holds), Box<NotDone>> {
        let announced = net::announce(&mut seized, entries.landing(), &entries.sites(), self.deadline);
        if let Err(error) = announced.and_then(|()| self.begin(state, true)) {
            return Err(Box::new(NotDone { seized: Some(seized), why: Why::Error(error) }));
        }
        let mut guard = self.guard.clone();
        guard.landing(entries.landing().text());
        entries.addresses().into_iter().for_each(|entry| guard.breakpoint(entry));
        let job = Job {
            process: self.process,
            entries,
            tables: self.tables,
            guard: &guard,
            deadline: self.deadline,
        };
        let drained = match drain::drain(seized, job) {
            Ok(drained) => drained,
            Err(Failed::Unable(seized, ApplyError::Refused { reason })) => {
                log::info(format_args!(
                    "all threads are stopped at once, because breakpoints cannot be used: {reason}"
                ));
                state.settle(&self.before);
                return self.at_once(*seized, state);
            }
            Err(failed) => return Err(self.not_there(failed, state)),
        };
        let mut noted = Ok(());
        let switched = drained.switch(|| {
            state.settle(&self.after);
            noted = self.note_done(state);
        });
        match (switched, noted) {
            (Ok(switched), Ok(())) => Ok(switched.done()),
            // The journal stays and says what was intended; the next run finds it done.
            (Ok(switched), Err(error)) => {
                Err(Box::new(NotDone { seized: Some(switched.seized), why: Why::Error(error) }))
            }
            (Err(failed), _) if matches!(failed.error, ApplyError::Lost(_)) => {
                Err(Box::new(NotDone { seized: None, why: Why::Error(failed.error) }))
            }
            (Err(failed), _) if failed.committed => {
                let what = failed.error.to_string();
                let undo = "the new code is in force, some entries reach it by breakpoints".to_owned();
                let why = Why::Error(ApplyError::NotUndone { what, undo });
                Err(Box::new(NotDone { seized: failed.seized, why }))
            }
            (Err(failed), _) if matches!(failed.error, ApplyError::NotUndone { .. }) => {
                Err(Box::new(NotDone { seized: failed.seized, why: Why::Error(failed.error) }))
            }
            (Err(failed), _) => Err(self.give_up(failed.seized, state, Why::Error(failed.error))),
        }
    }

    /// All threads stopped at once.
    fn at_once(&self, seized: Seized, state: &mut State) -> Result<(Seized, Holds), Box<NotDone>> {
        if let Err(error) = self.begin(state, false) {
            return Err(Box::new(NotDone { seized: Some(seized), why: Why::Error(error) }));
        }
        let quiesced = match snapshot::quiesce(seized, self.tables, &self.guard, self.deadline) {
            Ok(quiesced) => quiesced,
            Err(failed) => return Err(self.not_there(failed, state)),
        };
        match quiesced.switch(&self.writes) {
            Ok(switched) => {
                state.settle(&self.after);
                match self.note_done(state) {
                    Ok(()) => Ok(switched.done()),
                    // The journal stays and says what was intended; the next run finds it done.
                    Err(error) => {
                        Err(Box::new(NotDone { seized: Some(switched.seized), why: Why::Error(error) }))
                    }
                }
            }
            Err(failed) if matches!(failed.error, ApplyError::NotUndone { .. }) => {
                Err(Box::new(NotDone { seized: failed.seized, why: Why::Error(failed.error) }))
            }
            Err(failed) => Err(self.give_up(failed.seized, state, Why::Error(failed.error))),
        }
    }

    /// The switch cannot be undone any more, so that a failure to note it would leave a change behind an error.
    fn note_done(&self, state: &State) -> Result<(), ApplyError> {
        let commit = || self.location.commit(&mut &*self.process, state);
        Ok(commit().or_else(|_| commit())?)
    }

    /// Quiescence was not reached.
    fn not_there(&self, failed: Failed, state: &mut State) -> Box<NotDone> {
        match failed {
            Failed::Busy(busy) => {
                let NotQuiescent { seized, inside, stuck } = *busy;
                self.give_up(Some(seized), state, Why::Busy { inside, stuck })
            }
            Failed::Unable(seized, error) => self.give_up(Some(*seized), state, Why::Error(error)),
            // The journal stays for the next run.
            Failed::Error(error @ ApplyError::NotUndone { .. }) => {
                Box::new(NotDone { seized: None, why: Why::Error(error) })
            }
            Failed::Error(error) => self.give_up(None, state, Why::Error(error)),
        }
    }

    fn give_up(&self, seized: Option<Seized>, state: &mut State, why: Why) -> Box<NotDone> {
        state.settle(&self.before);
        if let Err(error) = self.location.commit(&mut &*self.process, state) {
            log::warn(format_args!(
                "the registry still holds the journal, which the next run settles: {error}"
            ));
        }
        Box::new(NotDone { seized, why })
    }
}

/// The longest instruction of x86-64.
const LONGEST_INSTRUCTION: u64 = 15;

/// The image's bytes at every entry that some patch redirects.
fn originals(state: &State) -> BTreeMap<RunAddr, Code> {
    state.patches.iter().flat_map(|record| &record.functions).map(|f| (f.old, f.saved)).collect()
}

impl Why {
    /// The error for the caller. Called with every thread running.
    pub(crate) fn into_error(
        self,
        view: &View,
        waited: Duration,
        patch: Option<(&Module, &[Redirect])>,
    ) -> ApplyError {
        match self {
            Self::Error(error) => error,
            Self::Busy { inside, stuck } => {
                let records: Vec<_> = view
                    .registries
                    .iter()
                    .filter_map(|f| f.state.as_ref())
                    .flat_map(|s| s.patches.clone())
                    .collect();
                let names = Symboliser::new(&view.process, &view.modules, &records, patch);
                let mut threads: Vec<_> = inside
                    .iter()
                    .map(|i| {
                        let name = view.process.thread_name(i.tid).unwrap_or_default();
                        i.describe(name, &|at| names.name(at))
                    })
                    .collect();
                if let Some(reason) = stuck {
                    threads.push(crate::error::ThreadInside {
                        tid: view.process.pid().0,
                        name: String::new(),
                        function: None,
                        reason,
                        backtrace: Vec::new(),
                        leave_running: None,
                    });
                }
                ApplyError::Busy { waited_ms: waited.as_millis() as u64, inside: threads }
            }
        }
    }
}

/// Settles what a killed run left in the registry. Returns what was done, and the process still seized.
pub(crate) fn repair(
    view: &View,
    mut seized: Seized,
    found: &Found,
    deadline: Instant,
) -> Result<(Seized, String), ApplyError> {
    let Some(mut state) = found.state.clone() else { return Ok((seized, String::new())) };
    let Some(journal) = state.journal.clone() else { return Ok((seized, String::new())) };
    let process = &view.process;
    let commit = |state: &State| found.location.commit(&mut &*process, state).map_err(ApplyError::from);
    match journal {
        Journal::Loading { .. } => {
            let given_back = unload(view, &mut seized, found, &mut state, deadline)?;
            let text = match given_back {
                true => "the memory of a patch that a killed run was loading was given back",
                false => {
                    "a patch that a killed run was loading stays mapped (its unwind tables may be in use)"
                }
            };
            Ok((seized, text.into()))
        }
        Journal::Switching { writes, after, before, by_breakpoints: true } => {
            let landing = Landing::of(found.location);
            let originals = originals(&state);
            let entries = Entries::new(process, landing, &writes, &state.pads, &originals)?;
            let world = finish(&mut seized, &entries, deadline)?;
            let (states, text) = match world {
                World::Before => (before, "a switch that a killed run had begun was taken back"),
                World::After => (after, "a switch that a killed run had committed to was finished"),
            };
            state.settle(&states);
            commit(&state)?;
            Ok((seized, text.into()))
        }
        Journal::Switching { writes, after, before, by_breakpoints: false } => {
            let mut done = Vec::new();
            for write in &writes {
                let code = read_code(process, write.at)?;
                if code == write.after && code != write.before {
                    done.push(*write);
                } else if code != write.before {
                    return Err(
                        Mismatch::Entry { path: "a patched function".into(), address: write.at }.into()
                    );
                }
            }
            if done.len() == writes.len() && !writes.is_empty() {
                state.settle(&after);
                commit(&state)?;
                return Ok((seized, "a switch that a killed run had finished was recorded".into()));
            }
            if done.is_empty() {
                state.settle(&before);
                commit(&state)?;
                return Ok((seized, "a switch that a killed run had not begun was cancelled".into()));
            }
            let count = done.len();
            let tables = view.tables()?;
            let switch = put_back(view, &tables, found, &state, done, before, deadline)?;
            match switch.run(seized, &mut state) {
                Ok((seized, _)) => {
                    Ok((seized, format!("{count} entries that a killed run had written were put back")))
                }
                Err(failed) => {
                    failed.seized.map_or(Ok(()), Seized::leave)?;
                    Err(failed.why.into_error(view, Duration::ZERO, None))
                }
            }
        }
    }
}

/// Takes back what a killed run was loading.
fn unload(
    view: &View,
    seized: &mut Seized,
    found: &Found,
    state: &mut State,
    deadline: Instant,
) -> Result<bool, ApplyError> {
    let build_id = &found.header.build_id;
    let ours = |m: &&Module| m.image.build_id.as_ref() == Some(build_id) && m.image.bias == state.bias;
    let module = view.modules.list.iter().find(ours).ok_or_else(|| {
        ApplyError::refused("the module of a patch that a killed run was loading is not loaded any more")
    })?;
    let scope = Scope::of(&view.process, &view.modules, module)?;
    let loader = Loader {
        process: &view.process,
        modules: &view.modules,
        module,
        scope: &scope,
        rules: &Rules::new(&view.process, &view.modules)?,
        tables: &view.tables()?,
        location: found.location,
        deadline,
    };
    let unwinder = crate::load::unwinder(&view.process, &view.modules, module, &scope)?;
    loader.unload(seized, state, unwinder)
}

/// Leaves no breakpoint and no net behind, in the world that was committed to.
fn finish(seized: &mut Seized, entries: &Entries<'_>, deadline: Instant) -> Result<World, ApplyError> {
    let limit = deadline.max(Instant::now() + UNDO_LIMIT);
    seized.set_breakpoints(entries.addresses());
    let mut events = Vec::new();
    let mut serialiser = Serialiser::start();
    let world = entries.finish(|| net::serialise(seized, &mut serialiser, limit, &mut events))?;
    net::remove(seized, entries.landing(), &BTreeSet::new(), &mut events, limit)?;
    seized.set_breakpoints(BTreeSet::new());
    Ok(world)
}

fn put_back<'a>(
    view: &'a View,
    tables: &'a Tables,
    found: &Found,
    state: &State,
    done: Vec<EntryWrite>,
    before: Vec<(usize, PatchState)>,
    deadline: Instant,
) -> Result<Switch<'a>, ApplyError> {
    let mut guard = Guard::default();
    guard.patches(Policy::Snapshot, state);
    for function in state.patches.iter().flat_map(|record| &record.functions) {
        if done.iter().any(|write| write.at == function.old) {
            let code = view.process.read_vec(function.old, function.old_size.min(MAX_FUNCTION) as usize)?;
            guard.function(Policy::Snapshot, function.old, &code, &function.path, &view.process);
        }
    }
    let writes =
        done.into_iter().map(|w| EntryWrite { at: w.at, before: w.after, after: w.before }).collect();
    Ok(Switch {
        process: &view.process,
        location: found.location,
        tables,
        guard,
        policy: Policy::Snapshot,
        deadline,
        writes,
        after: before.clone(),
        before,
    })
}

/// What the report says about a module's patches.
pub(crate) fn patch_reports(build_id: &BuildId, state: &State) -> Vec<PatchReport> {
    state.patches.iter().map(|record| PatchReport::new(build_id, record)).collect()
}
