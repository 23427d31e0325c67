//! How long `cargo livepatch create` takes beside cargo's own rebuild, on the example web service. Writes `docs/bench/create*` and a
//! section of `docs/performance.md`.
//!
//! `LIVEPATCH_BENCH_CREATES` (default 10) makes it shorter.

use livepatch_tests::example::Example;
use livepatch_tests::measure::{Spread, machine, setting, table, write, write_section};
use livepatch_tests::tools::{self, Ran, exit};
use livepatch_tests::{Failed, fail};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// What is changed: a private function that is inlined into a handler.
const LINE: &str = "    net * VAT / 100\n";

/// Milliseconds of one run.
struct Sample {
    total: f64,
    cargo: f64,
}

fn create(example: &Example, code: i32) -> Result<Sample, Failed> {
    let mut command = tools::cargo_livepatch(example.path());
    let ran = Ran::of(command.args(["create", "--json", "-o", "fix.lpatch"]))?.expect(code, "create")?;
    let figure = |name: &str| ran.json[name].as_f64().ok_or(format!("no {name} in {}", ran.json));
    Ok(Sample { total: figure("total_ms")?, cargo: figure("cargo_ms")? })
}

/// The file with another constant in the function, different at each turn.
fn change(example: &Example, original: &str, turn: u64) -> Result<(), Failed> {
    let text = original.replacen(LINE, &format!("    net * VAT / 100 + {turn}\n"), 1);
    Ok(fs::write(example.path().join("src/orders.rs"), text)?)
}

/// cargo's own incremental build of the same change, in a folder of its own.
fn plain(example: &Example) -> Result<f64, Failed> {
    let started = Instant::now();
    tools::plain_build(example.path(), "plain")?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

/// Megabytes of what the linker read: the libraries of the program's crates.
fn link_inputs(example: &Example) -> Result<f64, Failed> {
    let mut bytes = 0;
    for entry in fs::read_dir(example.path().join("plain/release/deps"))? {
        let entry = entry?;
        if Path::new(&entry.file_name()).extension().is_some_and(|kind| kind == "rlib") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes as f64 / 1e6)
}

fn main() -> Result<(), Failed> {
    let turns = setting("LIVEPATCH_BENCH_CREATES", 10)?;
    let example = Example::copy("webapp")?;
    let original = fs::read_to_string(example.path().join("src/orders.rs"))?;
    if original.matches(LINE).count() != 1 {
        return fail("the example has another line to change");
    }
    example.ship()?;
    // The first ones fill the folders.
    create(&example, exit::NOTHING)?;
    plain(&example)?;
    let (mut unchanged, mut changed, mut by_cargo) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=turns {
        fs::write(example.path().join("src/orders.rs"), &original)?;
        create(&example, exit::NOTHING)?;
        unchanged.push(create(&example, exit::NOTHING)?);
        change(&example, &original, turn)?;
        changed.push(create(&example, exit::DONE)?);
        by_cargo.push(plain(&example)?);
    }
    report(turns, link_inputs(&example)?, &unchanged, &changed, &by_cargo)
}

fn report(
    turns: u64,
    megabytes: f64,
    unchanged: &[Sample],
    changed: &[Sample],
    plain: &[f64],
) -> Result<(), Failed> {
    let mut csv = String::from("what,total_ms,cargo_ms\n");
    let mut rows = Vec::new();
    let spread = |values: &mut dyn Iterator<Item = f64>| values.collect::<Spread>().text();
    for (what, samples) in [("nothing changed", unchanged), ("one line changed", changed)] {
        for sample in samples {
            let _ = writeln!(csv, "{what},{},{}", sample.total, sample.cargo);
        }
        rows.push(vec![
            what.to_owned(),
            spread(&mut samples.iter().map(|sample| sample.total)),
            spread(&mut samples.iter().map(|sample| sample.cargo)),
            spread(&mut samples.iter().map(|sample| sample.total - sample.cargo)),
        ]);
    }
    for total in plain {
        let _ = writeln!(csv, "plain cargo build,{total:.0},{total:.0}");
    }
    let own = spread(&mut plain.iter().copied());
    rows.push(vec!["one line changed, plain `cargo build`".into(), own.clone(), own, String::new()]);
    let text = format!(
        "{} Libraries of {megabytes:.0} MB with debug information. Milliseconds, median (least … largest) of {turns} turns.\n\n{}",
        machine(),
        table(&["", "total", "cargo's rebuild", "the rest"], &rows),
    );
    write("create.csv", &csv)?;
    write("create.md", &text)?;
    print!("{text}");
    write_section("create", &text)
}
