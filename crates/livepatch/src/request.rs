//! What the program asks its helper to do. Both are the same executable, so the format has no versions.

use livepatch_apply::{Policy, Selection};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A request. It is written as one line of JSON, and the patch file follows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The program, and the thread that waits for the helper.
    pub pid: i32,
    pub tid: i32,
    /// Return addresses of that thread.
    pub frames: Vec<u64>,
    pub operation: Operation,
    /// Until when the engine may try, as [`now`] tells the time.
    pub until: Duration,
    pub policy: Policy,
    pub dry_run: bool,
    pub selection: Selection,
    pub leave_running: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    Apply,
    Rollback(Which),
    Status,
}

/// The patches to take out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Which {
    Last,
    Id(String),
    All,
}

/// The time by the clock that the program and its helper share: time that the helper takes to start counts, too.
pub(crate) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

impl Request {
    /// How long the engine may try from now on.
    pub fn left(&self) -> Duration {
        self.until.saturating_sub(now())
    }

    /// The request and the patch, as the helper reads them.
    pub fn encode(&self, patch: &[u8]) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(patch);
        Ok(bytes)
    }

    /// The request and the patch in these bytes.
    #[cfg_attr(
        not(all(feature = "helper", target_env = "gnu")),
        allow(dead_code, reason = "the helper's side")
    )]
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        Some((serde_json::from_slice(&bytes[..end]).ok()?, &bytes[end + 1..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_with_its_patch() {
        let request = Request {
            pid: 1,
            tid: 2,
            frames: vec![u64::MAX],
            operation: Operation::Rollback(Which::Id("ab\nc".into())),
            until: Duration::from_millis(1),
            policy: Policy::Immediate,
            dry_run: true,
            selection: Selection::new().function("<a::B as C>::d"),
            leave_running: vec!["main".into()],
        };
        let bytes = request.encode(b"x\ny").unwrap();
        let (read, patch) = Request::decode(&bytes).unwrap();
        assert_eq!(format!("{read:?}"), format!("{request:?}"));
        assert_eq!(patch, b"x\ny");
        assert!(Request::decode(b"{}\n").is_none());
        assert!(Request::decode(b"").is_none());
    }
}
