//! Cargo projects in temporary folders whose path holds blanks.

use crate::tool::{self, Built, Rebuilt, Run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A workspace and a store of its own.
pub struct Project {
    folder: TempDir,
}

impl Project {
    /// A workspace without packages.
    pub fn empty() -> Self {
        let folder = tempfile::Builder::new().prefix("live patch ").tempdir().unwrap();
        let project = Self { folder };
        fs::create_dir(project.root()).unwrap();
        project
    }

    /// A binary that uses a library of the same workspace, which has a build script whose generated code can panic.
    pub fn workspace() -> Self {
        let project = Self::empty();
        project.write("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"app\", \"lib\"]\n");
        project.write(
            "app/Cargo.toml",
            &format!("{}[dependencies]\nlib = {{ path = \"../lib\" }}\n", package("app")),
        );
        project.write("app/src/main.rs", APP);
        project.write("lib/Cargo.toml", &package("lib"));
        project.write("lib/build.rs", BUILD_SCRIPT);
        project.write("lib/src/lib.rs", LIB);
        project
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("work space")
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn replace(&self, path: &str, old: &str, new: &str) {
        let text = fs::read_to_string(self.path(path)).unwrap();
        assert!(text.contains(old), "{path} holds `{old}`");
        self.write(path, &text.replace(old, new));
    }

    /// An executable shell script.
    pub fn script(&self, path: &str, body: &str) -> PathBuf {
        // A process of its own makes the file: the kernel executes nothing that a child of another test may have open for writing.
        let text = format!("{path}.text");
        self.write(&text, &format!("#!/bin/sh\n{body}\n"));
        let (text, script) = (self.path(&text), self.path(path));
        let copied = Command::new("install").args(["-m", "755"]).args([&text, &script]).status().unwrap();
        assert!(copied.success());
        script
    }

    /// `cargo livepatch build` with variables.
    pub fn try_build(&self, args: &[&str], env: &[(&str, &str)]) -> Run {
        let args: Vec<_> = ["build"].iter().chain(args).copied().collect();
        let mut command = tool::command(&self.store(), &self.root(), &args);
        command.envs(env.iter().copied());
        tool::start(command)
    }

    pub fn build(&self, args: &[&str]) -> Vec<Built> {
        self.try_build(args, &[]).answer()
    }

    /// The one artifact of `cargo livepatch build`.
    pub fn build_one(&self, args: &[&str]) -> Built {
        let mut built = self.build(args);
        assert_eq!(built.len(), 1, "{built:?}");
        built.remove(0)
    }

    pub fn try_rebuild(&self, id: &str) -> Run {
        tool::start(tool::command(&self.store(), &self.root(), &["rebuild", id]))
    }

    pub fn rebuild(&self, built: &Built) -> Rebuilt {
        self.try_rebuild(&built.manifest.build_id().to_string()).answer()
    }

    /// Plain cargo with the same debug information, in a target folder of its own.
    pub fn plain_cargo(&self, args: &[&str]) -> PathBuf {
        let target = self.folder.path().join("plain");
        let status = Command::new("cargo")
            .args(["build", "--release", "--quiet", "--target-dir"])
            .arg(&target)
            .args(args)
            .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
            .env_remove("RUSTFLAGS")
            .current_dir(self.root())
            .status()
            .unwrap();
        assert!(status.success());
        target.join("release")
    }

    /// The same source at another place, with the same store.
    pub fn copy_source(&self, name: &str) -> PathBuf {
        let copy = self.folder.path().join(name);
        copy_tree(&self.root(), &copy);
        copy
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() == "target" {
            continue;
        }
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

pub fn package(name: &str) -> String {
    format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n")
}

const APP: &str = r#"
use std::collections::BTreeMap;

#[inline(never)]
fn price(order: &BTreeMap<String, u64>) -> u64 {
    order.values().map(|cents| lib::rounded(*cents)).sum()
}

fn main() {
    let order: BTreeMap<_, _> = std::env::args().map(|arg| (arg.clone(), arg.len() as u64)).collect();
    println!("{} {}", price(&order), lib::generated(order.len()));
}
"#;

const BUILD_SCRIPT: &str = r#"
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap()).join("generated.rs");
    let code = "pub fn generated(index: usize) -> u32 {
        const TABLE: [u32; 4] = [2, 3, 5, 7];
        if index > 40 { panic!(\"no such number\"); }
        TABLE[index & 3]
    }";
    std::fs::write(out, code).unwrap();
}
"#;

const LIB: &str = r#"
include!(concat!(env!("OUT_DIR"), "/generated.rs"));

#[inline(never)]
pub fn rounded(cents: u64) -> u64 {
    cents.next_multiple_of(5)
}
"#;
