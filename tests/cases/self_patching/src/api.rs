//! The library's calls, with their results as one line.

use livepatch::{Error, HelperError, Options, Policy, Report, Selection};
use std::time::{Duration, Instant};

#[derive(Clone)]
pub struct Settings {
    options: Options,
    deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let deadline = Duration::from_secs(30);
        Self { options: Options::new().deadline(deadline), deadline }
    }
}

impl Settings {
    pub fn set(&mut self, name: &str, value: &str) {
        let options = self.options.clone();
        self.options = match name {
            "deadline" => {
                self.deadline = if value == "forever" { Duration::MAX } else { Duration::from_millis(value.parse().unwrap()) };
                options.deadline(self.deadline)
            }
            "select" => options.selection(Selection::new().function(value)),
            "module" => options.selection(Selection::new().module(value)),
            "policy" => options.policy(Policy::Immediate),
            _ => options.tool(value),
        };
    }

    pub fn run(&self, name: &str, argument: &str) -> String {
        let started = Instant::now();
        let result = match name {
            "apply" => self.options.apply(argument).map(|report| applied(&report)),
            "bytes" => self.options.apply_bytes(&std::fs::read(argument).unwrap()).map(|report| applied(&report)),
            "rollback-of" => {
                let id = &self.options.status().unwrap().patches[0].id;
                let result = self.options.rollback_patch(id);
                let result = result.map(|report| format!("took out {}", report.rolled_back == [id.clone()]));
                assert!(matches!(self.options.rollback_patch(id), Err(Error::NothingToRollBack(_))));
                result
            }
            "check" => {
                self.options.clone().dry_run(true).apply(argument).map(|report| format!("dry_run {}", report.dry_run))
            }
            "rollback" => self.options.rollback().map(|report| format!("took out {}", report.rolled_back.len())),
            "all" => self.options.rollback_all().map(|report| format!("took out {}", report.rolled_back.len())),
            _ => self.options.status().map(|status| {
                let states: Vec<_> = status.patches.iter().map(|patch| format!("{:?}", patch.state)).collect();
                format!("{} {}", status.patches.len(), states.join(" "))
            }),
        };
        let text = result.unwrap_or_else(|error| format!("error {}", describe(&error)));
        // A busy machine may run this thread a little later.
        let late = started.elapsed().saturating_sub(self.deadline.saturating_add(Duration::from_secs(1)));
        if late.is_zero() { text } else { format!("{text} LATE by {late:?}") }
    }

    /// Eight threads at once.
    pub fn race(&self, file: &str) -> String {
        let results: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| self.run("apply", file))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let count = |start: &str| results.iter().filter(|result| result.starts_with(start)).count();
        format!("{} applied {} already", count("applied"), count("error already"))
    }
}

/// The functions of a report that holds what it promises.
fn applied(report: &Report) -> String {
    let functions: Vec<_> = report.functions().map(|function| function.path.clone()).collect();
    assert!(report.functions().all(|function| function.address != function.new_address));
    assert!(report.holds.threads > 0 && report.total_ms > 0.0);
    assert!(report.call.total >= report.call.start + report.call.waited);
    assert_eq!(report.call.json["patches"][0]["id"], report.patches[0].id);
    let said = |words: &str| report.call.log.iter().any(|line| line.contains(words));
    assert!(said("attached to") && said("entries switched"), "{:?}", report.call.log);
    format!("applied {}", functions.join(" "))
}

fn describe(error: &Error) -> String {
    let kind = match error {
        Error::Refused { .. } => "refused",
        Error::Busy { .. } => "busy",
        Error::CallerInside { function, .. } => &format!("caller-inside {function}"),
        Error::InProgress { .. } => "in-progress",
        Error::Mismatch(_) => "mismatch",
        Error::Permission(_) => "permission",
        Error::AlreadyApplied(_) => "already",
        Error::NotHeld { .. } => "not-held",
        Error::NothingToRollBack(_) => "nothing",
        Error::Read { .. } => "read",
        Error::Helper(HelperError::Ended { .. }) => "helper-ended",
        Error::Helper(HelperError::Deadline { .. }) => "helper-deadline",
        Error::Helper(_) => "helper",
        _ => "environment",
    };
    format!("{kind}: {error}").replace('\n', " ")
}
