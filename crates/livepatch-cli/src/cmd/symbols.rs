//! `livepatch symbols`: names for the code of patches, for debuggers, profilers and people.

use super::process::{pid, state};
use crate::exit::{Exit, Failure};
use crate::output::{Outcome, count};
use livepatch_apply::{CodeSymbol, PatchSymbols, Symbols};
use livepatch_patch::RunAddr;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Arguments of `symbols`.
#[derive(Debug, clap::Args)]
pub(crate) struct SymbolsArgs {
    /// The process.
    #[arg(value_parser = pid, required_unless_present = "core")]
    pid: Option<i32>,
    /// A core dump of a process instead of a process.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pid", "perf_map"])]
    core: Option<PathBuf>,
    /// Write a symbol file for each patch into this folder, and say what gdb has to be told.
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Add the functions to the file /tmp/perf-PID.map of the process, where perf looks for them.
    #[arg(long)]
    perf_map: bool,
    /// Name an address of a backtrace (hexadecimal). May be repeated.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    address: Vec<RunAddr>,
}

/// Reads the names, and puts them where they are wanted.
pub(crate) fn run(args: &SymbolsArgs) -> Result<Outcome, Failure> {
    let symbols = match (&args.core, args.pid) {
        (Some(core), _) => Symbols::of_core(core)?,
        (None, Some(pid)) => Symbols::of_process(pid)?,
        (None, None) => return Err(Failure::new(Exit::Usage, "give a process or --core")),
    };
    let files = match &args.output {
        Some(folder) => write(&symbols, folder)?,
        None => Vec::new(),
    };
    let perf_map = args.perf_map.then(|| symbols.add_to_perf_map()).transpose()?;
    let addresses: Vec<Value> = args.address.iter().map(|at| named(&symbols, *at)).collect();
    let lines: Vec<String> = files.iter().map(|file| gdb_line(file)).collect();

    let patches = symbols.patches.iter().enumerate().map(|(index, patch)| {
        let file = files.get(index).map(|file| file.display().to_string());
        patch_json(patch, file.as_deref(), lines.get(index))
    });
    let report = json!({
        "pid": symbols.pid,
        "patches": patches.collect::<Vec<_>>(),
        "perf_map": perf_map.as_ref().map(|path| path.display().to_string()),
        "addresses": addresses,
    });
    let mut human: Vec<String> = match args.address.as_slice() {
        [] if symbols.patches.is_empty() && args.core.is_some() => {
            vec!["no patches in what was dumped".into()]
        }
        [] if symbols.patches.is_empty() => vec!["no patches".into()],
        [] => symbols.patches.iter().map(patch_text).collect(),
        addresses => addresses.iter().map(|at| named_text(&symbols, *at)).collect(),
    };
    if !lines.is_empty() {
        human.push("for gdb:".into());
        human.extend(lines.iter().map(|line| format!("  {line}")));
    }
    human.extend(perf_map.map(|path| format!("{} has these functions", path.display())));
    Outcome::done(&report, human.join("\n"))
}

/// An address as debuggers and backtraces print it.
fn address(text: &str) -> Result<RunAddr, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let parsed = u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'));
    parsed.map(RunAddr).ok_or_else(|| "an address is a hexadecimal number".into())
}

/// Writes a file for each patch. One that is there is replaced as a whole, whatever it is a link to.
fn write(symbols: &Symbols, folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let process = symbols.pid.map_or_else(|| "core".into(), |pid| pid.to_string());
    let failed = |error: std::io::Error| Failure::new(Exit::Error, error.to_string()).about(folder);
    let folder = folder.canonicalize().map_err(failed)?;
    let mut files = Vec::new();
    for patch in &symbols.patches {
        let object = patch.object()?;
        let path = folder.join(format!("livepatch-{process}-{}.elf", patch.id.short()));
        let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(failed)?;
        file.write_all(&object).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        files.push(path);
    }
    Ok(files)
}

/// gdb's words end at blanks and know quotes; a backslash before it makes any character a plain one.
fn gdb_line(file: &Path) -> String {
    let mut line = String::from("add-symbol-file ");
    for c in file.display().to_string().chars() {
        if c.is_whitespace() || matches!(c, '\\' | '\'' | '"') {
            line.push('\\');
        }
        line.push(c);
    }
    line
}

fn patch_json(patch: &PatchSymbols, file: Option<&str>, gdb: Option<&String>) -> Value {
    let function = |f: &CodeSymbol| json!({"path": f.path, "symbol": f.symbol, "address": f.start.to_string(), "size": f.size});
    json!({
        "id": patch.id.to_string(),
        "name": patch.name,
        "build_id": patch.build_id.to_string(),
        "state": patch.state,
        "functions": patch.functions.iter().map(function).collect::<Vec<_>>(),
        "file": file,
        "gdb": gdb,
    })
}

fn patch_text(patch: &PatchSymbols) -> String {
    let functions = count(patch.functions.len(), "function");
    let mut lines = vec![format!("{} {}: {}, {functions}", patch.name, patch.id.short(), state(patch.state))];
    lines.extend(patch.functions.iter().map(|f| format!("  {} {:>6} {}", f.start, f.size, f.path)));
    lines.join("\n")
}

fn named(symbols: &Symbols, at: RunAddr) -> Value {
    let name = symbols.name(at);
    json!({
        "address": at.to_string(),
        "path": name.map(|name| &name.function.path),
        "symbol": name.map(|name| &name.function.symbol),
        "offset": name.map(|name| name.offset),
        "patch": name.map(|name| name.patch.id.to_string()),
    })
}

fn named_text(symbols: &Symbols, at: RunAddr) -> String {
    match symbols.name(at) {
        Some(name) => format!("{at} {}+{:#x} (patch {})", name.function.path, name.offset, name.patch.name),
        None => format!("{at} is in no patch"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hexadecimal() {
        assert_eq!(address("0x7f12"), Ok(RunAddr(0x7f12)));
        assert_eq!(address("7f12"), Ok(RunAddr(0x7f12)));
        for wrong in ["", "0x", "g", "-1", "+1", "10000000000000000"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_path_is_one_word_for_gdb() {
        assert_eq!(gdb_line(Path::new("/a/b.elf")), "add-symbol-file /a/b.elf");
        assert_eq!(gdb_line(Path::new("/a b/'c\".elf")), "add-symbol-file /a\\ b/\\'c\\\".elf");
    }
}
