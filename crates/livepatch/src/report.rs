//! What an operation did: the command line's JSON, as Rust types.

use livepatch_apply::{Policy, Selection};
use livepatch_patch::{Note, RunAddr};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::time::Duration;

/// A function that runs in another's place.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Function {
    /// Demangled path.
    pub path: String,
    /// Mangled name.
    pub symbol: String,
    /// Start of the function in the image.
    #[serde(deserialize_with = "address")]
    pub address: RunAddr,
    /// Start of the function that runs in its place.
    #[serde(deserialize_with = "address")]
    pub new_address: RunAddr,
}

/// What a patch is doing in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PatchState {
    /// A run that was interrupted was about to apply it.
    Applying,
    /// Its functions run.
    Applied,
    /// A run that was interrupted was about to take it out.
    RollingBack,
    /// The functions of the image run again.
    RolledBack,
    /// A newer patch took its place.
    Replaced,
    /// Something that this version does not know.
    #[serde(other)]
    Other,
}

/// A patch in the process.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Patch {
    /// Digest of the patch file.
    pub id: String,
    /// Name given by its author.
    pub name: String,
    /// The part of the patch file that was selected; empty for all of it.
    #[serde(default)]
    pub selection: Selection,
    /// Build-id of the module that it is for.
    pub build_id: String,
    /// What it is doing.
    pub state: PatchState,
    /// Functions that it redirects.
    pub functions: Vec<Function>,
}

/// How long threads of the program were held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Holds {
    /// Longest time that a thread not entering changed code was held, in microseconds.
    pub world_stopped_us: u64,
    /// Longest time that a thread entering changed code was held, in microseconds.
    pub parked_us: u64,
    /// Longest time that a thread was held to execute something for the tool, in microseconds: one that sleeps, if there is one.
    #[serde(default)]
    pub worker_us: u64,
    /// Threads of the program at the switch.
    pub threads: usize,
    /// Attempts that found changed code in use.
    pub retries: u32,
}

/// Where the engine's time went, in milliseconds. What is missing to the total went into reading the patch, attempts before the
/// last, and letting go of the threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Stages {
    /// Reading the process, and everything that is checked before a thread is touched.
    pub prepare_ms: f64,
    /// Attaching to all threads.
    pub attach_ms: f64,
    /// Bringing the patch into the process; next to nothing if it is there from an earlier time.
    pub load_ms: f64,
    /// Looking at the threads that sleep, before anything is written or anybody held.
    #[serde(default)]
    pub look_ms: f64,
    /// From the first write that matters until all threads run what is in force, and nothing of the transition is left.
    pub transition_ms: f64,
}

/// What [`apply`](crate::apply) did.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// Build-id of the patched module.
    pub build_id: String,
    /// All patches of the module afterwards, oldest first.
    pub patches: Vec<Patch>,
    /// Policy used.
    pub policy: Policy,
    /// Time that the engine took, in milliseconds.
    pub total_ms: f64,
    /// Where it went.
    #[serde(default)]
    pub stages: Stages,
    /// How long threads were held.
    #[serde(flatten)]
    pub holds: Holds,
    /// Only checked; nothing was changed.
    pub dry_run: bool,
    /// Ids of patches that this one replaced.
    pub replaced: Vec<String>,
    /// What was repaired of a run that had been killed.
    pub repaired: Option<String>,
    /// Libraries that the patch needed and the program did not, by soname: loaded for it, or, if only checked, to be loaded.
    #[serde(default)]
    pub libraries: Vec<String>,
    /// What is worth knowing about the patch.
    #[serde(default)]
    pub notes: Vec<Note>,
    /// All that the patch changes only computes values that are kept once they are there, or runs once: it has no effect
    /// where they are, or where that code has run.
    #[serde(default)]
    pub only_initialises: bool,
    /// Threads that go on in the old code of functions that were left running: what changed there takes effect with the next call.
    #[serde(default)]
    pub still_inside: Vec<StillInside>,
    /// Resident memory that the patch adds, in bytes.
    pub mapped_bytes: u64,
    /// What surrounds it.
    #[serde(skip)]
    pub call: Call,
}

/// A thread in the old code of a function whose calls may finish there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct StillInside {
    /// Thread id.
    pub tid: i32,
    /// Thread name.
    pub name: String,
    /// Path of the function.
    pub function: String,
}

/// What [`rollback`](crate::rollback) did.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct RollbackReport {
    /// Build-id of the module.
    pub build_id: String,
    /// All patches of the module afterwards, oldest first.
    pub patches: Vec<Patch>,
    /// Ids of the patches that were taken out.
    pub rolled_back: Vec<String>,
    /// Policy used.
    pub policy: Policy,
    /// Time that the engine took, in milliseconds.
    pub total_ms: f64,
    /// Where it went.
    #[serde(default)]
    pub stages: Stages,
    /// How long threads were held.
    #[serde(flatten)]
    pub holds: Holds,
    /// What was repaired of a run that had been killed.
    pub repaired: Option<String>,
    /// What surrounds it.
    #[serde(skip)]
    pub call: Call,
}

/// The patches in the process.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// Process id.
    pub pid: i32,
    /// Build-id of the executable, empty if it has none.
    pub build_id: String,
    /// Path of the executable.
    pub executable: String,
    /// The patches of all its modules, those of one module oldest first.
    pub patches: Vec<Patch>,
    /// Whether a run that was killed left something that the next [`apply`](crate::apply) or
    /// [`rollback`](crate::rollback) repairs.
    pub interrupted: bool,
    /// What surrounds it.
    #[serde(skip)]
    pub call: Call,
}

/// What a call cost besides the engine's work, and what the engine said.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Call {
    /// Waiting for operations of other threads.
    pub waited: Duration,
    /// Making the helper's process.
    pub start: Duration,
    /// The whole call.
    pub total: Duration,
    /// What the engine said on its way, with the milliseconds since the helper's start.
    pub log: Vec<String>,
    /// The report as `livepatch --json` prints it.
    pub json: Value,
}

impl Report {
    /// The functions that the applied patches redirect.
    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        applied(&self.patches)
    }
}

impl Status {
    /// The functions that the applied patches redirect.
    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        applied(&self.patches)
    }
}

fn applied(patches: &[Patch]) -> impl Iterator<Item = &Function> {
    let applied = |patch: &&Patch| patch.state == PatchState::Applied;
    patches.iter().filter(applied).flat_map(|patch| &patch.functions)
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RunAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    digits.map(RunAddr).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no address")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_tools_json_is_read_and_unknown_keys_do_not_matter() {
        let function = json!({"path": "a::b", "symbol": "_a", "address": "0x10", "new_address": "0xff"});
        let patch =
            json!({"id": "1", "name": "n", "build_id": "2", "state": "applied", "functions": [function]});
        let old =
            json!({"id": "0", "name": "o", "build_id": "2", "state": "melted", "functions": [function]});
        let report: Report = serde_json::from_value(json!({
            "pid": 3, "build_id": "2", "patches": [old, patch], "policy": "immediate", "total_ms": 1.5,
            "world_stopped_us": 4, "parked_us": 5, "threads": 6, "retries": 7, "already_applied": false,
            "dry_run": false, "replaced": [], "repaired": null, "mapped_bytes": 8, "surprise": {},
            "stages": {"prepare_ms": 0.5, "attach_ms": 0.25, "load_ms": 0.0, "transition_ms": 0.75}
        }))
        .unwrap();
        assert_eq!((report.stages.prepare_ms, report.stages.transition_ms), (0.5, 0.75));
        let functions: Vec<_> = report.functions().collect();
        assert_eq!(functions.len(), 1);
        assert_eq!((functions[0].address, functions[0].new_address), (RunAddr(0x10), RunAddr(0xff)));
        assert_eq!(report.patches[0].state, PatchState::Other);
        assert_eq!((report.holds.retries, report.policy), (7, Policy::Immediate));
    }
}
