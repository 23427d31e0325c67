//! Many cycles of `apply` and `rollback` on the example web service under HTTP load: failed requests, and the service's memory
//! every hundred cycles. Writes `docs/bench/soak*` and a section of `docs/performance.md`.
//!
//! `LIVEPATCH_SOAK_CYCLES` (default 10000, at least 300) makes it shorter, `LIVEPATCH_SOAK_WORKERS` (default 4) is the number of the
//! service's worker threads.

use livepatch_tests::measure::plot::{Plot, Series};
use livepatch_tests::measure::{machine, number, setting, table, write, write_section};
use livepatch_tests::tools;
use livepatch_tests::{Failed, fail};
use serde_json::Value;
use std::fmt::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const KIB: f64 = 1024.0;

/// Resident bytes after a number of cycles.
type Sample = (f64, f64);

/// Growth in bytes for each cycle: the slope of the straight line that is closest to the samples.
fn slope(samples: &[Sample]) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|sample| sample.0), mean(|sample| sample.1));
    let (above, below) = samples
        .iter()
        .fold((0.0, 0.0), |(above, below), (a, b)| (above + (a - x) * (b - y), below + (a - x) * (a - x)));
    above / below
}

/// The demo's report, and the time that the cycles took.
fn run(cycles: u64, workers: u64) -> Result<(Value, Duration), Failed> {
    let mut command = Command::new(tools::folder().join("livepatch"));
    command.args(["demo", "--json", "--cycles", &cycles.to_string(), "--workers", &workers.to_string()]);
    let begin = Instant::now();
    let output = command.stderr(Stdio::inherit()).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    if !output.status.success() {
        return fail(format!("the demo ended with {}: {report}", output.status));
    }
    let seconds = |key: &str| report[key].as_f64().unwrap_or_default().max(0.0);
    let builds = Duration::from_secs_f64(seconds("build_s") + seconds("create_s"));
    let took = begin.elapsed().saturating_sub(builds);
    Ok((report, took))
}

fn samples(report: &Value) -> Result<Vec<Sample>, Failed> {
    let all = report["resident_samples"].as_array().ok_or("no samples of the memory")?;
    let sample = |pair: &Value| Some((pair[0].as_f64()?, pair[1].as_f64()?));
    Ok(all.iter().map(sample).collect::<Option<_>>().ok_or("a sample without numbers")?)
}

fn main() -> Result<(), Failed> {
    let cycles = setting("LIVEPATCH_SOAK_CYCLES", 10_000)?;
    let workers = setting("LIVEPATCH_SOAK_WORKERS", 4)?;
    let (report, took) = run(cycles, workers)?;
    let samples = samples(&report)?;
    let [first, second, .., last] = samples.as_slice() else {
        return fail("at least 300 cycles are needed for the growth after the first 100");
    };
    let later = &samples[1..];
    let half = &samples[samples.len() / 2..];
    let figure = |name: &str, key: &str| report[name][key].as_f64().map_or("-".into(), number);
    let rows = [
        [
            "requests served",
            &(report["requests"]["old"].as_u64().unwrap_or_default()
                + report["requests"]["new"].as_u64().unwrap_or_default())
            .to_string(),
        ],
        ["requests failed", &report["requests"]["failed"].to_string()],
        ["answered by the wrong code", &report["requests"]["wrong"].to_string()],
        ["event stream still connected, without a gap", &report["stream"]["connected"].to_string()],
        ["counters kept", &report["state_kept"].to_string()],
        [
            "`apply`, ms: median, largest",
            &format!("{}, {}", figure("apply_ms", "median"), figure("apply_ms", "max")),
        ],
        [
            "`rollback`, ms: median, largest",
            &format!("{}, {}", figure("rollback_ms", "median"), figure("rollback_ms", "max")),
        ],
        [
            "`world_stopped_us`: median, largest",
            &format!("{}, {}", figure("world_stopped_us", "median"), figure("world_stopped_us", "max")),
        ],
        [
            "resident before the first cycle, KiB",
            &number(report["resident_before"].as_f64().unwrap_or(f64::NAN) / KIB),
        ],
        [
            "resident after 100, 200, all cycles, KiB",
            &[first, second, last].map(|s| number(s.1 / KIB)).join(", "),
        ],
        ["growth a cycle after the first 100, bytes", &format!("{:.1}", slope(later))],
        ["growth a cycle in the second half, bytes", &format!("{:.1}", slope(half))],
    ];
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect();
    let text = format!(
        "{} {cycles} cycles of `apply` and `rollback` in {:.0} s, {workers} worker threads, 4 connections with requests without \
         pause, at least 50 answers by the one code before the next step; growth is the slope of the straight line closest to \
         the samples.\n\n{}",
        machine(),
        took.as_secs_f64(),
        table(&["what", "figure"], &rows)
    );
    let mut csv = String::from("cycles,resident_bytes\n");
    for (cycles, bytes) in &samples {
        let _ = writeln!(csv, "{cycles},{bytes}");
    }
    let points = samples.iter().map(|(cycles, bytes)| (*cycles, [bytes / KIB; 3])).collect();
    let plot = Plot {
        title: "resident memory of the service under load".into(),
        axes: ["cycles of apply and rollback".into(), "KiB".into()],
        logarithmic: false,
        series: vec![Series { name: "resident".into(), points }],
    };
    write("soak.csv", &csv)?;
    write("soak.svg", &plot.svg())?;
    write("soak.md", &text)?;
    print!("{text}");
    write_section("soak", &text)
}
