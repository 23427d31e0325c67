//! The whole life of a case: old lines, apply, new lines, rollback, old lines.

use crate::child::Program;
use crate::fixture::{Expect, Fixture, Side};
use crate::profile::Profile;
use crate::project::{self, Created, Project};
use crate::tools::{self, Ran, exit};
use crate::{Failed, fail};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::Path;

/// Rounds before the patch, with it, and after the rollback.
const ROUNDS: u32 = 3;

/// Runs a case in one profile.
///
/// # Errors
/// If anything is not as the case says.
pub fn run(fixture: &Fixture, profile: Profile) -> Result<(), Failed> {
    run_in(&Project::new(fixture, profile)?, fixture)
}

/// Runs a case in a project of its own making.
///
/// # Errors
/// If anything is not as the case says.
pub fn run_in(project: &Project, fixture: &Fixture) -> Result<(), Failed> {
    let program = project.ship()?;
    let mut live =
        Live { fixture, program: Program::start(project::command(&program))?, round: 0, patched: 0 };
    live.rounds(Side::Old)?;
    project.write(Side::New)?;
    let created = project.create("fix")?;
    match (&fixture.expect, created.ran.code) {
        (Expect::Patched | Expect::PatchedOrRefused, exit::DONE) => {
            functions(fixture, &created.ran.json)?;
            notes(fixture, &created.ran.json, "findings")?;
            let inspected = tools::livepatch(&["inspect".as_ref(), created.file.as_os_str()])?;
            notes(fixture, &inspected.expect(exit::DONE, "inspect")?.json, "notes")?;
            notes(fixture, &live.apply(&created.file, exit::DONE)?, "notes")?;
            live.applied(false)?;
        }
        (Expect::Busy, exit::DONE) => {
            let ran = live.apply(&created.file, exit::BUSY)?;
            live.busy(&ran)?;
        }
        (Expect::Nothing, exit::NOTHING) => {}
        (Expect::Refused(code), exit::REFUSED) => finding(&created, code.as_deref())?,
        (Expect::PatchedOrRefused, exit::REFUSED) => finding(&created, None)?,
        (expect, code) => {
            let Created { ran, .. } = created;
            return fail(format!(
                "create: exit {code} where {expect:?} was expected\n{}\n{}",
                ran.json, ran.text
            ));
        }
    }
    live.program.finish()
}

/// A running case.
struct Live<'a> {
    fixture: &'a Fixture,
    program: Program,
    round: u32,
    patched: u32,
}

impl Live<'_> {
    fn rounds(&mut self, side: Side) -> Result<(), Failed> {
        for _ in 0..ROUNDS {
            self.round += 1;
            self.patched += u32::from(side == Side::New);
            let lines = match side {
                Side::Old => &self.fixture.old,
                Side::New => &self.fixture.new,
            };
            let fill = |line: &String| {
                line.replace("{n}", &self.round.to_string()).replace("{m}", &self.patched.to_string())
            };
            let expected: Vec<String> = lines.iter().map(fill).collect();
            let found = self.program.round()?;
            if found != expected {
                let round = self.round;
                return fail(format!(
                    "round {round}, {side:?} code: expected {expected:#?}, found {found:#?}"
                ));
            }
        }
        Ok(())
    }

    /// The new lines, what the tools say about the process, and back.
    fn applied(&mut self, may_be_busy: bool) -> Result<(), Failed> {
        self.rounds(Side::New)?;
        let pid = self.program.pid().to_string();
        let status = tools::livepatch(&["status", &pid])?.expect(exit::DONE, "status")?;
        if status.json["patches"][0]["state"] != "applied" {
            return fail(format!("status does not say that the patch is applied: {}", status.json));
        }
        let mut args = vec!["rollback", &pid];
        args.extend(self.fixture.apply.iter().map(String::as_str));
        let ran = tools::livepatch(&args)?;
        if may_be_busy && ran.code == exit::BUSY {
            return self.rounds(Side::New);
        }
        ran.expect(exit::DONE, "rollback")?;
        self.rounds(Side::Old)
    }

    /// Somebody is named, and nothing changed.
    fn busy(&mut self, ran: &Value) -> Result<(), Failed> {
        if ran["inside"].as_array().is_none_or(Vec::is_empty) {
            return fail(format!("nobody is named as inside: {ran}"));
        }
        self.rounds(Side::Old)
    }

    fn apply(&self, file: &Path, code: i32) -> Result<Value, Failed> {
        let checked = self.run("check", file)?.expect(code, "check")?;
        if code == exit::DONE {
            notes(self.fixture, &checked.json, "notes")?;
        }
        Ok(self.run("apply", file)?.expect(code, "apply")?.json)
    }

    /// `livepatch VERB PID FILE` with the case's arguments.
    fn run(&self, verb: &str, file: &Path) -> Result<Ran, Failed> {
        let pid = self.program.pid().to_string();
        let mut args = vec![OsStr::new(verb), OsStr::new(&pid), file.as_os_str()];
        args.extend(self.fixture.apply.iter().map(OsStr::new));
        tools::livepatch(&args)
    }
}

fn functions(fixture: &Fixture, report: &Value) -> Result<(), Failed> {
    let Some(expected) = &fixture.functions else { return Ok(()) };
    let list = report["functions"].as_array().ok_or("the report of create has no functions")?;
    let redirected = list.iter().filter(|function| function["reason"] != "new");
    let mut found: Vec<&str> = redirected.filter_map(|function| function["path"].as_str()).collect();
    found.sort_unstable();
    if found == *expected {
        Ok(())
    } else {
        fail(format!("functions in the patch: expected {expected:?}, found {found:?}"))
    }
}

/// What a report says besides: findings are refusals, too, and a library has a key of its own.
fn notes(fixture: &Fixture, report: &Value, key: &str) -> Result<(), Failed> {
    let Some(expected) = &fixture.notes else { return Ok(()) };
    let list = report[key].as_array().ok_or_else(|| format!("a report without {key}: {report}"))?;
    let text = |note: &Value| {
        format!("{} {}", note["code"].as_str().unwrap_or_default(), note["item"].as_str().unwrap_or_default())
    };
    let mut found: Vec<String> = list.iter().map(text).filter(|note| !note.starts_with("LP0110")).collect();
    found.sort();
    if found != *expected {
        return fail(format!("{key}: expected {expected:#?}, found {found:#?}"));
    }
    if report["only_initialises"] != fixture.only_initialises {
        return fail(format!("`only_initialises` is {} in {report}", report["only_initialises"]));
    }
    Ok(())
}

/// A refusal has to say what and where.
fn finding(created: &Created, code: Option<&str>) -> Result<(), Failed> {
    let findings = created.ran.json["findings"].as_array().ok_or("a refusal without findings")?;
    if findings.is_empty() || !findings.iter().all(|finding| finding["code"].is_string()) {
        return fail(format!("a refusal without findings that have codes: {}", created.ran.json));
    }
    match code {
        Some(code) if !findings.iter().any(|finding| finding["code"] == code) => {
            fail(format!("no finding {code}: {findings:#?}"))
        }
        _ => Ok(()),
    }
}
