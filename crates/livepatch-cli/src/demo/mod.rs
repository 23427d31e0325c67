//! `livepatch demo`: build a web service, ship its stripped copy, put it under load, fix a bug, patch, roll back.

mod app;
mod http;
mod load;
mod report;
mod server;
mod steps;
mod ticks;

use crate::exit::{Exit, Failure};
use crate::inspect::{self, PatchFile};
use crate::output::{Outcome, bytes as bytes_text};
use load::{Load, Phase};
use report::Report;
use server::Server;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use ticks::Ticks;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Work in this folder and keep it (default: a temporary one).
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Worker threads of the service.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,
    /// Connections that send requests all the time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// How often the patch is applied and rolled back.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    cycles: u32,
}

/// Requests that have to be answered by one version of the code before the next step.
const REQUESTS_PER_PHASE: u64 = 500;
/// Events that the stream has to deliver while patched and after the end.
const EVENTS: u64 = 2;
/// Cycles between two looks at the service's memory.
const SAMPLED: u32 = 100;
/// Longest wait for requests or events.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs the demo.
///
/// # Errors
/// [`Exit::Error`] if the service cannot be built or started; the failure of the step that failed otherwise.
pub fn run(args: &DemoArgs) -> Result<Outcome, Failure> {
    let temporary;
    let dir = match &args.dir {
        Some(dir) => dir.as_path(),
        None => {
            temporary = tempfile::tempdir().map_err(|error| io("create a temporary folder", &error))?;
            temporary.path()
        }
    };
    let dir = std::path::absolute(dir).map_err(|error| io("find the work folder", &error))?;
    let begin = Instant::now();
    say("building the service with `cargo livepatch build --release`");
    app::write(&dir).map_err(|error| io("write the service's sources", &error))?;
    let shipped = steps::build(&dir)?;
    let build_s = begin.elapsed().as_secs_f64();

    let server =
        Server::start(&shipped, args.workers.into()).map_err(|error| io("start the service", &error))?;
    say(&format!("pid {} serves {} with {} worker threads", server.pid(), server.address, args.workers));
    let ticks = Ticks::start(server.address).map_err(|error| io("open the event stream", &error))?;
    let load = Load::start(server.address, args.connections.into(), app::question());

    say(&format!("fixing {}: `{}` becomes `{}`", app::FILE, app::BUG, app::FIX));
    app::fix(&dir).map_err(|error| io("edit the service's sources", &error))?;
    let begin = Instant::now();
    let file = steps::create(&dir)?;
    let create_s = begin.elapsed().as_secs_f64();
    let patch = inspect::load(&file)?;
    let mut run = Run { args, server, load, ticks, report: Report::new(&patch, build_s, create_s) };
    run.cycles(&patch)?;
    let report = run.finish();
    let exit = if report.problems.is_empty() { Exit::Done } else { Exit::Error };
    Ok(Outcome::done(&report, report.text())?.exit(exit))
}

/// A demo whose service runs under load.
struct Run<'a> {
    args: &'a DemoArgs,
    server: Server,
    load: Load,
    ticks: Ticks,
    report: Report,
}

impl Run<'_> {
    fn cycles(&mut self, patch: &PatchFile) -> Result<(), Failure> {
        self.settle(Phase::Old, "before the patch");
        self.report.responses.before = self.ask()?;
        self.report.resident_before = self.server.resident();
        say(&format!("applying and rolling back {}", times(self.args.cycles)));
        for cycle in 1..=self.args.cycles {
            self.load.enter(Phase::Between);
            let applied = steps::apply(self.server.pid(), patch)?;
            self.load.enter(Phase::New);
            self.report.note_apply(&applied);
            self.settle(Phase::New, "with the patch");
            self.report.responses.after = self.ask()?;
            self.report.resident_after = self.server.resident();

            self.load.enter(Phase::Between);
            let back = steps::rollback(self.server.pid())?;
            self.load.enter(Phase::Old);
            self.report.note_rollback(&back);
            self.settle(Phase::Old, "after the rollback");
            self.report.responses.rolled_back = self.ask()?;
            self.sample(cycle);
        }
        Ok(())
    }

    /// Notes the service's memory every now and then.
    fn sample(&mut self, cycle: u32) {
        if cycle.is_multiple_of(SAMPLED)
            && let Some(bytes) = self.server.resident()
        {
            self.report.resident_samples.push((cycle, bytes));
            say(&format!(
                "{cycle} cycles, {} resident, {} requests failed",
                bytes_text(bytes),
                self.load.failed()
            ));
        }
    }

    /// Lets a number of requests through. With many cycles a few of each will do.
    fn settle(&mut self, phase: Phase, when: &str) {
        let requests = if self.args.cycles > 10 { REQUESTS_PER_PHASE / 10 } else { REQUESTS_PER_PHASE };
        if !self.load.wait_for(requests, LIMIT) {
            self.report.problem(format!("the service answered fewer than {requests} requests {when}"));
        }
        if phase == Phase::New && self.args.cycles <= 10 && !self.ticks.wait_for(EVENTS, LIMIT) {
            self.report.problem(format!("the event stream stood still {when}"));
        }
    }

    /// One request by hand, on a connection of its own, for the report.
    fn ask(&self) -> Result<String, Failure> {
        let question = app::question();
        let response = http::Connection::open(self.server.address)
            .and_then(|mut connection| connection.post(question.path, question.json))
            .map_err(|error| io("ask the service", &error))?;
        Ok(String::from_utf8_lossy(&response.body).into_owned())
    }

    /// Stops the load and judges.
    fn finish(mut self) -> Report {
        if !self.ticks.wait_for(EVENTS, LIMIT) {
            self.report.problem("the event stream stood still at the end".into());
        }
        let (tally, trouble) = self.load.stop();
        if let Some(trouble) = trouble {
            self.report.problem(format!("first failed request: {trouble}"));
        }
        let orders = tally.served() + u64::from(self.args.cycles) * 2 + 1;
        self.report.judge_counter(orders, counter(&self.server));
        self.report.judge_requests(tally);
        self.report.judge_stream(self.ticks.stop());
        if let Some(how) = self.server.ended() {
            self.report.problem(format!("the service ended: {how}"));
        }
        let question = app::question();
        self.report.judge_responses(question.old, question.new);
        self.report
    }
}

/// The number of orders that the service itself counted.
fn counter(server: &Server) -> Option<u64> {
    let response = http::Connection::open(server.address).ok()?.get("/stats").ok()?;
    let stats: serde_json::Value = serde_json::from_slice(&response.body).ok()?;
    stats.get("requests")?.as_u64()
}

fn times(number: u32) -> String {
    if number == 1 { "once".into() } else { format!("{number} times") }
}

fn say(what: &str) {
    eprintln!("==> {what}");
}

fn io(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Error, format!("cannot {what}: {error}"))
}
