//! What the operations have in common: looking at the process, and what they say of its patches.

use crate::error::ApplyError;
use crate::registry::live::{self, Found};
use crate::registry::{FunctionRecord, State};
use crate::report::PatchReport;
use crate::target::{Module, Modules};
use crate::unwind::{Tables, modules};
use livepatch_patch::BuildId;
use livepatch_process::{Pid, Process, ProcessError, Seized, log, numbered};
use std::time::{Duration, Instant};

/// Time that undoing may take beyond the deadline.
pub(crate) const UNDO_LIMIT: Duration = Duration::from_secs(5);

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
        let process = unless_held(deadline, || Process::open(Pid(pid)))?;
        Self::of(process.clone()).map_err(|error| unless_replaced(&process, error))
    }

    /// What is to be told of a failure: it may have come of another program in the process's place.
    pub(crate) fn blame(&self, error: ApplyError) -> ApplyError {
        unless_replaced(&self.process, error)
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
        let found = live::of_module(&self.registries, module.image.build_id.as_ref()?, module.image.bias)?;
        (!self.is_of_another_instance(module, &found)).then_some(found)
    }

    /// Whether a registry speaks of an instance of the module that was unloaded, after which another was loaded to the same
    /// address: no entry of the applied patch leads to it, each is as the file has it.
    fn is_of_another_instance(&self, module: &Module, found: &Found) -> bool {
        let settled = found.state.as_ref().filter(|state| state.journal.is_none());
        let Some(applied) = settled.and_then(|state| Some(&state.patches[state.active()?])) else {
            return false;
        };
        let span = module.image.span();
        let mut entries = applied.functions.iter().filter(|f| span.contains(&f.old)).peekable();
        let is_untouched =
            |f: &FunctionRecord| self.process.read_array(f.old).is_ok_and(|code| code == f.saved.0);
        entries.peek().is_some() && entries.all(is_untouched)
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

fn unless_replaced(process: &Process, error: ApplyError) -> ApplyError {
    process.check_program().map_or_else(ApplyError::from, |()| error)
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

/// What the report says about a module's patches.
pub(crate) fn patch_reports(build_id: &BuildId, state: &State) -> Vec<PatchReport> {
    state.patches.iter().map(|record| PatchReport::new(build_id, record)).collect()
}
