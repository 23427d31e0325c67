//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

/// What the service is told at start.
pub struct Args {
    /// TCP port; 0 lets the system choose.
    pub port: u16,
    /// Worker threads of the runtime, at least one.
    pub workers: usize,
    /// Folder with patches that the admin page offers.
    pub patches: Option<PathBuf>,
}

/// Reads `--port N`, `--workers N` and `--patches DIR`.
pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args { port: 0, workers: 2, patches: None };
    while let Some(name) = words.next() {
        match name.as_str() {
            "--port" => args.port = value(&name, words.next())?,
            "--workers" => args.workers = value::<usize>(&name, words.next())?.max(1),
            "--patches" => args.patches = Some(words.next().ok_or("--patches needs a folder")?.into()),
            _ => {
                return Err(format!("unknown argument `{name}`; use --port N, --workers N or --patches DIR"));
            }
        }
    }
    Ok(args)
}

fn value<T: FromStr>(name: &str, word: Option<String>) -> Result<T, String> {
    let word = word.ok_or_else(|| format!("{name} needs a number"))?;
    word.parse().map_err(|_| format!("{name} needs a number, not `{word}`"))
}
