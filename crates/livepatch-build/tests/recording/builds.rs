//! `cargo livepatch build`: what it leaves, and that it changes nothing.

use crate::images::{build_id, has_section, section, symbols};
use crate::project::{Project, package};
use crate::test;
use libtest_mimic::Trial;
use livepatch_build::baseline::{ArtifactKind, Baseline, InputKind};
use livepatch_build::store::Store;
use std::fs;
use std::process::Command;

pub fn tests() -> Vec<Trial> {
    vec![
        test("text_equals_plain_cargo_lto_off", || text_equals_plain_cargo("lto = \"off\"")),
        test("text_equals_plain_cargo_lto_thin", || text_equals_plain_cargo("lto = \"thin\"")),
        test("text_equals_plain_cargo_lto_fat", || text_equals_plain_cargo("lto = \"fat\"")),
        test("stripped_copy", stripped_copy),
        test("inputs_outlive_the_build", inputs_outlive_the_build),
        test("cdylib_and_example", cdylib_and_example),
        test("fresh_build_without_baseline_links_again", fresh_build_without_baseline_links_again),
        test("json_messages_reach_the_user", json_messages_reach_the_user),
        test("nothing_to_record", nothing_to_record),
        test("parallel_builds_share_a_store", parallel_builds_share_a_store),
    ]
}

/// The generated code's path differs in length between the target folders, so it is left out here.
fn text_equals_plain_cargo(profile: &str) {
    let project = Project::workspace();
    project.write("lib/build.rs", "fn main() {}");
    project.replace(
        "lib/src/lib.rs",
        "include!(concat!(env!(\"OUT_DIR\"), \"/generated.rs\"));",
        "pub fn generated(index: usize) -> u32 { [2, 3, 5][index % 3] }",
    );
    let manifest = fs::read_to_string(project.path("Cargo.toml")).unwrap();
    project.write("Cargo.toml", &format!("{manifest}[profile.release]\n{profile}\n"));
    let built = project.build_one(&["--release"]);
    let plain = project.plain_cargo(&[]).join("app");
    let (ours, theirs) = (symbols(&built.output), symbols(&plain));
    let differing: Vec<_> = ours.symmetric_difference(&theirs).take(10).collect();
    assert!(differing.is_empty(), "{differing:?}");
    assert!(section(&built.output, ".text") == section(&plain, ".text"), "the same code");
    assert_eq!(build_id(&built.output), built.manifest.build_id().as_bytes());
}

fn stripped_copy() {
    let project = Project::workspace();
    let built = project.build_one(&["--release"]);
    assert_eq!(built.stripped.file_name().unwrap(), "app.stripped");
    assert_eq!(build_id(&built.stripped), build_id(&built.output));
    for name in [".text", ".rodata", ".eh_frame", ".dynsym", ".data.rel.ro"] {
        assert!(section(&built.stripped, name) == section(&built.output, name), "{name}");
    }
    for name in [".symtab", ".debug_info", ".strtab"] {
        assert!(has_section(&built.output, name) && !has_section(&built.stripped, name), "{name}");
    }
    let size = |path| fs::metadata(path).unwrap().len();
    assert!(size(&built.stripped) * 2 < size(&built.output));
    let run = |path| Command::new(path).args(["a", "bcd"]).output().unwrap();
    let (stripped, whole) = (run(&built.stripped), run(&built.output));
    assert!(stripped.status.success() && whole.status.success());
    assert_eq!(stripped.stdout.is_empty(), whole.stdout.is_empty());
}

fn inputs_outlive_the_build() {
    let project = Project::workspace();
    let built = project.build_one(&["--release"]);
    fs::remove_dir_all(project.path("target")).unwrap();
    let store = Store::at(project.store()).unwrap();
    let id = built.manifest.build_id().to_string();
    let baseline = Baseline::open(&store, &id[..7]).unwrap();
    assert_eq!(baseline.manifest, built.manifest);
    let build = baseline.build().unwrap();
    assert_eq!(build_id(&build.image), built.manifest.build_id().as_bytes());
    let own: Vec<_> =
        build.inputs.iter().filter(|i| i.kind == InputKind::Object && i.path.contains("app-")).collect();
    assert!(!own.is_empty(), "the program's own objects");
    assert!(build.inputs.iter().any(|i| i.kind == InputKind::Archive && i.path.contains("libstd-")));
    assert!(build.inputs.iter().any(|i| i.path.ends_with("crt1.o")), "what the driver adds");
    for input in &build.inputs {
        assert_eq!(
            livepatch_patch::Digest::of(&fs::read(&input.blob).unwrap()),
            input.digest,
            "{}",
            input.path
        );
    }
    for placed in build.map.sections() {
        assert!(build.inputs.iter().any(|i| *i.path == *placed.file), "{}", placed.file);
    }
    let found = Baseline::latest_for(&store, &project.root().canonicalize().unwrap(), Some("app")).unwrap();
    assert_eq!(found.manifest, built.manifest);
    assert!(Baseline::latest_for(&store, &project.root(), Some("other")).is_err());
    assert!(Baseline::open(&store, "").is_err() && Baseline::open(&store, "zz").is_err());
}

fn cdylib_and_example() {
    let project = Project::empty();
    project.write("Cargo.toml", &format!("{}[lib]\ncrate-type = [\"cdylib\", \"rlib\"]\n", package("plug")));
    project.write("src/lib.rs", "#[unsafe(no_mangle)]\npub extern \"C\" fn plug(x: u32) -> u32 { x * 3 }\n");
    project.write("examples/host.rs", "fn main() { println!(\"{}\", plug::plug(14)); }");
    let mut built = project.build(&["--lib", "--examples"]);
    built.sort_by_key(|one| one.manifest.artifact.kind);
    let kinds: Vec<_> = built.iter().map(|one| one.manifest.artifact.kind).collect();
    assert_eq!(kinds, [ArtifactKind::Example, ArtifactKind::Cdylib]);
    assert_eq!(built[1].manifest.artifact.file_name, "libplug.so");
    assert_eq!(built[1].manifest.invocation.profile, "dev");
    assert!(built[1].stripped.is_file());
}

fn fresh_build_without_baseline_links_again() {
    let project = Project::workspace();
    let first = project.build_one(&["--release"]);
    let second = project.build_one(&["--release"]);
    assert!(!first.fresh && second.fresh);
    assert_eq!(first.manifest, second.manifest);
    fs::remove_dir_all(project.store().join("baselines")).unwrap();
    fs::remove_dir_all(project.store().join("blobs")).unwrap();
    let third = project.build_one(&["--release"]);
    assert_eq!(third.manifest.link.image, first.manifest.link.image);
    let store = Store::at(project.store()).unwrap();
    Baseline::open(&store, &first.manifest.build_id().to_string()).unwrap().build().unwrap();
}

fn json_messages_reach_the_user() {
    let project = Project::workspace();
    let run = project.try_build(&["--message-format=json"], &[]);
    assert!(run.stdout().contains("\"reason\":\"build-finished\""), "{}", run.stdout());
    project.replace("app/src/main.rs", "fn main", "fn unused() {}\nfn main");
    let run = project.try_build(&["--message-format", "short"], &[]);
    assert!(!run.stdout().contains("\"reason\""), "{}", run.stdout());
    assert!(run.stderr().contains("app/src/main.rs:9:4: warning"), "{}", run.stderr());
}

fn nothing_to_record() {
    let project = Project::workspace();
    let failure = project.try_build(&["-p", "lib"], &[]).failure();
    assert!(failure.contains("NoArtifact"), "{failure}");
}

fn parallel_builds_share_a_store() {
    let (one, two) = (Project::workspace(), Project::workspace());
    two.replace("lib/src/lib.rs", "next_multiple_of(5)", "next_multiple_of(7)");
    let store = one.store();
    let spawn = |project: &Project| {
        crate::tool::command(&store, &project.root(), &["build"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let children = [spawn(&one), spawn(&two)];
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let store = Store::at(store).unwrap();
    let all = Baseline::list(&store).unwrap();
    assert_eq!(all.len(), 2);
    for manifest in all {
        Baseline::open(&store, &manifest.build_id().to_string()).unwrap().build().unwrap();
    }
}
