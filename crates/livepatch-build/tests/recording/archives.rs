//! Export, import, removal.

use crate::project::Project;
use crate::test;
use libtest_mimic::Trial;
use livepatch_build::Error;
use livepatch_build::baseline::Baseline;
use livepatch_build::store::Store;
use std::fs;
use std::path::Path;

pub fn tests() -> Vec<Trial> {
    vec![
        test("archive_goes_to_another_store", archive_goes_to_another_store),
        test("damaged_archives_leave_nothing", damaged_archives_leave_nothing),
        test("hostile_archives_leave_nothing", hostile_archives_leave_nothing),
        test("removal_keeps_what_others_need", removal_keeps_what_others_need),
    ]
}

fn exported(project: &Project) -> (std::path::PathBuf, String) {
    let built = project.build_one(&[]);
    let id = built.manifest.build_id().to_string();
    let file = project.path("baseline.tar.zst");
    Baseline::export(&Store::at(project.store()).unwrap(), &id, &file).unwrap();
    (file, id)
}

fn archive_goes_to_another_store() {
    let project = Project::workspace();
    let (file, id) = exported(&project);
    let folder = tempfile::tempdir().unwrap();
    let other = Store::at(folder.path()).unwrap();
    Baseline::import(&other, &file).unwrap();
    let here = Baseline::open(&Store::at(project.store()).unwrap(), &id).unwrap();
    let there = Baseline::open(&other, &id).unwrap();
    assert_eq!(here.manifest, there.manifest);
    assert_eq!(here.build().unwrap().map, there.build().unwrap().map);
    Baseline::import(&other, &file).unwrap();
    assert_eq!(Baseline::list(&other).unwrap().len(), 1);
}

fn damaged_archives_leave_nothing() {
    let project = Project::workspace();
    let (file, _) = exported(&project);
    let bytes = fs::read(&file).unwrap();
    for cut in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&file, &bytes[..cut]).unwrap();
        assert_refused(&file);
    }
    for at in (0..32).map(|step| step * (bytes.len() / 32)) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        fs::write(&file, &flipped).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path()).unwrap();
        match Baseline::import(&store, &file) {
            Err(_) => assert!(Baseline::list(&store).unwrap().is_empty()),
            // A bit of zstd's frame or of tar's padding that carries nothing: then all digests have been checked.
            Ok(manifest) => {
                Baseline::open(&store, &manifest.build_id().to_string()).unwrap().build().unwrap();
            }
        }
    }
}

fn assert_refused(file: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::at(folder.path()).unwrap();
    assert!(matches!(Baseline::import(&store, file), Err(Error::Damaged { .. })));
    assert!(Baseline::list(&store).unwrap().is_empty());
}

fn hostile_archives_leave_nothing() {
    let project = Project::workspace();
    let (file, _) = exported(&project);
    let mut original = tar::Archive::new(zstd::Decoder::new(fs::File::open(&file).unwrap()).unwrap());
    let mut first = original.entries().unwrap().next().unwrap().unwrap();
    let mut manifest = Vec::new();
    std::io::Read::read_to_end(&mut first, &mut manifest).unwrap();
    let digest = "00".repeat(32);
    for name in ["../../escaped", "/tmp/escaped", "blobs/../../escaped", &format!("blobs/{digest}")] {
        let mut tar = tar::Builder::new(zstd::Encoder::new(fs::File::create(&file).unwrap(), 1).unwrap());
        for (name, bytes) in [("manifest.json", &*manifest), (name, b"x")] {
            let mut header = tar::Header::new_gnu();
            // The checked setter refuses what is tried here.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append(&header, bytes).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
        assert_refused(&file);
    }
}

fn removal_keeps_what_others_need() {
    let project = Project::workspace();
    let first = project.build_one(&[]);
    project.replace("lib/src/lib.rs", "next_multiple_of(5)", "next_multiple_of(7)");
    let second = project.build_one(&[]);
    let store = Store::at(project.store()).unwrap();
    let id = first.manifest.build_id().to_string();
    let removed = Baseline::remove(&store, &id).unwrap();
    assert!(removed.freed > 0);
    assert!(matches!(Baseline::open(&store, &id), Err(Error::NoBaseline { .. })));
    assert!(!store.blobs().contains(&first.manifest.link.image));
    let id = second.manifest.build_id().to_string();
    Baseline::open(&store, &id).unwrap().build().unwrap();
    Baseline::remove(&store, &id).unwrap();
    let left = fs::read_dir(store.root().join("blobs")).unwrap();
    let left: usize = left.map(|folder| fs::read_dir(folder.unwrap().path()).unwrap().count()).sum();
    assert_eq!(left, 0);
}
