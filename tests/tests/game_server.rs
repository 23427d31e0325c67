//! The example game server: a patch dropped into a folder changes its rules between two ticks.

use livepatch_tests::child::Program;
use livepatch_tests::example::Example;
use livepatch_tests::project::command;
use livepatch_tests::{Failed, fail};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ENTITIES: u64 = 5000;
/// Patches and rollbacks in one attempt.
const CYCLES: u64 = 5;
/// Attempts. A busy machine makes ticks late by itself, and those that are held, if the helper has to wait for a core; so one attempt
/// counts in which no tick was late, for whatever reason. A quiet machine needs one.
const ATTEMPTS: u32 = 20;

struct Server {
    program: Program,
    folder: PathBuf,
    patch: PathBuf,
}

type Report = HashMap<String, u64>;

impl Server {
    /// What happened since the last report. No entity may be missing at any time.
    fn report(&mut self) -> Result<Report, Failed> {
        self.program.send("report")?;
        let line = self.program.line()?;
        let pairs = line.split(' ').filter_map(|pair| pair.split_once('='));
        let report: Report =
            pairs.filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect();
        if report["entities"] != ENTITIES || report["whole"] != ENTITIES {
            return fail(format!("entities were lost or made anew: {line}"));
        }
        Ok(report)
    }

    /// Waits until a report is as wanted; adds up the ticks that were late, and all ticks.
    fn until(&mut self, wanted: impl Fn(&Report) -> bool, sum: &mut Punctuality) -> Result<(), Failed> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let report = self.report()?;
            sum.add(&report);
            if wanted(&report) {
                return Ok(());
            }
            if Instant::now() > end {
                return fail(format!("it did not come to what was wanted: {report:?}"));
            }
        }
    }

    /// Drops the patch and takes it out again, several times.
    fn cycles(&mut self) -> Result<Punctuality, Failed> {
        let mut sum = Punctuality::default();
        for _ in 0..CYCLES {
            let before = self.report()?["patches"];
            let (staged, dropped) = (self.folder.join("staged"), self.folder.join("fix.lpatch"));
            fs::copy(&self.patch, &staged)?;
            fs::rename(&staged, &dropped)?;
            self.until(|report| report["patches"] > before, &mut sum)?;
            gone(&dropped, || self.report().map(|report| sum.add(&report)))?;
            // With the new rule nobody has more than the most.
            self.until(|report| report["overfull"] == 0, &mut sum)?;
            let rollback = self.folder.join("rollback");
            fs::write(&rollback, "")?;
            gone(&rollback, || self.report().map(|report| sum.add(&report)))?;
            self.until(|report| report["overfull"] > ENTITIES / 2, &mut sum)?;
        }
        Ok(sum)
    }
}

/// How punctual ticks were; what is beside `late` tells why an attempt failed.
#[derive(Clone, Copy, Debug, Default)]
struct Punctuality {
    ticks: u64,
    late: u64,
    worst_us: u64,
    /// Late, less the time for which the ticking thread was ready and waited for a core.
    held: u64,
    worst_held_us: u64,
}

impl Punctuality {
    fn add(&mut self, report: &Report) {
        self.ticks += report["ticks"];
        self.late += report["late"];
        self.worst_us = self.worst_us.max(report["worst_us"]);
        self.held += report["held"];
        self.worst_held_us = self.worst_held_us.max(report["worst_held_us"]);
    }
}

fn gone(path: &Path, mut meanwhile: impl FnMut() -> Result<(), Failed>) -> Result<(), Failed> {
    let end = Instant::now() + Duration::from_secs(60);
    while path.exists() {
        meanwhile()?;
        if Instant::now() > end {
            return fail(format!("{} is still there", path.display()));
        }
    }
    Ok(())
}

fn start() -> Result<(Example, Server), Failed> {
    let example = Example::copy("gameserver")?;
    let program = example.ship()?;
    let patch = example.patch(
        "scripts.rs",
        "entity.health += amount;",
        "entity.health = (entity.health + amount).min(entity.most_health);",
    )?;
    let folder = example.path().join("patches");
    fs::create_dir(&folder)?;
    let mut command = command(&program);
    command.arg("--patches").arg(&folder).arg("--entities").arg(ENTITIES.to_string());
    Ok((example, Server { program: Program::start(command)?, folder, patch }))
}

#[test]
fn no_tick_is_late_and_no_entity_is_lost() -> Result<(), Failed> {
    let (_example, mut server) = start()?;
    server.until(|report| report["overfull"] > ENTITIES / 2, &mut Punctuality::default())?;
    let mut tried = Vec::new();
    for _ in 0..ATTEMPTS {
        let patched = server.cycles()?;
        if patched.late == 0 {
            return server.program.finish();
        }
        tried.push(patched);
    }
    fail(format!("ticks are late because of the patches: {tried:?}"))
}
