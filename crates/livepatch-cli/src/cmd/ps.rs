//! `livepatch ps`: processes with patches.

use crate::exit::Failure;
use crate::output::Outcome;
use serde_json::json;

/// Looks through all processes that this user may look into.
pub(crate) fn run() -> Result<Outcome, Failure> {
    let list = livepatch_apply::ps()?;
    let human = if list.is_empty() {
        "no process that you may look into has patches".into()
    } else {
        list.iter().map(super::status::text).collect::<Vec<_>>().join("\n")
    };
    Outcome::done(&json!({"processes": list}), human)
}
