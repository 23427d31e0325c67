//! How long a transition takes and how long it holds threads, by the number of threads: the drain protocol, and all threads
//! stopped at once. Writes `docs/bench/transition*` and a section of `docs/performance.md`.
//!
//! `LIVEPATCH_BENCH_THREADS` (default `10,100,1000,4000`) and `LIVEPATCH_BENCH_PAIRS` (default 20) make it shorter.

use livepatch_tests::child::Program;
use livepatch_tests::measure::plot::{Plot, Series};
use livepatch_tests::measure::target::Target;
use livepatch_tests::measure::{Spread, machine, setting, table, write, write_section};
use livepatch_tests::{Failed, fail};
use serde_json::Value;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// One method on one program.
struct Setup {
    name: &'static str,
    policy: &'static str,
    /// What a call does, and the microseconds between two calls.
    calls: [&'static str; 2],
    /// `watch`, or `quiet` without the probe that spins and takes a core for itself.
    probe: &'static str,
}

const SETUPS: [Setup; 6] = [
    Setup { name: "drain, calls without pause", policy: "quiescent", calls: ["wait", "0"], probe: "watch" },
    Setup {
        name: "drain, calls without pause that compute",
        policy: "quiescent",
        calls: ["spin", "0"],
        probe: "watch",
    },
    Setup { name: "drain, calls with pauses", policy: "quiescent", calls: ["wait", "9000"], probe: "watch" },
    Setup { name: "drain, hardly any calls", policy: "quiescent", calls: ["wait", "100000"], probe: "watch" },
    Setup {
        name: "drain, hardly any calls, nobody spins",
        policy: "quiescent",
        calls: ["wait", "100000"],
        probe: "quiet",
    },
    Setup {
        name: "all stopped at once, calls with pauses",
        policy: "snapshot",
        calls: ["wait", "9000"],
        probe: "watch",
    },
];

/// Columns of a measurement after the setup, the threads and the operation.
const FIGURES: [&str; 12] = [
    "total_ms",
    "transition_ms",
    "world_stopped_us",
    "parked_us",
    "worker_us",
    "retries",
    "spinning_us",
    "spinning_held_us",
    "sleeping_us",
    "sleeping_held_us",
    "calling_us",
    "calling_held_us",
];

/// So many of them the tool reports.
const OF_THE_TOOL: usize = 6;

struct Sample {
    setup: usize,
    threads: u64,
    /// `apply`, `rollback`, or `none`: as long as the `apply` before, without the tool.
    operation: &'static str,
    figures: [f64; FIGURES.len()],
}

/// The probes' largest gaps since the last call, in microseconds; the version of the function that ran.
fn gaps(program: &mut Program) -> Result<(u64, [f64; 6]), Failed> {
    let line = program.round()?.concat();
    let numbers = line.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    let [versions, _calls, gaps @ ..] = numbers.as_slice() else { return fail("a short line") };
    let gaps: [u64; 6] = gaps.try_into()?;
    Ok((versions, gaps.map(|nanos| nanos as f64 / 1e3))).map(|(versions, gaps)| (*versions, gaps))
}

fn sample(report: &Value, gaps: [f64; 6]) -> Result<[f64; FIGURES.len()], Failed> {
    let mut figures = [0.0; FIGURES.len()];
    for (figure, name) in figures.iter_mut().zip(FIGURES).take(OF_THE_TOOL) {
        let value = report.get(name).unwrap_or(&report["stages"][name]);
        *figure = value.as_f64().ok_or_else(|| format!("no {name} in {report}"))?;
    }
    figures[OF_THE_TOOL..].copy_from_slice(&gaps);
    Ok(figures)
}

/// The program has run this version and no other for some time.
fn runs_only(program: &mut Program, version: u64) -> Result<(), Failed> {
    let end = Instant::now() + Duration::from_secs(20);
    while gaps(program)?.0 != version {
        if Instant::now() > end {
            return fail(format!("the program does not run version {version}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn measure(target: &Target, setup: usize, threads: u64, pairs: u64) -> Result<Vec<Sample>, Failed> {
    let Setup { policy, calls, probe, .. } = SETUPS[setup];
    let arguments = [&threads.to_string(), "2", calls[0], calls[1], probe].map(str::to_owned);
    let mut program = target.start(&arguments)?;
    let options = ["--policy", policy, "--timeout", "60"];
    let mut samples = Vec::new();
    runs_only(&mut program, 1)?;
    for _ in 0..pairs {
        gaps(&mut program)?;
        let begin = Instant::now();
        let report = target.apply(&program, &options)?;
        let took = begin.elapsed();
        let figures = sample(&report, gaps(&mut program)?.1)?;
        samples.push(Sample { setup, threads, operation: "apply", figures });
        runs_only(&mut program, 2)?;

        let report = target.rollback(&program, &options)?;
        let figures = sample(&report, gaps(&mut program)?.1)?;
        samples.push(Sample { setup, threads, operation: "rollback", figures });
        runs_only(&mut program, 1)?;

        std::thread::sleep(took);
        let mut figures = [0.0; FIGURES.len()];
        figures[OF_THE_TOOL..].copy_from_slice(&gaps(&mut program)?.1);
        samples.push(Sample { setup, threads, operation: "none", figures });
    }
    program.finish()?;
    Ok(samples)
}

fn csv(samples: &[Sample]) -> String {
    let mut text = format!("setup,threads,operation,{}\n", FIGURES.join(","));
    for sample in samples {
        let figures: Vec<String> = sample.figures.iter().map(|figure| format!("{figure:.1}")).collect();
        let name = SETUPS[sample.setup].name.replace(',', ";");
        let _ = writeln!(text, "{name},{},{},{}", sample.threads, sample.operation, figures.join(","));
    }
    text
}

fn spread(samples: &[Sample], setup: usize, threads: u64, tool: bool, figure: &str) -> Spread {
    let column = FIGURES.iter().position(|name| *name == figure).unwrap_or_default();
    let of = |sample: &&Sample| {
        sample.setup == setup && sample.threads == threads && (sample.operation != "none") == tool
    };
    samples.iter().filter(of).map(|sample| sample.figures[column]).collect()
}

fn plot(samples: &[Sample], counts: &[u64], figures: &[&str], title: &str, axis: &str) -> String {
    let mut series = Vec::new();
    for (setup, Setup { name, .. }) in SETUPS.iter().enumerate().filter(|(setup, _)| *setup != 1) {
        for figure in figures {
            let point = |&threads: &u64| {
                let spread = spread(samples, setup, threads, true, figure);
                (threads as f64, [spread.min(), spread.median(), spread.max()])
            };
            series.push(Series { name: (*name).into(), points: counts.iter().map(point).collect() });
        }
    }
    let axes = ["idle threads".into(), axis.into()];
    Plot { title: title.into(), axes, logarithmic: true, series }.svg()
}

fn tables(samples: &[Sample], counts: &[u64], pairs: u64) -> String {
    let mut text = format!(
        "{} Each figure is the median (least … largest) of {pairs} `apply` and {pairs} `rollback`.\n",
        machine()
    );
    for (setup, Setup { name, .. }) in SETUPS.iter().enumerate() {
        let column =
            |threads: u64, tool: bool, figure: &str| spread(samples, setup, threads, tool, figure).text();
        let tool = |&threads: &u64| {
            let figures = &FIGURES[..OF_THE_TOOL];
            let cells = figures.iter().map(|figure| column(threads, true, figure));
            std::iter::once(threads.to_string()).chain(cells).collect()
        };
        let probes = |&threads: &u64| {
            let figures = ["spinning", "sleeping", "calling"].map(|probe| {
                [
                    column(threads, true, &format!("{probe}_held_us")),
                    column(threads, true, &format!("{probe}_us")),
                    column(threads, false, &format!("{probe}_us")),
                ]
            });
            [vec![threads.to_string()], figures.concat()].concat()
        };
        let head = [
            "idle threads",
            "`total_ms`",
            "`transition_ms`",
            "`world_stopped_us`",
            "`parked_us`",
            "`worker_us`",
            "`retries`",
        ];
        let rows: Vec<Vec<String>> = counts.iter().map(tool).collect();
        let _ = write!(text, "\n**{name}**: what the tool reports\n\n{}", table(&head, &rows));
        let head = [
            "idle threads",
            "spinning: held, µs",
            "gap, µs",
            "without tool",
            "sleeping: held, µs",
            "late, µs",
            "without tool",
            "calling: held, µs",
            "late, µs",
            "without tool",
        ];
        let rows: Vec<Vec<String>> = counts.iter().map(probes).collect();
        let _ =
            write!(text, "\n**{name}**: what the program's own threads measure\n\n{}", table(&head, &rows));
    }
    text
}

fn main() -> Result<(), Failed> {
    let pairs = setting("LIVEPATCH_BENCH_PAIRS", 20)?;
    let counts = std::env::var("LIVEPATCH_BENCH_THREADS").unwrap_or_else(|_| "10,100,1000,4000".into());
    let counts = counts.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    let target = Target::build("idle_threads", include_str!("programs/idle.rs.txt"))?;
    let mut samples = Vec::new();
    for &threads in &counts {
        for (setup, Setup { name, .. }) in SETUPS.iter().enumerate() {
            eprintln!("{threads} idle threads, {name}");
            samples.extend(measure(&target, setup, threads, pairs)?);
            let total = spread(&samples, setup, threads, true, "total_ms");
            let held = spread(&samples, setup, threads, true, "world_stopped_us");
            eprintln!("  total {} ms, held {} µs", total.text(), held.text());
        }
    }
    let text = tables(&samples, &counts, pairs);
    let total = plot(&samples, &counts, &["total_ms"], "apply and rollback", "whole operation, ms");
    let title = "longest hold of a thread that does not enter changed code";
    let held = plot(&samples, &counts, &["world_stopped_us"], title, "µs");
    let files = [("md", text.as_str()), ("csv", &csv(&samples)), ("svg", &total)];
    files.iter().try_for_each(|(kind, text)| write(&format!("transition.{kind}"), text))?;
    write("transition-held.svg", &held)?;
    write_section("transition", &text)
}
