//! What the commands on processes share: arguments and the text of reports.

use crate::exit::Failure;
use crate::output::count;
use livepatch_apply::error::ApplyError;
use livepatch_apply::registry::PatchState;
use livepatch_apply::{ApplyOptions, Holds, Part, PatchReport, Policy, RollbackOptions, Selection};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// How to treat threads that are inside of what changes.
#[derive(Debug, clap::Args)]
pub(crate) struct SwitchArgs {
    /// `quiescent`: every function switches for every thread at one instant; threads are looked at one by one. `immediate`: calls
    /// under way may finish in the code that they are in. `snapshot`: as `quiescent`, but by stopping all threads at once, for
    /// comparison.
    #[arg(long, value_enum, default_value_t = PolicyArg::Quiescent)]
    policy: PolicyArg,
    /// Seconds after which a process that is never quiescent is reported as busy.
    #[arg(long, default_value_t = 10.0, value_name = "SECS", value_parser = seconds)]
    timeout: f64,
}

/// What of the patch to apply, and whom not to wait for.
#[derive(Debug, clap::Args)]
pub(crate) struct PartArgs {
    /// Only the functions of a module and everything below it, for example `webapp::router`. May be repeated, and combined
    /// with --type and --function; without any of them the whole patch is applied.
    #[arg(long, value_name = "PATH")]
    module: Vec<String>,
    /// Only the methods of a type, for example `webapp::router::Order`.
    #[arg(long = "type", value_name = "PATH")]
    types: Vec<String>,
    /// Only a function and the functions that it is inlined into, for example `webapp::router::total`,
    /// `webapp::router::Order::total` or `<webapp::router::Order as core::fmt::Display>::fmt`.
    #[arg(long, value_name = "PATH")]
    function: Vec<String>,
    /// Let calls of this function that are under way finish in the old code, while new calls run the new code: for `main`
    /// or an accept loop, which never return. May be repeated.
    #[arg(long, value_name = "PATH")]
    leave_running: Vec<String>,
}

impl PartArgs {
    fn selection(&self) -> Selection {
        let modules = self.module.iter().cloned().map(Part::Module);
        let types = self.types.iter().cloned().map(Part::Type);
        let functions = self.function.iter().cloned().map(Part::Function);
        modules.chain(types).chain(functions).fold(Selection::new(), Selection::with)
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PolicyArg {
    Quiescent,
    Immediate,
    Snapshot,
}

impl SwitchArgs {
    /// Called first by commands that switch.
    pub(crate) fn be_prompt(&self) {
        livepatch_apply::be_prompt();
    }

    pub(crate) fn apply_options(&self, part: &PartArgs) -> ApplyOptions {
        ApplyOptions {
            policy: self.policy(),
            deadline: self.timeout(),
            dry_run: false,
            selection: part.selection(),
            leave_running: part.leave_running.clone(),
        }
    }

    pub(crate) fn rollback_options(&self) -> RollbackOptions {
        RollbackOptions { policy: self.policy(), deadline: self.timeout() }
    }

    pub(crate) fn policy(&self) -> Policy {
        match self.policy {
            PolicyArg::Quiescent => Policy::Quiescent,
            PolicyArg::Immediate => Policy::Immediate,
            PolicyArg::Snapshot => Policy::Snapshot,
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

/// What a failed `apply`, `check` or `rollback` is for the user: a function of the patch that was never idle may be left running,
/// what else is in the way only with all that is under way.
pub(crate) fn failed(error: ApplyError, policy: Policy) -> Failure {
    let ApplyError::Busy { inside, .. } = &error else { return error.into() };
    let others = inside.iter().any(|thread| thread.function.is_some() && thread.leave_running.is_none());
    let functions: BTreeMap<String, Option<String>> = inside
        .iter()
        .filter_map(|thread| thread.leave_running.as_ref())
        .map(|function| (function.path.clone(), function.objection.clone()))
        .collect();
    let mut failure = Failure::from(error);
    let mut help = "nothing changed; try again, with a longer --timeout".to_owned();
    if others && policy != Policy::Immediate {
        help.push_str(
            "; or, if all calls under way may finish in the code that they are in, with --policy immediate",
        );
    }
    if functions.is_empty() {
        return if others { failure.help(help) } else { failure };
    }
    let left: Vec<&String> =
        functions.iter().filter(|(_, objection)| objection.is_none()).map(|(path, _)| path).collect();
    if left.len() == functions.len() && !others {
        let options: Vec<_> = left.iter().map(|path| format!("--leave-running '{path}'")).collect();
        help.push_str("; or, if calls under way never end and may go on in the old code, with ");
        help.push_str(&options.join(" "));
    }
    for (path, objection) in &functions {
        if let Some(objection) = objection {
            // Writing to a string does not fail.
            let _ = write!(help, "; calls of `{path}` cannot be left running: {objection}");
        }
    }
    if functions.values().any(Option::is_some) {
        help.push_str(
            "; if it is in the patch only because it may have been compiled for something else, a smaller change leaves it out: put new \
             code into a function of its own, with `#[cold]` or `#[inline(never)]`",
        );
    }
    if let Some(extra) = failure.extra.as_object_mut() {
        extra.insert("leave_running".into(), serde_json::json!(left));
    }
    failure.help(help)
}

/// A time limit: more than nothing and at most a day.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 86_400.0 => Ok(value),
        _ => Err("give a number of seconds above 0 and up to 86400".into()),
    }
}

/// A process id on the command line.
pub(crate) fn pid(text: &str) -> Result<i32, String> {
    match text.parse::<i32>() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err("a process id is a positive number".into()),
    }
}

pub(crate) fn state(state: PatchState) -> &'static str {
    match state {
        PatchState::Applying => "being applied",
        PatchState::Applied => "applied",
        PatchState::RollingBack => "being rolled back",
        PatchState::RolledBack => "rolled back",
        PatchState::Replaced => "replaced",
    }
}

/// A patch with its functions, several lines.
pub(crate) fn patch_text(patch: &PatchReport) -> String {
    let short = patch.id.get(..16).unwrap_or(&patch.id);
    let mut text = format!(
        "  {} {short}: {}, {}",
        patch.name,
        state(patch.state),
        count(patch.functions.len(), "function")
    );
    for part in patch.selection.parts() {
        // Writing to a string does not fail.
        let _ = write!(text, "\n    of {part}");
    }
    for function in &patch.functions {
        // Writing to a string does not fail.
        let _ = write!(text, "\n    {} {} -> {}", function.path, function.address, function.new_address);
    }
    text
}

/// How long the process was held.
pub(crate) fn holds_text(holds: &Holds) -> String {
    let mut text = format!(
        "{} held for {} µs at most, {} µs at a changed function, {} µs for work inside the process",
        count(holds.threads, "thread"),
        holds.world_stopped_us,
        holds.parked_us,
        holds.worker_us
    );
    if holds.retries > 0 {
        let times = if holds.retries == 1 { "once".into() } else { format!("{} times", holds.retries) };
        let _ = write!(text, ", after waiting {times} for changed code to be left");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_ids_are_checked() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "inf", "NaN", "1e9", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(pid("12"), Ok(12));
        for wrong in ["0", "-1", "x", "99999999999"] {
            assert!(pid(wrong).is_err(), "{wrong}");
        }
    }
}
