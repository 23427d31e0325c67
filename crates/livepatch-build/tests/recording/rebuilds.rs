//! Rebuilding as the baseline was built.

use crate::images::{section, symbols};
use crate::project::Project;
use crate::test;
use crate::tool::{self, Rebuilt};
use libtest_mimic::Trial;
use livepatch_build::store::Store;
use livepatch_patch::Digest;
use object::read::archive::ArchiveFile;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

pub fn tests() -> Vec<Trial> {
    vec![
        test("unchanged_source_gives_the_same_image_release", || {
            unchanged_source_gives_the_same_image("release")
        }),
        test("unchanged_source_gives_the_same_image_dev", || unchanged_source_gives_the_same_image("dev")),
        test("change_differs_in_its_crate_only", change_differs_in_its_crate_only),
        test("another_place_gives_the_same_code", another_place_gives_the_same_code),
        test("another_compiler_is_refused", another_compiler_is_refused),
        test("artifact_that_is_gone", artifact_that_is_gone),
    ]
}

/// Everything that is loaded, panic locations of generated code among it.
fn assert_same_image(one: &Path, two: &Path) {
    assert!(symbols(one) == symbols(two), "the same symbols at the same addresses");
    for name in [".text", ".rodata", ".data.rel.ro", ".eh_frame", ".gcc_except_table"] {
        assert!(section(one, name) == section(two, name), "{name}");
    }
}

fn unchanged_source_gives_the_same_image(profile: &str) {
    let project = Project::workspace();
    let built = project.build_one(&["--profile", profile]);
    let before = fs::metadata(&built.output).unwrap().modified().unwrap();
    let rodata = section(&built.output, ".rodata");
    let place = format!("{}/target/", project.root().display());
    assert!(
        rodata.windows(place.len()).any(|w| w == place.as_bytes()),
        "the path of generated code is in the program"
    );
    let run = project.try_rebuild(&built.manifest.build_id().to_string());
    assert!(
        !run.stderr().contains("Compiling"),
        "starts from what the baseline's build left: {}",
        run.stderr()
    );
    assert_eq!(run.answer::<Rebuilt>().manifest, built.manifest);
    // The same without that start, which needs cargo's lock file.
    fs::remove_dir_all(project.path("target/livepatch")).unwrap();
    let folder = if profile == "dev" { "debug" } else { profile };
    fs::remove_file(project.path(&format!("target/{folder}/.cargo-lock"))).unwrap();
    let run = project.try_rebuild(&built.manifest.build_id().to_string());
    assert!(run.stderr().contains("Compiling lib"), "{}", run.stderr());
    let rebuilt: Rebuilt = run.answer();
    assert_same_image(&built.output, &rebuilt.image);
    assert!(rebuilt.sections > 100);
    assert_eq!(
        fs::metadata(&built.output).unwrap().modified().unwrap(),
        before,
        "the shipped output is untouched"
    );
    let again = project.rebuild(&built);
    assert_eq!(again.manifest.link, rebuilt.manifest.link);
}

fn change_differs_in_its_crate_only() {
    let project = Project::workspace();
    let built = project.build_one(&["--release"]);
    project.rebuild(&built);
    let store = Store::at(project.store()).unwrap();
    project.replace("app/src/main.rs", ".sum()", ".sum::<u64>() + 1");
    let run = project.try_rebuild(&built.manifest.build_id().to_string());
    let changed: Rebuilt = run.answer();
    assert!(
        run.stderr().contains("Compiling app") && !run.stderr().contains("Compiling lib"),
        "{}",
        run.stderr()
    );
    let digests = |inputs: &mut dyn Iterator<Item = String>| inputs.collect::<BTreeSet<_>>();
    let old = digests(&mut built.manifest.link.inputs.iter().map(|i| i.blob.digest.to_string()));
    let new = digests(&mut changed.inputs.iter().map(|i| i.1.clone()));
    assert!(new.difference(&old).count() >= 1);
    // The metadata of a library with generated code names the folder; its objects do not.
    let own = |path: &str| path.contains("/app-") || path.ends_with("symbols.o");
    for (path, _, blob) in changed.inputs.iter().filter(|i| !old.contains(&i.1) && !own(&i.0)) {
        let before =
            built.manifest.link.inputs.iter().find(|i| file_name(&i.path) == file_name(path)).unwrap();
        let before = store.blobs().require(&before.blob).unwrap();
        assert_eq!(archived_objects(blob), archived_objects(&before), "{path}");
    }
    for (path, digest, blob) in &changed.inputs {
        assert_eq!(&Digest::of(&fs::read(blob).unwrap()).to_string(), digest, "{path}");
    }
    assert_ne!(changed.manifest.build_id(), built.manifest.build_id());
    // Fresh: the last candidate again.
    let run = project.try_rebuild(&built.manifest.build_id().to_string());
    assert!(!run.stderr().contains("Compiling"), "{}", run.stderr());
    assert_eq!(run.answer::<Rebuilt>().manifest.link, changed.manifest.link);
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

/// Names and digests of the objects in an archive.
fn archived_objects(archive: &Path) -> Vec<(String, Digest)> {
    let bytes = fs::read(archive).unwrap();
    let archive = ArchiveFile::parse(&*bytes).unwrap();
    let members = archive.members().map(|member| member.unwrap());
    let named = members
        .map(|m| (String::from_utf8(m.name().to_vec()).unwrap(), Digest::of(m.data(&*bytes).unwrap())));
    let objects: Vec<_> = named.filter(|(name, _)| name.ends_with(".o")).collect();
    assert!(!objects.is_empty());
    objects
}

fn another_place_gives_the_same_code() {
    let project = Project::workspace();
    let built = project.build_one(&["--release"]);
    let copy = project.copy_source("a longer name of a place");
    let id = built.manifest.build_id().to_string();
    let rebuilt: Rebuilt = tool::start(tool::command(&project.store(), &copy, &["rebuild", &id])).answer();
    assert_same_image(&built.output, &rebuilt.image);
    assert!(rebuilt.image.starts_with(copy.join("target")) || rebuilt.image.starts_with(project.store()));
}

fn another_compiler_is_refused() {
    let project = Project::workspace();
    let built = project.build_one(&[]);
    let path = project.store().join(format!("baselines/{}.json", built.manifest.build_id()));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"rustc\": \"rustc 1.", "\"rustc\": \"rustc 0.")).unwrap();
    let failure = project.try_rebuild(&built.manifest.build_id().to_string()).failure();
    assert!(failure.contains("Toolchain"), "{failure}");
}

fn artifact_that_is_gone() {
    let project = Project::workspace();
    let built = project.build_one(&[]);
    project.replace(
        "app/Cargo.toml",
        "[dependencies]",
        "[[bin]]\nname = \"other\"\npath = \"src/main.rs\"\n[dependencies]",
    );
    let failure = project.try_rebuild(&built.manifest.build_id().to_string()).failure();
    assert!(failure.contains("ArtifactGone"), "{failure}");
}
