//! One patch after the other in one process.

mod addresses;
mod bodies;
mod busy;
mod closures;
mod kept;
mod objects;
mod pointers;
mod taken;
mod variables;

use livepatch_tests::child::Program;
use livepatch_tests::fixture::{Fixture, Side};
use livepatch_tests::profile::Profile;
use livepatch_tests::project::{Project, command};
use livepatch_tests::tools::{self, exit};
use livepatch_tests::{Failed, fail};
use std::path::{Path, PathBuf};

const SOURCE: &str = r#"
mod host;

use std::sync::atomic::{AtomicU64, Ordering};

static OLD: AtomicU64 = AtomicU64::new(0);
static NEW: AtomicU64 = AtomicU64::new(100); //+

#[inline(never)]
fn word() -> String {
    let old = OLD.fetch_add(1, Ordering::Relaxed) + 1;
    format!("old {old}") //-
    let new = NEW.fetch_add(1, Ordering::Relaxed) + 1; //+
    format!("FIRST {old} {new}") //+
}

fn step() {
    println!("{}", word());
}

fn main() {
    host::serve(step);
}
"#;

struct Case {
    project: Project,
    program: Program,
    new_source: String,
}

impl Case {
    fn start() -> Result<Self, Failed> {
        Self::of(SOURCE)
    }

    fn of(source: &str) -> Result<Self, Failed> {
        let fixture = Fixture::inline("several", source)?;
        let new_source = fixture.sources(Side::New).map(|(_, text)| text).collect();
        let project = Project::new(&fixture, Profile::Release)?;
        let program = Program::start(command(&project.ship()?))?;
        Ok(Self { project, program, new_source })
    }

    /// A patch whose lines begin with `word`.
    fn create(&self, word: &str) -> Result<PathBuf, Failed> {
        self.project.file("src/main.rs", &self.new_source.replace("FIRST", word))?;
        let created = self.project.create(word)?;
        created.ran.expect(exit::DONE, "create")?;
        Ok(created.file)
    }

    fn apply(&self, file: &Path) -> Result<serde_json::Value, Failed> {
        let pid = self.program.pid().to_string();
        let ran = tools::livepatch(&["apply".as_ref(), pid.as_ref(), file.as_os_str()])?;
        Ok(ran.expect(exit::DONE, "apply")?.json)
    }

    fn rollback(&self) -> Result<(), Failed> {
        tools::livepatch(&["rollback", &self.program.pid().to_string()])?
            .expect(exit::DONE, "rollback")
            .map(drop)
    }

    fn prints(&mut self, line: &str) -> Result<(), Failed> {
        let lines = self.program.round()?;
        if lines == [line] { Ok(()) } else { fail(format!("expected `{line}`, found {lines:?}")) }
    }

    /// A patch that has these words for those of the source.
    fn with(&self, words: &[(&str, &str)]) -> Result<PathBuf, Failed> {
        let replaced =
            words.iter().fold(self.new_source.clone(), |source, (word, by)| source.replace(word, by));
        self.project.file("src/main.rs", &replaced)?;
        let name: Vec<String> =
            words.iter().map(|(_, by)| by.chars().filter(|c| c.is_alphanumeric()).collect()).collect();
        let created = self.project.create(&name.join("-"))?;
        created.ran.expect(exit::DONE, "create")?;
        Ok(created.file)
    }

    fn is_refused(&self, file: &Path, reason: &str) -> Result<(), Failed> {
        let pid = self.program.pid().to_string();
        let ran = tools::livepatch(&["apply".as_ref(), pid.as_ref(), file.as_os_str()])?;
        let json = ran.expect(exit::REFUSED, "apply")?.json.to_string();
        if json.contains(reason) { Ok(()) } else { fail(format!("`{reason}` is not in {json}")) }
    }
}

#[test]
fn a_newer_patch_replaces_an_older_one_and_keeps_its_statics() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.prints("old 1")?;
    let first = case.create("FIRST")?;
    case.apply(&first)?;
    case.prints("FIRST 2 101")?;
    let second = case.create("SECOND")?;
    let report = case.apply(&second)?;
    assert_eq!(report["replaced"].as_array().map(Vec::len), Some(1), "{report}");
    case.prints("SECOND 3 102")?;
    let status =
        tools::livepatch(&["status", &case.program.pid().to_string()])?.expect(exit::DONE, "status")?;
    let states: Vec<_> =
        status.json["patches"].as_array().ok_or("no patches")?.iter().map(|p| &p["state"]).collect();
    assert_eq!(states, ["replaced", "applied"]);
    case.rollback()?;
    case.prints("old 4")?;
    case.program.finish()
}

#[test]
fn two_patches_of_one_name_are_told_apart() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let first = case.create("ONE")?;
    let saved = first.with_extension("saved");
    std::fs::rename(&first, &saved)?;
    case.apply(&saved)?;
    case.prints("ONE 1 101")?;
    let second = case.create("TWO")?;
    std::fs::rename(&second, &first)?;
    case.apply(&first)?;
    case.prints("TWO 2 102")?;
    case.program.finish()
}

#[test]
fn hundred_times_in_and_out() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let patch = case.create("NEW")?;
    for cycle in 0..100u64 {
        case.apply(&patch)?;
        let word = case.program.round()?;
        assert!(word[0].starts_with("NEW "), "cycle {cycle}: {word:?}");
        case.rollback()?;
        case.prints(&format!("old {}", 2 * cycle + 2))?;
    }
    case.program.finish()
}
