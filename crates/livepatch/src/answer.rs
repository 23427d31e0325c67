//! The report of the helper or of the tool: one JSON object in the form of `livepatch --json`.

use crate::error::{Error, HelperError, ThreadInside};
use crate::report::{Call, Report, RollbackReport, Status};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Exit codes of the command line contract, which the helper's report carries, too.
#[cfg_attr(not(all(feature = "helper", target_env = "gnu")), allow(dead_code, reason = "the helper's side"))]
pub(crate) mod code {
    pub const ERROR: u64 = 1;
    pub const USAGE: u64 = 2;
    pub const REFUSED: u64 = 4;
    pub const BUSY: u64 = 5;
    pub const MISMATCH: u64 = 6;
    pub const PERMISSION: u64 = 7;
    pub const LOST: u64 = 8;
}

/// A report, and how it got here.
#[derive(Debug)]
pub(crate) struct Answer {
    pub json: Value,
    pub call: Call,
}

impl Answer {
    pub fn apply(self) -> Result<Report, Error> {
        let already = self.json["already_applied"] == true;
        let report = self.read::<Report>(|report, call| report.call = call)?;
        if already { Err(Error::AlreadyApplied(Box::new(report))) } else { Ok(report) }
    }

    pub fn rollback(self) -> Result<RollbackReport, Error> {
        self.read(|report: &mut RollbackReport, call| report.call = call)
    }

    pub fn status(self) -> Result<Status, Error> {
        self.read(|status: &mut Status, call| status.call = call)
    }

    fn read<T: DeserializeOwned>(mut self, set: impl FnOnce(&mut T, Call)) -> Result<T, Error> {
        if let Some(exit) = self.json["exit_code"].as_u64() {
            return Err(failure(exit, &mut self.json));
        }
        let mut report: T = serde_json::from_value(self.json.clone())
            .map_err(|error| HelperError::Report { reason: error.to_string() })?;
        self.call.json = self.json;
        set(&mut report, self.call);
        Ok(report)
    }
}

/// The error that a failure's object stands for.
fn failure(exit: u64, json: &mut Value) -> Error {
    let message = json["error"].as_str().unwrap_or("no reason given").to_owned();
    match exit {
        code::USAGE => match serde_json::from_value(json["holds"].take()) {
            Ok(holds) => Error::NotHeld { message, holds },
            Err(_) => Error::NothingToRollBack(message),
        },
        code::REFUSED => {
            let missing = serde_json::from_value(json["missing"].take()).unwrap_or_default();
            Error::Refused { message, missing }
        }
        code::BUSY => busy(message, json),
        code::MISMATCH => Error::Mismatch(message),
        code::PERMISSION => Error::Permission(message),
        // LOST is never seen here: the process that would be lost reads this.
        _ => Error::Environment(message),
    }
}

fn busy(message: String, json: &mut Value) -> Error {
    let inside: Vec<ThreadInside> = serde_json::from_value(json["inside"].take()).unwrap_or_default();
    let caller = nix::unistd::gettid().as_raw();
    let own = inside.iter().find(|thread| thread.tid == caller).and_then(|thread| {
        let ThreadInside { function, reason, inlines, backtrace, .. } = thread.clone();
        Some(Error::CallerInside { function: function?, reason, inlines, backtrace })
    });
    let held_by = serde_json::from_value(json["held_by"].take()).ok();
    own.unwrap_or(Error::Busy { message, inside, held_by })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(json: Value) -> Error {
        Answer { json, call: Call::default() }.apply().unwrap_err()
    }

    #[test]
    fn exit_codes_become_typed_errors() {
        let plain = |code: u64| error(json!({"error": "text", "exit_code": code}));
        assert!(matches!(plain(1), Error::Environment(text) if text == "text"));
        assert!(matches!(plain(2), Error::NothingToRollBack(_)));
        assert!(matches!(plain(4), Error::Refused { missing, .. } if missing.is_empty()));
        let lacks = json!({"selected": "a::f", "needs": "a::g", "reason": "calls"});
        let part = error(json!({"error": "text", "exit_code": 4, "missing": [lacks]}));
        assert!(matches!(part, Error::Refused { missing, .. } if missing[0].needs == "a::g"));
        let held = json!({"pid": 7, "name": "gdb", "livepatch": false});
        let busy = error(json!({"error": "text", "exit_code": 5, "held_by": held}));
        assert!(matches!(busy, Error::Busy { held_by: Some(by), .. } if by.name == "gdb"));
        assert!(matches!(plain(6), Error::Mismatch(_)));
        assert!(matches!(plain(7), Error::Permission(_)));
        let held = error(json!({"error": "text", "exit_code": 2, "holds": ["a::b"]}));
        assert!(matches!(held, Error::NotHeld { holds, .. } if holds == ["a::b"]));
        assert!(matches!(error(json!({"pid": 1})), Error::Helper(HelperError::Report { .. })));
    }

    #[test]
    fn the_calling_thread_is_told_from_others() {
        let inside = |tid: i32, function: Option<&str>| {
            let thread =
                json!({"tid": tid, "name": "n", "function": function, "reason": "r", "backtrace": ["f"]});
            error(json!({"error": "text", "exit_code": 5, "inside": [thread]}))
        };
        let own = nix::unistd::gettid().as_raw();
        assert!(
            matches!(inside(own, Some("a::f")), Error::CallerInside { function, .. } if function == "a::f")
        );
        assert!(matches!(inside(own, None), Error::Busy { .. }));
        assert!(matches!(inside(own + 1, Some("a::f")), Error::Busy { inside, .. } if inside.len() == 1));
    }
}
