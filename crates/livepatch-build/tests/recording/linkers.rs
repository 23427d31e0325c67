//! Users' own linkers, wrappers and flags.

use crate::images::{build_id, has_section, section};
use crate::project::Project;
use crate::test;
use libtest_mimic::Trial;
use std::fs;

pub fn tests() -> Vec<Trial> {
    vec![
        test("configured_linker_is_chained", configured_linker_is_chained),
        test("rustc_wrapper_is_chained", rustc_wrapper_is_chained),
        test("linker_in_rustflags_is_reported", linker_in_rustflags_is_reported),
        test("link_errors_pass_through", link_errors_pass_through),
        test("missing_build_id_is_added", missing_build_id_is_added),
        test("stripping_and_splitting_profiles", stripping_and_splitting_profiles),
        test("map_of_the_user_is_used", map_of_the_user_is_used),
        test("lost_store_fails_the_link", lost_store_fails_the_link),
    ]
}

fn configured_linker_is_chained() {
    let project = Project::workspace();
    let linker =
        project.script("tools/clang-like", "echo \"$@\" >> \"$(dirname \"$0\")/log\"\nexec cc \"$@\"");
    // A path in cargo's configuration is relative to the folder above the file's.
    project.write(
        ".cargo/config.toml",
        "[target.'cfg(target_os = \"linux\")']\nlinker = \"tools/clang-like\"\n",
    );
    let built = project.build_one(&["--release"]);
    assert_eq!(std::path::Path::new(&built.manifest.link.linker), linker);
    let log = fs::read_to_string(project.path("tools/log")).unwrap();
    assert!(log.lines().any(|line| line.contains("app-") && line.contains("-Map=")), "{log}");
    // Build scripts go through it as well, unrecorded.
    assert!(log.lines().any(|line| line.contains("build_script_build-") && !line.contains("-Map=")), "{log}");
    assert!(!built.manifest.link.args.iter().any(|arg| arg.contains("-Map=")), "as rustc gave them");
}

fn rustc_wrapper_is_chained() {
    let project = Project::workspace();
    let wrapper = project.script("tools/wrap", "echo \"$@\" >> \"$(dirname \"$0\")/log\"\nexec \"$@\"");
    let built = project.try_build(&[], &[("RUSTC_WRAPPER", wrapper.to_str().unwrap())]);
    let built: Vec<crate::tool::Built> = built.answer();
    let log = fs::read_to_string(project.path("tools/log")).unwrap();
    assert!(log.contains("--crate-name app"), "{log}");
    fs::remove_file(project.path("tools/log")).unwrap();
    project.replace("app/src/main.rs", "println!(\"{} {}\"", "println!(\"{}, {}\"");
    project.rebuild(&built[0]);
    let log = fs::read_to_string(project.path("tools/log")).unwrap();
    assert!(
        log.lines().any(|line| line.contains("--crate-name app") && line.contains("--remap-path-prefix")),
        "{log}"
    );
}

fn linker_in_rustflags_is_reported() {
    let project = Project::workspace();
    let failure = project.try_build(&[], &[("RUSTFLAGS", "-C linker=cc")]).failure();
    assert!(failure.contains("NotRecorded") && failure.contains("RUSTFLAGS sets"), "{failure}");
}

fn link_errors_pass_through() {
    let project = Project::workspace();
    let failure = project.try_build(&[], &[("RUSTFLAGS", "-C link-arg=-lno-such-library")]).failure();
    assert!(failure.contains("no-such-library") && failure.contains("Cargo { code: 101 }"), "{failure}");
    assert!(!failure.contains("livepatch: failed"), "{failure}");
}

fn missing_build_id_is_added() {
    let project = Project::workspace();
    let run = project.try_build(&["--bins"], &[("RUSTFLAGS", "-C link-arg=-Wl,--build-id=none")]);
    let built: Vec<crate::tool::Built> = run.answer();
    assert_eq!(build_id(&built[0].output), built[0].manifest.build_id().as_bytes());
}

fn stripping_and_splitting_profiles() {
    let project = Project::workspace();
    let manifest = fs::read_to_string(project.path("Cargo.toml")).unwrap();
    let profile = "[profile.release]\nstrip = true\nsplit-debuginfo = \"unpacked\"\n";
    project.write("Cargo.toml", &format!("{manifest}{profile}"));
    let built = project.build_one(&["--release"]);
    assert!(has_section(&built.output, ".symtab"));
    assert!(section(&built.output, ".debug_info").len() > 100_000, "the program's types, not a skeleton");
    assert!(!has_section(&built.stripped, ".symtab"));
}

fn map_of_the_user_is_used() {
    let project = Project::workspace();
    let map = project.path("my.map");
    let flags = format!("-C\u{1f}link-arg=-Wl,-Map={}", map.display());
    let run = project.try_build(&[], &[("CARGO_ENCODED_RUSTFLAGS", &flags)]);
    let built: Vec<crate::tool::Built> = run.answer();
    assert!(map.is_file() && !built[0].manifest.link.inputs.is_empty());
}

/// A build whose recording fails must not look finished.
fn lost_store_fails_the_link() {
    let project = Project::workspace();
    let linker = project.script(
        "tools/cc",
        "cc \"$@\" || exit\ncase \"$*\" in *-Map=*) rm -rf \"$LIVEPATCH_HOME/tmp\"; touch \"$LIVEPATCH_HOME/tmp\" ;; esac",
    );
    let linker = linker.to_str().unwrap();
    let failure =
        project.try_build(&[], &[("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", linker)]).failure();
    assert!(failure.contains("livepatch: failed to"), "{failure}");
    assert!(!project.path("target/debug/app").exists());
}
