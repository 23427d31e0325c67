//! What the benchmarks have in common: spreads, the machine, tables, files under `docs/bench`, sections of
//! `docs/performance.md`.

pub mod plot;
pub mod target;

use crate::{Failed, fail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Values of the same thing, measured several times.
#[derive(Clone, Debug, Default)]
pub struct Spread(Vec<f64>);

impl FromIterator<f64> for Spread {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

impl Spread {
    /// The value in the middle, or between the two in the middle; not a number if there is none.
    pub fn median(&self) -> f64 {
        let len = self.0.len();
        match len {
            0 => f64::NAN,
            _ => (self.0[(len - 1) / 2] + self.0[len / 2]) / 2.0,
        }
    }

    /// The least.
    pub fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// `median (min … max)`.
    pub fn text(&self) -> String {
        format!("{} ({} … {})", number(self.median()), number(self.min()), number(self.max()))
    }
}

/// A number with three significant digits, or all before the point.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.5 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A Markdown table. The first column is left-aligned, the others right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let rule: Vec<&str> = (0..head.len()).map(|at| if at == 0 { "---" } else { "---:" }).collect();
    let mut text = line(head.to_vec()) + &line(rule);
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// The machine and how busy it is at this moment, in one sentence. Part of every result.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let of = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let virtual_machine = if info.contains(" hypervisor") { ", virtual machine" } else { "" };
    let load: Vec<String> = read("/proc/loadavg").split_whitespace().take(3).map(str::to_owned).collect();
    format!(
        "{} (family {}, model {}), {cores} cores{virtual_machine}; Linux {}; {}; load average at the end {}.",
        field("model name").unwrap_or_default(),
        field("cpu family").unwrap_or_default(),
        field("model\t").unwrap_or_default(),
        read("/proc/sys/kernel/osrelease").trim(),
        of("rustc", &["--version"]),
        load.join(", ")
    )
}

/// A number from the environment.
///
/// # Errors
/// The variable holds something else.
pub fn setting(name: &str, default: u64) -> Result<u64, Failed> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name} must be a number, not `{text}`").into()),
        Err(_) => Ok(default),
    }
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// Writes a file in `docs/bench`.
///
/// # Errors
/// It cannot be written.
pub fn write(name: &str, text: &str) -> Result<(), Failed> {
    let dir = docs().join("bench");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(name), text)?;
    eprintln!("wrote docs/bench/{name}");
    Ok(())
}

/// Replaces what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` in `docs/performance.md`.
///
/// # Errors
/// The file has no such section.
pub fn write_section(name: &str, text: &str) -> Result<(), Failed> {
    let path = docs().join("performance.md");
    let old = fs::read_to_string(&path)?;
    let new = replaced(&old, name, text)?;
    fs::write(&path, new)?;
    eprintln!("wrote the section {name} of docs/performance.md");
    Ok(())
}

fn replaced(old: &str, name: &str, text: &str) -> Result<String, Failed> {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let parts = old.split_once(&begin).and_then(|(head, rest)| {
        let at = rest.find(&end)?;
        Some((head, &rest[at..]))
    });
    match parts {
        Some((head, tail)) => Ok(format!("{head}{begin}\n{}\n\n{tail}", text.trim())),
        None => fail(format!("docs/performance.md has no section {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        let spread: Spread = [9.0, 1.0, 4.0, 2.0].into_iter().collect();
        assert_eq!((spread.median(), spread.min(), spread.max()), (3.0, 1.0, 9.0));
        assert_eq!(spread.text(), "3.00 (1.00 … 9.00)");
        assert!(Spread::default().median().is_nan());
    }

    #[test]
    fn sections() {
        let old = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n";
        let new = replaced(old, "x", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- begin x -->\n\nnew\n\n<!-- end x -->\nb\n");
        assert_eq!(replaced(&new, "x", "new").unwrap(), new);
        assert!(replaced(old, "y", "new").is_err());
    }
}
