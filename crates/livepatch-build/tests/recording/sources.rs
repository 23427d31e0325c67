//! Sources of a baseline and of a rebuild.

use crate::project::Project;
use crate::test;
use crate::tool::{self, Rebuilt};
use libtest_mimic::Trial;
use std::fs;

pub fn tests() -> Vec<Trial> {
    vec![
        test("sources_are_recorded", sources_are_recorded),
        test("sources_tell_what_changed", sources_tell_what_changed),
        test("sources_at_another_place", sources_at_another_place),
        test("baseline_without_sources", baseline_without_sources),
    ]
}

fn sources_are_recorded() {
    let project = Project::workspace();
    let built = project.build_one(&["--release"]);
    let paths: Vec<_> = built.manifest.sources.iter().map(|source| source.path.as_str()).collect();
    for path in [
        "Cargo.toml",
        "app/Cargo.toml",
        "app/src/main.rs",
        "lib/Cargo.toml",
        "lib/build.rs",
        "lib/src/lib.rs",
    ] {
        assert!(paths.contains(&path), "{path} in {paths:?}");
    }
    assert!(paths.iter().any(|path| path.starts_with("<target>/") && path.ends_with(".rs")), "{paths:?}");
    assert!(built.manifest.surroundings.is_some());
}

fn sources_tell_what_changed() {
    let project = Project::workspace();
    let built = project.build_one(&["--release"]);
    assert_eq!(project.rebuild(&built).change, "nothing");
    let original = fs::read_to_string(project.path("app/src/main.rs")).unwrap();
    project.write("app/src/main.rs", &format!("// A line more.\n\n{original}"));
    assert_eq!(project.rebuild(&built).change, "nothing");
    project.write("app/src/main.rs", &original.replace(".sum()", ".sum::<u64>() + 1"));
    assert_eq!(project.rebuild(&built).change, "price");
    project.write("app/src/main.rs", &format!("{original}\npub struct Added;\n"));
    assert_eq!(project.rebuild(&built).change, "Added");
    project.write("app/src/main.rs", &format!("{original}\nmacro_rules! added {{ () => {{}} }}\n"));
    let change = project.rebuild(&built).change;
    assert!(change.starts_with("everything: app/src/main.rs:"), "{change}");
    project.write("app/src/main.rs", &original);
    project.replace("app/Cargo.toml", "[dependencies]", "# A comment.\n[dependencies]");
    project.write("app/src/main.rs", &original.replace(".sum()", ".sum::<u64>() + 1"));
    let change = project.rebuild(&built).change;
    assert!(change.starts_with("everything: app/Cargo.toml"), "{change}");
}

fn sources_at_another_place() {
    let project = Project::workspace();
    let built = project.build_one(&["--release"]);
    project.replace("app/src/main.rs", ".sum()", ".sum::<u64>() + 1");
    let copy = project.copy_source("another place");
    let id = built.manifest.build_id().to_string();
    let rebuilt: Rebuilt = tool::start(tool::command(&project.store(), &copy, &["rebuild", &id])).answer();
    assert_eq!(rebuilt.change, "price");
}

fn baseline_without_sources() {
    let project = Project::workspace();
    let built = project.build_one(&[]);
    let path = project.store().join(format!("baselines/{}.json", built.manifest.build_id()));
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest.as_object_mut().unwrap().retain(|key, _| key != "sources" && key != "surroundings");
    fs::write(&path, manifest.to_string()).unwrap();
    assert_eq!(project.rebuild(&built).change, "everything: the baseline has no record of its sources");
}
