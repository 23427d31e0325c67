//! What a command hands back, and how it reaches the terminal or a machine.

use crate::exit::{Exit, Failure};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;

/// The result of a command that did what it was asked.
#[derive(Debug)]
pub struct Outcome {
    /// What the process exits with; [`Exit::Done`] except where "nothing to do" has a code of its own.
    pub exit: Exit,
    /// For `--json`: one object.
    pub json: Value,
    /// For people: whole lines without the last line break. Empty prints nothing.
    pub human: String,
}

impl Outcome {
    /// A success with a machine-readable report and a text for people.
    ///
    /// # Errors
    /// [`Exit::Error`] if the report cannot be put into JSON.
    pub fn done(report: &impl Serialize, human: String) -> Result<Self, Failure> {
        let json = serde_json::to_value(report).map_err(|error| {
            Failure::new(Exit::Error, format!("cannot write the report as JSON: {error}"))
        })?;
        Ok(Self { exit: Exit::Done, json, human })
    }

    /// The same with another exit code.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

/// Prints the result of `tool` and returns what to exit with.
pub fn finish(tool: &str, json: bool, result: Result<Outcome, Failure>) -> Exit {
    match result {
        Ok(outcome) => {
            let text = if json { outcome.json.to_string() } else { outcome.human };
            if text.is_empty() || print(&text) {
                return outcome.exit;
            }
            let code = outcome.exit.code();
            say(&format!(
                "{tool}: what was asked is done (exit code {code}), but the report cannot be written"
            ));
            Exit::Error
        }
        Err(failure) => {
            if json {
                print(&failure_json(&failure).to_string());
            } else {
                say(&failure_text(tool, &failure));
            }
            failure.exit
        }
    }
}

/// On standard error, if anybody listens: the exit code tells what counts.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// False if standard output is full or closed: the caller asked for a report and did not get it.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

fn failure_json(failure: &Failure) -> Value {
    let mut object = json!({
        "error": failure.message,
        "exit_code": failure.exit.code(),
        "findings": failure.findings.iter().map(|finding| &finding.json).collect::<Vec<_>>(),
    });
    if let (Some(object), Some(extra)) = (object.as_object_mut(), failure.extra.as_object()) {
        for (key, value) in extra {
            object.entry(key).or_insert_with(|| value.clone());
        }
    }
    object
}

fn failure_text(tool: &str, failure: &Failure) -> String {
    let mut text = String::new();
    for finding in &failure.findings {
        text.push_str(finding.human.trim_end());
        text.push_str("\n\n");
    }
    text.push_str(&format!("{tool}: {}", failure.message));
    if let Some(help) = &failure.help {
        text.push_str(&format!("\n  help: {help}"));
    }
    text
}

/// A byte count for people.
pub fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / (1024.0 * 1024.0)),
    }
}

/// `1 function`, `2 functions`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Rendered;

    #[test]
    fn a_failure_is_one_object_with_stable_keys() {
        let mut failure = Failure::new(Exit::Refused, "the change cannot be proven safe");
        failure.findings.push(Rendered { json: json!({"code": "LP0001"}), human: "LP0001".into() });
        failure.extra = json!({"pid": 7, "error": "does not replace the message"});
        assert_eq!(
            failure_json(&failure),
            json!({"error": "the change cannot be proven safe", "exit_code": 4, "findings": [{"code": "LP0001"}], "pid": 7})
        );
    }

    #[test]
    fn people_read_findings_first_and_the_verdict_last() {
        let mut failure = Failure::new(Exit::Refused, "refused").help("split the change");
        failure.findings.push(Rendered { json: json!({}), human: "finding one\n".into() });
        assert_eq!(
            failure_text("cargo livepatch", &failure),
            "finding one\n\ncargo livepatch: refused\n  help: split the change"
        );
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!([bytes(9_999), bytes(10_240), bytes(20 << 20)], ["9999 B", "10.0 KiB", "20.0 MiB"]);
        assert_eq!([count(1, "function"), count(2, "function")], ["1 function", "2 functions"]);
    }
}
