//! How long a transition takes where 64 threads are inside the changed function for nearly all of the time. Writes
//! `docs/bench/converge*` and a section of `docs/performance.md`.
//!
//! `LIVEPATCH_BENCH_PAIRS` (default 20) makes it shorter.

use livepatch_tests::child::Program;
use livepatch_tests::measure::target::Target;
use livepatch_tests::measure::{Spread, machine, setting, table, write, write_section};
use livepatch_tests::{Failed, fail};
use serde_json::Value;
use std::fmt::Write;

const THREADS: &str = "64";
/// What a call does, and its microseconds.
const CALLS: [(&str, u64); 6] = [
    ("compute", 1),
    ("compute", 1_000),
    ("compute", 100_000),
    ("wait", 1),
    ("wait", 1_000),
    ("wait", 100_000),
];
const FIGURES: [&str; 4] = ["total_ms", "transition_ms", "world_stopped_us", "retries"];

struct Sample {
    call: usize,
    operation: &'static str,
    figures: [f64; FIGURES.len()],
}

fn sample(call: usize, operation: &'static str, report: &Value) -> Result<Sample, Failed> {
    let mut figures = [0.0; FIGURES.len()];
    for (figure, name) in figures.iter_mut().zip(FIGURES) {
        let value = report.get(name).unwrap_or(&report["stages"][name]);
        *figure = value.as_f64().ok_or_else(|| format!("no {name} in {report}"))?;
    }
    Ok(Sample { call, operation, figures })
}

/// All threads run this version and no other.
fn runs_only(program: &mut Program, version: &str) -> Result<(), Failed> {
    match program.round()?.concat() {
        found if found == version => Ok(()),
        found => fail(format!("versions {found} and not {version}")),
    }
}

fn measure(target: &Target, call: usize, pairs: u64) -> Result<Vec<Sample>, Failed> {
    let (kind, micros) = CALLS[call];
    let mut program = target.start(&[kind.to_owned(), micros.to_string(), THREADS.to_owned()])?;
    runs_only(&mut program, "1")?;
    let mut samples = Vec::new();
    for _ in 0..pairs {
        samples.push(sample(call, "apply", &target.apply(&program, &["--timeout", "60"])?)?);
        runs_only(&mut program, "2")?;
        samples.push(sample(call, "rollback", &target.rollback(&program, &["--timeout", "60"])?)?);
        runs_only(&mut program, "1")?;
    }
    program.finish()?;
    Ok(samples)
}

/// Ten calls and a tenth of a second, in milliseconds.
fn goal(micros: u64) -> f64 {
    micros as f64 / 100.0 + 100.0
}

fn main() -> Result<(), Failed> {
    let pairs = setting("LIVEPATCH_BENCH_PAIRS", 20)?;
    let target = Target::build("busy", include_str!("programs/busy.rs.txt"))?;
    let mut csv = format!("call,micros,operation,{}\n", FIGURES.join(","));
    let mut rows = Vec::new();
    for (call, (kind, micros)) in CALLS.iter().enumerate() {
        let samples = measure(&target, call, pairs)?;
        for Sample { call, operation, figures } in &samples {
            let figures: Vec<String> = figures.iter().map(|figure| format!("{figure:.1}")).collect();
            let _ = writeln!(csv, "{},{},{operation},{}", CALLS[*call].0, CALLS[*call].1, figures.join(","));
        }
        let spread = |at: usize| samples.iter().map(|sample| sample.figures[at]).collect::<Spread>();
        let missed = samples.iter().filter(|sample| sample.figures[0] > goal(*micros)).count();
        let mut row = vec![format!("{kind} {micros} µs")];
        row.extend((0..FIGURES.len()).map(|at| spread(at).text()));
        row.push(format!("{:.0}", goal(*micros)));
        row.push(format!("{missed} of {}", samples.len()));
        eprintln!("{}", row.join(" | "));
        rows.push(row);
    }
    let head = [
        "call",
        "`total_ms`",
        "`transition_ms`",
        "`world_stopped_us`",
        "`retries`",
        "ten calls + 100 ms",
        "longer",
    ];
    let text = format!(
        "{} {THREADS} threads that call without pause. Each figure is the median (least … largest) of {pairs} `apply` and {pairs} \
         `rollback`.\n\n{}",
        machine(),
        table(&head, &rows)
    );
    write("converge.csv", &csv)?;
    write("converge.md", &text)?;
    write_section("converge", &text)
}
