//! What an operation says about itself. Field names are the stable keys of the command line's JSON.

use crate::registry::{PatchState, Record};
use livepatch_patch::{BuildId, Note, RunAddr, Selection};
use serde::{Deserialize, Serialize, Serializer};
use std::time::{Duration, Instant};

fn hex<S: Serializer>(address: &RunAddr, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(address)
}

/// A redirected function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionReport {
    /// Demangled path.
    pub path: String,
    /// Mangled name.
    pub symbol: String,
    /// Start of the function in the image.
    #[serde(serialize_with = "hex")]
    pub address: RunAddr,
    /// Start of the function that runs in its place.
    #[serde(serialize_with = "hex")]
    pub new_address: RunAddr,
}

/// A patch in the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PatchReport {
    /// Digest of the patch file; for a part of it one that stands for that part.
    pub id: String,
    /// Name given by its author.
    pub name: String,
    /// What part of the patch file it is; empty for all of it.
    pub selection: Selection,
    /// Build-id of the module that it is for.
    pub build_id: String,
    /// `applying`, `applied`, `rolling-back`, `rolled-back` or `replaced`.
    pub state: PatchState,
    /// Functions that it redirects.
    pub functions: Vec<FunctionReport>,
}

impl PatchReport {
    /// What a registry says about a patch of the module with this build-id.
    pub fn new(build_id: &BuildId, record: &Record) -> Self {
        Self {
            id: record.id.to_string(),
            name: record.name.clone(),
            selection: record.selection.clone(),
            build_id: build_id.to_string(),
            state: record.state,
            functions: record
                .functions
                .iter()
                .map(|f| FunctionReport {
                    path: f.path.clone(),
                    symbol: f.symbol.clone(),
                    address: f.old,
                    new_address: f.new,
                })
                .collect(),
        }
    }
}

/// What is in a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Process id.
    pub pid: i32,
    /// Build-id of the executable, empty if it has none.
    pub build_id: String,
    /// Path of the executable.
    pub executable: String,
    /// The patches of all its modules, those of one module oldest first.
    pub patches: Vec<PatchReport>,
    /// Whether a killed run left something that the next `apply` or `rollback` repairs.
    pub interrupted: bool,
}

/// How threads are treated that are inside of what is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// No thread may be inside: every function switches for every thread at one instant.
    #[default]
    Quiescent,
    /// Old calls may finish in old code while new calls run new code.
    Immediate,
    /// As [`Policy::Quiescent`], but by stopping all threads at once and looking at all stacks, again and again: the method
    /// to compare with. A function that is always on some stack ends as busy.
    Snapshot,
}

/// How the switch went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Holds {
    /// Longest time that a thread not entering changed code was held, in microseconds.
    pub world_stopped_us: u64,
    /// Longest time that a thread entering changed code was held, in microseconds.
    pub parked_us: u64,
    /// Longest time that a thread was held to execute something for the tool, in microseconds: one that sleeps, if there is one.
    pub worker_us: u64,
    /// Threads of the process at the switch.
    pub threads: usize,
    /// Attempts that were given up because changed code was in use.
    pub retries: u32,
}

/// Where the time went, in milliseconds; if the work was begun afresh, at the last time. What is missing to the total went into
/// reading the patch, attempts before, and letting go of the threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stages {
    /// Reading the process, and everything that is checked before a thread is touched.
    pub prepare_ms: f64,
    /// Attaching to all threads.
    pub attach_ms: f64,
    /// Bringing the patch into the process; next to nothing if it is there from an earlier time.
    pub load_ms: f64,
    /// Looking at the threads that sleep, before anything is written or anybody held.
    pub look_ms: f64,
    /// From the first write that matters until all threads run what is in force, and nothing of the transition is left.
    pub transition_ms: f64,
}

impl Stages {
    /// The time since the last lap was a transition, and before it the threads were looked at for some time.
    pub(crate) fn transition(&mut self, clock: &mut Clock, look: Duration) {
        self.look_ms = look.as_secs_f64() * 1e3;
        self.transition_ms = clock.lap() - self.look_ms;
    }
}

impl std::ops::AddAssign for Stages {
    fn add_assign(&mut self, other: Self) {
        self.prepare_ms += other.prepare_ms;
        self.attach_ms += other.attach_ms;
        self.load_ms += other.load_ms;
        self.look_ms += other.look_ms;
        self.transition_ms += other.transition_ms;
    }
}

/// Tells the time from one stage to the next.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Milliseconds since the last lap.
    pub(crate) fn lap(&mut self) -> f64 {
        let now = Instant::now();
        (now - std::mem::replace(&mut self.0, now)).as_secs_f64() * 1e3
    }
}

/// What `apply` and `check` did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ApplyReport {
    /// Process id.
    pub pid: i32,
    /// Build-id of the patched module.
    pub build_id: String,
    /// All patches of the module afterwards, oldest first.
    pub patches: Vec<PatchReport>,
    /// Policy used.
    pub policy: Policy,
    /// Time of the whole operation in milliseconds.
    pub total_ms: f64,
    /// Where it went.
    pub stages: Stages,
    /// Holds of the target's threads.
    #[serde(flatten)]
    pub holds: Holds,
    /// The patch had been applied before; nothing was done.
    pub already_applied: bool,
    /// Only checked; nothing was changed.
    pub dry_run: bool,
    /// Ids of patches that this one replaced.
    pub replaced: Vec<String>,
    /// What was repaired of a run that had been killed.
    pub repaired: Option<String>,
    /// Libraries that the patch needed and the program did not, by soname: loaded for it, or, if only checked, to be loaded.
    pub libraries: Vec<String>,
    /// What is worth knowing about the patch.
    pub notes: Vec<Note>,
    /// All that the patch changes only computes values that are kept once they are there, or runs once: it has no effect
    /// where they are, or where that code has run.
    pub only_initialises: bool,
    /// Threads that go on in the old code of functions that were left running: what changed there takes effect with the next call.
    pub still_inside: Vec<StillInside>,
    /// Resident memory that the patch adds, in bytes (mapped parts).
    pub mapped_bytes: u64,
}

/// A thread in the old code of a function whose calls may finish there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StillInside {
    /// Thread id.
    pub tid: i32,
    /// Thread name.
    pub name: String,
    /// Path of the function.
    pub function: String,
}

/// What `rollback` did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RollbackReport {
    /// Process id.
    pub pid: i32,
    /// Build-id of the module.
    pub build_id: String,
    /// All patches of the module afterwards, oldest first.
    pub patches: Vec<PatchReport>,
    /// Ids of patches that were taken out.
    pub rolled_back: Vec<String>,
    /// Policy used.
    pub policy: Policy,
    /// Time of the whole operation in milliseconds.
    pub total_ms: f64,
    /// Where it went; of several patches, all together.
    pub stages: Stages,
    /// Holds of the target's threads.
    #[serde(flatten)]
    pub holds: Holds,
    /// What was repaired of a run that had been killed.
    pub repaired: Option<String>,
}
