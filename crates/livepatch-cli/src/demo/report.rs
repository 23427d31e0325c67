//! What the demo measured, and whether everything was as it must be.

use super::load::Tally;
use crate::inspect::PatchFile;
use crate::output::{bytes, count};
use livepatch_apply::report::{ApplyReport, RollbackReport};
use serde::Serialize;
use std::fmt::Write;

/// The report. With `--json` it is printed as it is.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) responses: Responses,
    requests: Tally,
    stream: Stream,
    /// Whether the service's own counter has counted every request: state survived.
    state_kept: bool,
    functions: Vec<String>,
    patch_bytes: u64,
    apply_ms: Spread,
    rollback_ms: Spread,
    /// How long the process was held, in each apply and rollback.
    world_stopped_us: Spread,
    /// Resident memory of the service, bytes.
    pub(crate) resident_before: Option<u64>,
    pub(crate) resident_after: Option<u64>,
    /// The same after every hundred cycles, with the number of cycles.
    pub(crate) resident_samples: Vec<(u32, u64)>,
    build_s: f64,
    create_s: f64,
    /// What was not as it must be. Empty if the demo succeeded.
    pub(crate) problems: Vec<String>,
}

/// The answer to one and the same order.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Responses {
    pub(crate) before: String,
    pub(crate) after: String,
    pub(crate) rolled_back: String,
}

#[derive(Debug, Default, Serialize)]
struct Stream {
    events: u64,
    connected: bool,
}

/// Median and maximum of something measured once per cycle.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Spread {
    median: f64,
    max: f64,
    #[serde(skip)]
    values: Vec<f64>,
}

impl Spread {
    pub(crate) fn add(&mut self, value: f64) {
        let at = self.values.partition_point(|known| *known <= value);
        self.values.insert(at, value);
        self.median = self.values[self.values.len() / 2];
        self.max = *self.values.last().unwrap_or(&value);
    }

    fn text(&self, unit: &str) -> String {
        match self.values.len() {
            0 => "not measured".into(),
            1 => format!("{:.1} {unit}", self.max),
            number => {
                format!("{:.1} {unit} (median of {number}; longest {:.1} {unit})", self.median, self.max)
            }
        }
    }
}

impl Report {
    pub(crate) fn new(patch: &PatchFile, build_s: f64, create_s: f64) -> Self {
        Self {
            responses: Responses::default(),
            requests: Tally::default(),
            stream: Stream::default(),
            state_kept: false,
            functions: patch.patch.meta.redirects.iter().map(|redirect| redirect.path.clone()).collect(),
            patch_bytes: patch.data.len() as u64,
            apply_ms: Spread::default(),
            rollback_ms: Spread::default(),
            world_stopped_us: Spread::default(),
            resident_before: None,
            resident_after: None,
            resident_samples: Vec::new(),
            build_s,
            create_s,
            problems: Vec::new(),
        }
    }

    pub(crate) fn note_apply(&mut self, applied: &ApplyReport) {
        self.apply_ms.add(applied.total_ms);
        self.world_stopped_us.add(applied.holds.world_stopped_us as f64);
    }

    pub(crate) fn note_rollback(&mut self, back: &RollbackReport) {
        self.rollback_ms.add(back.total_ms);
        self.world_stopped_us.add(back.holds.world_stopped_us as f64);
    }

    pub(crate) fn problem(&mut self, what: String) {
        self.problems.push(what);
    }

    pub(crate) fn judge_requests(&mut self, tally: Tally) {
        if tally.failed > 0 {
            self.problem(format!("{} requests failed", tally.failed));
        }
        if tally.wrong > 0 {
            self.problem(format!("{} responses came from code that was not in force", tally.wrong));
        }
        self.requests = tally;
    }

    pub(crate) fn judge_counter(&mut self, orders: u64, counted: Option<u64>) {
        self.state_kept = counted == Some(orders);
        if !self.state_kept {
            let counted = counted.map_or_else(|| "no number".into(), |number| number.to_string());
            self.problem(format!("the service counted {counted} where {orders} orders were answered"));
        }
    }

    pub(crate) fn judge_stream(&mut self, end: Result<u64, String>) {
        match end {
            Ok(events) => self.stream = Stream { events, connected: true },
            Err(why) => self.problem(why),
        }
    }

    pub(crate) fn judge_responses(&mut self, old: &str, new: &str) {
        let expected = [("before", old), ("after", new), ("rolled back", old)];
        let Responses { before, after, rolled_back } = &self.responses;
        let wrong: Vec<String> = expected
            .iter()
            .zip([before, after, rolled_back])
            .filter(|((_, expected), found)| expected != found)
            .map(|((when, _), found)| format!("the response {when} is wrong: {found}"))
            .collect();
        self.problems.extend(wrong);
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: String| {
            let _ = writeln!(text, "{key:<20} {value}");
        };
        line("response before", self.responses.before.clone());
        line("         after", self.responses.after.clone());
        line("         rolled back", self.responses.rolled_back.clone());
        let Tally { old, new, failed, wrong } = &self.requests;
        line("requests served", format!("{} ({old} by the old code, {new} by the new)", old + new));
        line("requests failed", format!("{failed} (and {wrong} answered by the wrong code)"));
        let state = if self.stream.connected { "still connected" } else { "lost" };
        line("event stream", format!("{state}, {} events without a gap", self.stream.events));
        line("counters", if self.state_kept { "kept" } else { "lost" }.into());
        line("process held", self.world_stopped_us.text("µs"));
        line("apply", self.apply_ms.text("ms"));
        line("rollback", self.rollback_ms.text("ms"));
        let functions = count(self.functions.len(), "function");
        line("patch", format!("{}, {functions}: {}", bytes(self.patch_bytes), self.functions.join(", ")));
        if let (Some(before), Some(after)) = (self.resident_before, self.resident_after) {
            line("memory of service", format!("{} before, {} patched", bytes(before), bytes(after)));
        }
        line("build", format!("{:.1} s", self.build_s));
        line("create", format!("{:.1} s", self.create_s));
        for problem in &self.problems {
            line("PROBLEM", problem.clone());
        }
        line("verdict", if self.problems.is_empty() { "as promised" } else { "FAILED" }.into());
        text.truncate(text.trim_end().len());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_median_and_maximum() {
        let mut spread = Spread::default();
        for value in [5.0, 1.0, 9.0] {
            spread.add(value);
        }
        assert_eq!((spread.median, spread.max), (5.0, 9.0));
    }
}
