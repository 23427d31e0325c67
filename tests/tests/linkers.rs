//! Linkers other than the compiler's own: their maps are read, and patches of what they made are right.

use livepatch_tests::fixture::Fixture;
use livepatch_tests::profile::Profile;
use livepatch_tests::project::Project;
use livepatch_tests::tools::Ran;
use livepatch_tests::tools::exit;
use livepatch_tests::{Failed, scenario};
use std::process::Command;

const SOURCE: &str = r#"
//@ expect: patched
//@ old: [1, 2, 3] {n} Some("b") old of 4: index 7
//@ new: [3, 2, 1] {n} Some("b") new of 5: index 7
mod host;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

static ROUND: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static LENGTH: Cell<usize> = const { Cell::new(4) };
}

trait Say: Send {
    fn say(&self) -> String;
}

struct Word;

impl Say for Word {
    #[inline(never)]
    fn say(&self) -> String {
        format!("old of {}", LENGTH.get()) //-
        format!("new of {}", LENGTH.get() + 1) //+
    }
}

#[inline(never)]
fn list() -> Vec<u8> {
    let mut list = vec![3, 1, 2];
    list.sort(); //-
    list.sort_by(|a, b| b.cmp(a)); //+
    list
}

fn step() {
    let word: Box<dyn Say> = std::hint::black_box(Box::new(Word));
    let map = BTreeMap::from([(1, "a"), (2, "b")]);
    let caught = std::panic::catch_unwind(|| list()[std::hint::black_box(7)]);
    let index = if caught.is_err() { "index 7" } else { "no panic" };
    let round = ROUND.fetch_add(1, Ordering::Relaxed) + 1;
    println!("{:?} {round} {:?} {}: {index}", list(), map.get(&2), word.say());
}

fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    host::serve(step);
}
"#;

/// Builds, patches and rolls back a program under this configuration of cargo.
fn runs_with(name: &str, config: &str) -> Result<(), Failed> {
    let fixture = Fixture::inline(name, SOURCE)?;
    let project = Project::new(&fixture, Profile::Release)?;
    project.file(".cargo/config.toml", config)?;
    scenario::run_in(&project, &fixture)
}

/// Where the C compiler has a file.
fn file(name: &str) -> Result<String, Failed> {
    let ran =
        Ran::of(Command::new("cc").arg(format!("-print-file-name={name}")))?.expect(exit::DONE, "cc")?;
    let path = ran.text.trim().to_owned();
    if path.starts_with('/') { Ok(path) } else { Err(format!("{name} is not installed").into()) }
}

/// A linker that the compiler starts itself needs to be told what the C compiler knows.
fn direct(linker: &str) -> Result<String, Failed> {
    let folder = |path: String| path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
    let (start, libc, libgcc) = (file("Scrt1.o")?, folder(file("libc.so.6")?), folder(file("libgcc.a")?));
    let args = [
        start,
        format!("-L{libc}"),
        format!("-L{libgcc}"),
        "--dynamic-linker=/lib64/ld-linux-x86-64.so.2".into(),
    ];
    let args: Vec<String> = args.iter().map(|arg| format!(", \"-Clink-arg={arg}\"")).collect();
    let flags = format!("[\"-Clinker-flavor=ld\"{}]", args.concat());
    Ok(format!("[target.x86_64-unknown-linux-gnu]\nlinker = \"{linker}\"\nrustflags = {flags}\n"))
}

fn through_the_driver(linker: &str) -> String {
    format!("[target.x86_64-unknown-linux-gnu]\nrustflags = [\"-Clink-arg=-fuse-ld={linker}\"]\n")
}

#[test]
fn mold() -> Result<(), Failed> {
    runs_with("with_mold", &through_the_driver("mold"))
}

#[test]
fn gnu_ld() -> Result<(), Failed> {
    runs_with("with_gnu_ld", &through_the_driver("bfd"))
}

#[test]
fn mold_started_directly() -> Result<(), Failed> {
    runs_with("with_mold_alone", &direct("mold")?)
}

#[test]
fn gnu_ld_started_directly() -> Result<(), Failed> {
    runs_with("with_gnu_ld_alone", &direct("ld.bfd")?)
}

#[test]
fn a_position_dependent_executable() -> Result<(), Failed> {
    runs_with("fixed_place", "[build]\nrustflags = [\"-Crelocation-model=static\"]\n")
}

#[test]
fn without_relro_and_lazily_bound() -> Result<(), Failed> {
    runs_with("lazily_bound", "[build]\nrustflags = [\"-Crelro-level=off\", \"-Clink-arg=-Wl,-z,lazy\"]\n")
}
