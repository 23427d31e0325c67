//! What a patch costs in the steady state: a patched function against the same function natively rebuilt, in one process each,
//! alternating; and whether an unpatched program has the machine code of plain `cargo build`. Writes `docs/bench/calls*` and a
//! section of `docs/performance.md`.
//!
//! `LIVEPATCH_BENCH_ROUNDS` (default 500) makes it shorter.

use livepatch_tests::child::Program;
use livepatch_tests::measure::target::Target;
use livepatch_tests::measure::{Spread, machine, setting, table, write, write_section};
use livepatch_tests::project::command;
use livepatch_tests::tools;
use livepatch_tests::{Failed, fail};
use object::{Object, ObjectSection};
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Calls of a round of the program.
const CALLS: f64 = 250e3;

/// Nanoseconds for each call of one round, and what the calls came to.
fn round(program: &mut Program) -> Result<(f64, String), Failed> {
    let line = program.round()?.concat();
    let (nanos, sum) = line.split_once(' ').ok_or("a short line")?;
    Ok((nanos.parse::<f64>()? / CALLS, sum.to_owned()))
}

/// The program of a plain build of the project.
fn plain_build(target: &Target, folder: &str) -> Result<PathBuf, Failed> {
    let dir = target.project().path();
    tools::plain_build(dir, folder)?;
    Ok(dir.join(folder).join("release/calls"))
}

fn text_of(program: &Path) -> Result<Vec<u8>, Failed> {
    let file = fs::read(program)?;
    let elf = object::File::parse(file.as_slice())?;
    Ok(elf.section_by_name(".text").ok_or("no .text")?.data()?.to_vec())
}

/// What stands between a caller and the new code: the bytes at the old entry, as an instruction.
fn detour(program: &Program, report: &Value) -> Result<String, Failed> {
    let patches = report["patches"].as_array().ok_or("no patches")?;
    let function = &patches.last().ok_or("no patch")?["functions"][0];
    let address = |name: &str| {
        let text = function[name].as_str().and_then(|text| text.strip_prefix("0x"));
        u64::from_str_radix(text.unwrap_or_default(), 16)
    };
    let (old, new) = (address("address")?, address("new_address")?);
    let mut code = [0; 5];
    fs::File::open(format!("/proc/{}/mem", program.pid()))?.read_exact_at(&mut code, old)?;
    let [opcode, offset @ ..] = code;
    let goal = old.wrapping_add(5).wrapping_add_signed(i32::from_le_bytes(offset).into());
    if opcode != 0xe9 || goal != new {
        return fail(format!("the old entry holds {code:02x?} and not a jump to {new:#x}"));
    }
    Ok("one instruction, a direct jump from the old entry to the new code".into())
}

struct Measured {
    patched: Vec<f64>,
    native: Vec<f64>,
    unpatched: Vec<f64>,
}

fn ratios(of: &[f64], to: &[f64]) -> Spread {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}

fn main() -> Result<(), Failed> {
    let rounds = setting("LIVEPATCH_BENCH_ROUNDS", 500)?;
    let target = Target::build("calls", include_str!("programs/calls.rs.txt"))?;
    // The project has the new source: what the patched function has to be like.
    let native = plain_build(&target, "native")?;
    target.project().write(livepatch_tests::fixture::Side::Old)?;
    let plain = plain_build(&target, "plain")?;
    let (ours, theirs) = (text_of(target.shipped())?, text_of(&plain)?);
    if ours != theirs {
        return fail("the unpatched program has other code than plain `cargo build`");
    }
    let same = format!("byte for byte the same `.text` ({} bytes): the ratio is 1 by identity", ours.len());

    let mut patched = target.start(&[])?;
    let report = target.apply(&patched, &[])?;
    let detour = detour(&patched, &report)?;
    let mut native = Program::start(command(&native))?;
    let mut unpatched = target.start(&[])?;
    let mut measured = Measured { patched: Vec::new(), native: Vec::new(), unpatched: Vec::new() };
    for done in 0..=rounds {
        let (p, says) = round(&mut patched)?;
        let (n, should) = round(&mut native)?;
        let (u, old) = round(&mut unpatched)?;
        if says != should || says == old {
            return fail(format!("patched {says}, native {should}, unpatched {old}"));
        }
        // The first round warms up.
        if done > 0 {
            measured.patched.push(p);
            measured.native.push(n);
            measured.unpatched.push(u);
        }
    }
    report_on(&measured, rounds, &same, &detour)
}

fn report_on(measured: &Measured, rounds: u64, same: &str, detour: &str) -> Result<(), Failed> {
    let Measured { patched, native, unpatched } = measured;
    let mut csv = String::from("round,patched_ns,native_ns,unpatched_ns\n");
    for (at, ((p, n), u)) in patched.iter().zip(native).zip(unpatched).enumerate() {
        let _ = writeln!(csv, "{at},{p:.3},{n:.3},{u:.3}");
    }
    let row = |name: &str, values: &[f64]| {
        let spread: Spread = values.iter().copied().collect();
        let rate: Spread = values.iter().map(|nanos| 1e3 / nanos).collect();
        let ratio = ratios(values, native);
        let ratio = format!("{:.4} ({:.4} … {:.4})", ratio.median(), ratio.min(), ratio.max());
        vec![name.to_owned(), spread.text(), rate.text(), ratio]
    };
    let rows = [
        row("natively rebuilt", native),
        row("patched", patched),
        row("unpatched (the old function)", unpatched),
    ];
    let head = ["program", "ns a call", "million calls a second", "ratio to native"];
    let quickest = |values: &[f64]| values.iter().copied().collect::<Spread>().min();
    let text = format!(
        "{} Median (least … largest) of {rounds} rounds of {CALLS} calls each, the programs by turns; ratios are those of the \
         rounds of one turn.\n\n{}\nRatio of the quickest rounds, patched to native: {:.4}. \
         Between a caller and the new code: {detour}. Unpatched program against plain `cargo build`: {same}.\n",
        machine(),
        table(&head, &rows),
        quickest(patched) / quickest(native),
    );
    write("calls.csv", &csv)?;
    write("calls.md", &text)?;
    print!("{text}");
    write_section("calls", &text)
}
