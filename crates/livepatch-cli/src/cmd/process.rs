//! What the commands on processes share: arguments and the text of reports.

use crate::output::count;
use livepatch_apply::registry::PatchState;
use livepatch_apply::{ApplyOptions, Holds, PatchReport, Policy, RollbackOptions};
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

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PolicyArg {
    Quiescent,
    Immediate,
    Snapshot,
}

impl SwitchArgs {
    /// Called first by commands that switch: threads of the process wait for them.
    pub(crate) fn hurry(&self) {
        livepatch_apply::prefer_this_thread();
    }

    pub(crate) fn apply_options(&self) -> ApplyOptions {
        ApplyOptions { policy: self.policy(), deadline: self.timeout(), ..ApplyOptions::default() }
    }

    pub(crate) fn rollback_options(&self) -> RollbackOptions {
        RollbackOptions { policy: self.policy(), deadline: self.timeout() }
    }

    fn policy(&self) -> Policy {
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
    for function in &patch.functions {
        // Writing to a string does not fail.
        let _ = write!(text, "\n    {} {} -> {}", function.path, function.address, function.new_address);
    }
    text
}

/// How long the process was held.
pub(crate) fn holds_text(holds: &Holds) -> String {
    let mut text = format!(
        "{} held for {} µs at most, {} µs at a changed function",
        count(holds.threads, "thread"),
        holds.world_stopped_us,
        holds.parked_us
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
