//! Patches on running programs.

mod support;

use livepatch_apply::{
    ApplyError, ApplyOptions, Mismatch, Policy, RollbackOptions, Selector, apply, check, rollback, status,
};
use std::sync::OnceLock;
use std::time::Duration;
use support::{Program, Running, returns};

fn server() -> &'static Program {
    static SERVER: OnceLock<Program> = OnceLock::new();
    SERVER.get_or_init(|| Program::build("server", &[]))
}

fn value_patch(value: u32) -> Vec<u8> {
    server().patch(&format!("value-{value}")).redirect(server(), "value", &returns(value), vec![]).finish()
}

fn options() -> ApplyOptions {
    ApplyOptions { deadline: Duration::from_secs(2), ..ApplyOptions::default() }
}

fn roll_back(target: &Running) -> Result<livepatch_apply::RollbackReport, ApplyError> {
    rollback(target.pid(), &Selector::Last, &RollbackOptions::default())
}

#[test]
fn apply_and_roll_back() {
    let mut target = server().run();
    assert_eq!(target.ask("value"), "1");
    let report = apply(target.pid(), &value_patch(7), &options()).unwrap();
    assert!(!report.already_applied && report.holds.threads >= 1 && report.holds.world_stopped_us > 0);
    assert_eq!(target.ask("value"), "7");
    let seen = status(target.pid()).unwrap();
    assert_eq!(seen.patches.len(), 1);
    assert_eq!(serde_json::to_value(seen.patches[0].state).unwrap(), "applied");
    assert_eq!(seen.patches[0].functions[0].path, "server::value");

    let again = apply(target.pid(), &value_patch(7), &options()).unwrap();
    assert!(again.already_applied);

    roll_back(&target).unwrap();
    assert_eq!(target.ask("value"), "1");
    assert!(matches!(roll_back(&target), Err(ApplyError::NothingToRollBack(_))));

    let reapplied = apply(target.pid(), &value_patch(7), &options()).unwrap();
    assert_eq!(reapplied.mapped_bytes, 0, "the memory of the first time is used again");
    assert_eq!(target.ask("value"), "7");
    target.end();
}
