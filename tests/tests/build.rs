//! `cargo livepatch build` and the baselines that it keeps.

use livepatch_tests::Failed;
use livepatch_tests::fixture::{Fixture, Side};
use livepatch_tests::profile::Profile;
use livepatch_tests::project::Project;
use livepatch_tests::tools::{self, Ran, exit};
use object::{Object, ObjectSection};
use std::fs;
use std::path::Path;
use std::process::Command;

const SOURCE: &str = r#"
mod host;

#[inline(never)]
fn word() -> String {
    format!("old {:?}", std::time::Duration::from_secs(3)) //-
    format!("new {:?}", std::time::Duration::from_secs(3)) //+
}

fn step() {
    println!("{}", word());
}

fn main() {
    host::serve(step);
}
"#;

fn project() -> Result<Project, Failed> {
    Project::new(&Fixture::inline("builds", SOURCE)?, Profile::Release)
}

fn section(file: &Path, name: &str) -> Result<Option<Vec<u8>>, Failed> {
    let data = fs::read(file)?;
    let file = object::File::parse(&*data)?;
    Ok(file.section_by_name(name).map(|section| section.data().map(<[u8]>::to_vec)).transpose()?)
}

#[test]
fn the_code_is_that_of_a_plain_build() -> Result<(), Failed> {
    let project = project()?;
    let shipped = project.ship()?;
    let target = project.path().join("plain");
    let mut plain = Command::new(env!("CARGO"));
    plain.args(["build", "--release", "--target-dir"]).arg(&target).current_dir(project.path());
    // The same profile with full debug information: what `cargo livepatch build` turns on.
    plain.env("CARGO_PROFILE_RELEASE_DEBUG", "2");
    Ran::of(&mut plain)?.expect(exit::DONE, "cargo build")?;
    let ours = section(&shipped, ".text")?;
    let theirs = section(&target.join("release/builds"), ".text")?;
    assert!(ours.is_some(), "no .text");
    assert!(ours == theirs, ".text differs from a plain build's");
    for gone in [".symtab", ".debug_info"] {
        assert!(section(&shipped, gone)?.is_none(), "the shipped copy has {gone}");
    }
    Ok(())
}

#[test]
fn a_configured_linker_and_a_rustc_wrapper_keep_working() -> Result<(), Failed> {
    let project = project()?;
    let script = |name: &str, run: &str| -> Result<String, Failed> {
        let path = project.path().join(name);
        let log = project.path().join(format!("{name}.log"));
        let text = path.with_extension("sh");
        fs::write(&text, format!("#!/bin/sh\necho called >> '{}'\nexec {run} \"$@\"\n", log.display()))?;
        tools::place(&text, &path)?;
        Ok(path.to_str().ok_or("a path that is not UTF-8")?.to_owned())
    };
    let linker = script("my-linker", "cc")?;
    // A wrapper gets the compiler as its first argument.
    let wrapper = script("my-wrapper", "")?;
    let config = format!(
        "[build]\nrustc-wrapper = \"{wrapper}\"\n\n[target.x86_64-unknown-linux-gnu]\nlinker = \"{linker}\"\n"
    );
    project.file(".cargo/config.toml", &config)?;
    project.build()?;
    project.write(Side::New)?;
    let created = project.create("fix")?;
    created.ran.expect(exit::DONE, "create")?;
    for name in ["my-linker", "my-wrapper"] {
        let log = project.path().join(format!("{name}.log"));
        let calls = fs::read_to_string(&log).map_err(|_| format!("{name} was never called"))?;
        assert!(calls.lines().count() >= 2, "{name} was not called by both builds");
    }
    Ok(())
}

#[test]
fn create_is_incremental_and_does_not_touch_what_was_shipped() -> Result<(), Failed> {
    let project = project()?;
    let shipped =
        project.build()?.json["artifacts"][0]["stripped"].as_str().ok_or("no stripped file")?.to_owned();
    let before = fs::read(&shipped)?;
    project.create("none")?.ran.expect(exit::NOTHING, "create of nothing")?;
    project.write(Side::New)?;
    let first = project.create("first")?;
    first.ran.expect(exit::DONE, "create")?;
    let second = project.create("second")?;
    second.ran.expect(exit::DONE, "create again")?;
    assert!(fs::read(&shipped)? == before, "create changed the shipped file");
    project.write(Side::Old)?;
    project.create("back")?.ran.expect(exit::NOTHING, "create of the old source")?;
    Ok(())
}

#[test]
fn a_baseline_travels_in_an_archive() -> Result<(), Failed> {
    let project = project()?;
    project.build()?;
    let archive = project.path().join("baseline.tar.zst");
    let baseline = |words: &[&str], home: &str| -> Result<Ran, Failed> {
        let mut command = tools::cargo_livepatch(project.path());
        command.arg("baseline").args(words).arg("--json").env("LIVEPATCH_HOME", project.path().join(home));
        Ran::of(&mut command)?.expect(exit::DONE, &format!("baseline {words:?}"))
    };
    let path = archive.to_str().ok_or("a path that is not UTF-8")?;
    let list = baseline(&["list"], "store")?.json;
    let id = list["baselines"][0]["build_id"].as_str().ok_or_else(|| format!("no baseline in {list}"))?;
    baseline(&["export", id, "-o", path], "store")?;
    assert_eq!(baseline(&["list"], "elsewhere")?.json["baselines"].as_array().map(Vec::len), Some(0));
    baseline(&["import", path], "elsewhere")?;
    project.write(Side::New)?;
    let patch = project.path().join("fix.lpatch");
    let mut create = tools::cargo_livepatch(project.path());
    create.args(["create", "--json", "--baseline", id, "-o"]).arg(&patch);
    create.env("LIVEPATCH_HOME", project.path().join("elsewhere"));
    Ran::of(&mut create)?.expect(exit::DONE, "create from an imported baseline")?;
    baseline(&["remove", id], "elsewhere")?;
    assert_eq!(baseline(&["list"], "elsewhere")?.json["baselines"].as_array().map(Vec::len), Some(0));
    Ok(())
}
