//! One test for each case in `tests/fixtures` and each profile that it names.

use libtest_mimic::{Arguments, Failed, Trial};
use livepatch_tests::fixture::Fixture;
use livepatch_tests::scenario;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut trials = Vec::new();
    let entries = std::fs::read_dir(folder).expect("the fixtures' folder");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a fixture").path()).collect();
    paths.sort();
    for path in paths {
        let fixture = Fixture::read(&path).expect("a well-formed fixture");
        for profile in fixture.profiles.clone() {
            let fixture = fixture.clone();
            trials.push(Trial::test(format!("{}::{}", fixture.name, profile.name()), move || {
                scenario::run(&fixture, profile).map_err(|error| Failed::from(error.to_string()))
            }));
        }
    }
    assert!(!trials.is_empty(), "no fixtures");
    libtest_mimic::run(&arguments, trials).exit_code()
}
