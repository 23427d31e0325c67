//! The example service under load, through the demo: its verdict is the product's.

use livepatch_tests::tools::{self, Ran, exit};
use livepatch_tests::{Failed, fail};
use std::path::Path;
use std::process::Command;

const CYCLES: u64 = 200;

fn demo(dir: &Path, workers: &str) -> Result<(), Failed> {
    let mut command = Command::new(tools::folder().join("livepatch"));
    command.args(["demo", "--json", "--workers", workers, "--cycles", &CYCLES.to_string(), "--dir"]).arg(dir);
    let report = Ran::of(&mut command)?.expect(exit::DONE, "demo")?.json;
    let requests = &report["requests"];
    if requests["failed"] != 0 || requests["wrong"] != 0 || requests["new"].as_u64() < Some(CYCLES) {
        return fail(format!("requests failed or went to the wrong code: {report}"));
    }
    if report["stream"]["connected"] != true || report["state_kept"] != true {
        return fail(format!("the stream or the state was lost: {report}"));
    }
    if report["patch_bytes"].as_u64().is_none_or(|bytes| bytes >= 50_000) {
        return fail(format!("the patch is too large: {report}"));
    }
    Ok(())
}

#[test]
fn two_hundred_cycles_under_load_with_2_and_64_workers() -> Result<(), Failed> {
    let dir = livepatch_tests::scratch::folder()?;
    demo(dir.path(), "2")?;
    demo(dir.path(), "64")
}
