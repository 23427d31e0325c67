//! One transition of a module's entries, with its intention and its result noted in the registry.

use crate::error::{ApplyError, ThreadInside};
use crate::guard::{Guard, Inside};
use crate::landing::{Landing, Pad};
use crate::registry::{Code, EntryWrite, Journal, Location, PatchState, State};
use crate::report::{Holds, Policy};
use crate::session::View;
use crate::symbolise::Symboliser;
use crate::target::Module;
use crate::transition::drain::{self, Job};
use crate::transition::entries::Entries;
use crate::transition::net;
use crate::transition::{Failed, NotQuiescent, Switched, snapshot};
use crate::unwind::Tables;
use livepatch_patch::{Reason, Redirect, RunAddr};
use livepatch_process::{Process, Seized, Tid, come_first, log};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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

/// A switch that happened.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) seized: Seized,
    pub(crate) holds: Holds,
    /// How long the threads were looked at before anything was written.
    pub(crate) look: Duration,
}

impl Done {
    fn new(switched: Switched, look: Duration) -> Self {
        let (seized, holds) = switched.done();
        Self { seized, holds, look }
    }
}

/// A switch that did not happen. The entries and the registry are as before.
#[derive(Debug)]
pub(crate) struct NotDone {
    pub(crate) seized: Option<Seized>,
    pub(crate) why: Why,
}

impl NotDone {
    /// Nothing was noted yet.
    fn before(failed: Failed) -> Box<Self> {
        Box::new(match failed {
            Failed::Busy(busy) => {
                let (seized, why) = Why::busy(*busy);
                Self { seized: Some(seized), why }
            }
            Failed::Unable(seized, error) => Self { seized: Some(*seized), why: Why::Error(error) },
            Failed::Error(error) => Self { seized: None, why: Why::Error(error) },
        })
    }
}

#[derive(Debug)]
pub(crate) enum Why {
    Busy { inside: Vec<Inside>, unseen: Vec<Tid>, process: Option<String> },
    Error(ApplyError),
}

impl Switch<'_> {
    /// Notes the intention, switches, notes the result.
    pub(crate) fn run(&self, seized: Seized, state: &mut State) -> Result<Done, Box<NotDone>> {
        let done = self.switch(seized, state)?;
        let (entries, holds) = (self.writes.len(), &done.holds);
        log::info(format_args!(
            "{entries} entries switched; held at most: threads outside {} us, threads that came to an entry {} us; {} retries",
            holds.world_stopped_us, holds.parked_us, holds.retries
        ));
        Ok(done)
    }

    fn switch(&self, seized: Seized, state: &mut State) -> Result<Done, Box<NotDone>> {
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
            state.cancel(&self.before);
            error.into()
        })
    }

    fn by_breakpoints(
        &self,
        seized: Seized,
        state: &mut State,
        entries: &Entries<'_>,
    ) -> Result<Done, Box<NotDone>> {
        let mut guard = self.guard.clone();
        guard.landing(entries.landing().text());
        entries.breakpoints().into_keys().for_each(|entry| guard.breakpoint(entry));
        let job = Job {
            process: self.process,
            entries,
            tables: self.tables,
            guard: &guard,
            deadline: self.deadline,
        };
        let started = Instant::now();
        let mut ahead = drain::look_ahead(seized, job).map_err(NotDone::before)?;
        let look = started.elapsed();
        come_first();
        let announced = net::announce(ahead.seized(), entries.landing(), &entries.sites(), self.deadline);
        if let Err(error) = announced.and_then(|()| self.begin(state, true)) {
            return Err(Box::new(NotDone { seized: Some(ahead.into_seized()), why: Why::Error(error) }));
        }
        let drained = match drain::drain(ahead, job) {
            Ok(drained) => drained,
            Err(Failed::Unable(seized, ApplyError::Refused { reason })) => {
                log::info(format_args!(
                    "all threads are stopped at once, because breakpoints cannot be used: {reason}"
                ));
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
            (Ok(switched), Ok(())) => Ok(Done::new(switched, look)),
            // The journal stays and says what was intended; the next run finds it done.
            (Ok(switched), Err(error)) => {
                Err(Box::new(NotDone { seized: Some(switched.seized), why: Why::Error(error) }))
            }
            (Err(failed), _) if matches!(failed.error, ApplyError::Lost(_)) => {
                Err(Box::new(NotDone { seized: None, why: Why::Error(failed.error) }))
            }
            (Err(failed), _) if failed.committed => {
                let why =
                    in_force(failed.error, "the new code is in force, some entries reach it by breakpoints");
                Err(Box::new(NotDone { seized: failed.seized, why: Why::Error(why) }))
            }
            (Err(failed), _) if matches!(failed.error, ApplyError::NotUndone { .. }) => {
                Err(Box::new(NotDone { seized: failed.seized, why: Why::Error(failed.error) }))
            }
            (Err(failed), _) => Err(self.give_up(failed.seized, state, Why::Error(failed.error))),
        }
    }

    /// All threads stopped at once.
    fn at_once(&self, seized: Seized, state: &mut State) -> Result<Done, Box<NotDone>> {
        come_first();
        if let Err(error) = self.begin(state, false) {
            return Err(Box::new(NotDone { seized: Some(seized), why: Why::Error(error) }));
        }
        let quiesced = match snapshot::quiesce(seized, self.tables, &self.guard, self.deadline) {
            Ok(quiesced) => quiesced,
            Err(failed) => return Err(self.not_there(failed, state)),
        };
        match quiesced.switch(&self.writes) {
            Ok(switched) => self.all_written(switched, state),
            Err(failed) if matches!(failed.error, ApplyError::Lost(_) | ApplyError::NotUndone { .. }) => {
                Err(Box::new(NotDone { seized: failed.seized, why: Why::Error(failed.error) }))
            }
            Err(failed) if failed.committed => {
                let why = in_force(failed.error, "all entries are switched; the next run notes that");
                Err(Box::new(NotDone { seized: failed.seized, why: Why::Error(why) }))
            }
            Err(failed) => Err(self.give_up(failed.seized, state, Why::Error(failed.error))),
        }
    }

    /// Puts back what a killed run wrote, with all threads stopped at once. Its journal says what may be where until that is done.
    pub(crate) fn put_back(&self, seized: Seized, state: &mut State) -> Result<Done, Box<NotDone>> {
        come_first();
        let quiesced = snapshot::quiesce(seized, self.tables, &self.guard, self.deadline);
        match quiesced.map_err(NotDone::before)?.switch(&self.writes) {
            Ok(switched) => self.all_written(switched, state),
            Err(failed) => Err(Box::new(NotDone { seized: failed.seized, why: Why::Error(failed.error) })),
        }
    }

    /// Notes that the entries are as they were to be. If that fails, the journal stays and says what was intended; the next run finds it done.
    fn all_written(&self, switched: Switched, state: &mut State) -> Result<Done, Box<NotDone>> {
        state.settle(&self.after);
        match self.note_done(state) {
            Ok(()) => Ok(Done::new(switched, Duration::ZERO)),
            Err(error) => Err(Box::new(NotDone { seized: Some(switched.seized), why: Why::Error(error) })),
        }
    }

    /// The switch cannot be undone any more, so that a failure to note it would leave a change behind an error.
    fn note_done(&self, state: &State) -> Result<(), ApplyError> {
        let commit = || self.location.commit(&mut &*self.process, state);
        commit()
            .or_else(|_| commit())
            .map_err(|error| in_force(error.into(), "all entries are switched; the next run notes that"))
    }

    /// Quiescence was not reached.
    fn not_there(&self, failed: Failed, state: &mut State) -> Box<NotDone> {
        let NotDone { seized, why } = *NotDone::before(failed);
        match why {
            // The journal stays for the next run.
            Why::Error(ApplyError::NotUndone { .. }) => Box::new(NotDone { seized, why }),
            why => self.give_up(seized, state, why),
        }
    }

    /// What was written was put back before any thread could go on.
    fn give_up(&self, seized: Option<Seized>, state: &mut State, why: Why) -> Box<NotDone> {
        state.cancel(&self.before);
        if let Err(error) = self.location.commit(&mut &*self.process, state) {
            self.process.warn_of_rest(format_args!(
                "the registry still holds the journal, which the next run settles: {error}"
            ));
        }
        Box::new(NotDone { seized, why })
    }
}

/// What failed when nothing could be taken back any more: code that runs is not to be unmapped.
fn in_force(error: ApplyError, undo: &str) -> ApplyError {
    match error {
        lost @ ApplyError::Lost(_) => lost,
        other => ApplyError::NotUndone { what: other.to_string(), undo: undo.to_owned() },
    }
}

/// The longest instruction of x86-64.
const LONGEST_INSTRUCTION: u64 = 15;

/// The image's bytes at every entry that some patch redirects.
pub(crate) fn originals(state: &State) -> BTreeMap<RunAddr, Code> {
    state.patches.iter().flat_map(|record| &record.functions).map(|f| (f.old, f.saved)).collect()
}

impl Why {
    /// What is in the way, as long as the process is traced: job control that stopped it, say.
    pub(crate) fn busy(NotQuiescent { seized, inside, unseen, process }: NotQuiescent) -> (Seized, Self) {
        let stopped = || {
            let what = "is stopped (SIGSTOP or job control), and nobody in it goes on before SIGCONT";
            seized.is_stopped_by_program().then(|| what.to_owned())
        };
        let process = process.or_else(stopped);
        (seized, Self::Busy { inside, unseen, process })
    }

    /// The error for the caller. Called with every thread running.
    pub(crate) fn into_error(
        self,
        view: &View,
        waited: Duration,
        patch: Option<(&Module, &[Redirect])>,
    ) -> ApplyError {
        match self {
            Self::Error(error) => error,
            Self::Busy { inside, unseen, process } => {
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
                        let mut thread = i.describe(name, &|at| names.name(at));
                        thread.inlines =
                            what_is_inlined(&thread, patch.map_or(&[], |(_, redirects)| redirects));
                        if let Some(inlines) = &thread.inlines {
                            thread.reason.push_str(&format!(", which inlines {inlines}"));
                        }
                        thread
                    })
                    .collect();
                threads.extend(unseen.into_iter().map(|tid| ThreadInside {
                    tid: tid.0,
                    name: view.process.thread_name(tid).unwrap_or_default(),
                    function: None,
                    patch: None,
                    reason: "could not be looked at in time".to_owned(),
                    inlines: None,
                    backtrace: Vec::new(),
                    leave_running: None,
                }));
                ApplyError::Busy { waited_ms: waited.as_millis() as u64, process, inside: threads }
            }
        }
    }
}

/// What changed in the function of the patch that a thread is inside of, if it is not that function itself.
fn what_is_inlined(thread: &ThreadInside, redirects: &[Redirect]) -> Option<String> {
    let inside = thread.function.as_ref().filter(|_| thread.patch.is_none())?;
    match &redirects.iter().find(|redirect| redirect.path == *inside)?.reason {
        Reason::Inlines(what) => Some(what.clone()),
        Reason::Changed | Reason::Calls(_) | Reason::Reached | Reason::New => None,
    }
}
