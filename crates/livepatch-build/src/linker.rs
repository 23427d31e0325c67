//! The linker and compiler wrappers: this executable, started by rustc and cargo in place of the real ones.
//!
//! `cargo livepatch build` points `CARGO_TARGET_<TRIPLE>_LINKER` at a symlink to its own executable. The executable
//! recognises itself by the folder in which it was called and by [`STATE_VAR`], runs the real linker with the same
//! arguments, and keeps what went in and what came out.
//!
//! The symlink carries the real linker's file name, because rustc infers from the name's stem how to talk to it
//! (`ld.lld` and `cc` take different arguments). Its path is the same in every run, because cargo rebuilds everything
//! when the path of the linker changes.
//!
//! The compiler wrapper (`RUSTC_WRAPPER`) leaves a note beside each output (`units.rs`); in rebuilds it also adds
//! `--remap-path-prefix` and the baseline's `-C metadata`, see [`crate::rebuild`].

mod args;
mod inputs;
mod record;
mod rustc;
mod state;

pub(crate) use record::{build_id, read_records};
pub(crate) use state::{Entry, Mode, RustcWrapper, State};

use crate::error::{Error, IoContext, Result};
use args::LinkArgs;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

/// Set for the processes under `cargo livepatch build`: the file that says which linker to run and where to record.
pub const STATE_VAR: &str = "LIVEPATCH_LINKER_STATE";

/// Runs as linker or compiler wrapper if this process was started as one. A binary that calls
/// [`cargo::build`](crate::cargo::build) or [`rebuild`](crate::rebuild::rebuild) calls this first in `main` and, if it
/// gets a code, exits with it.
pub fn as_wrapper() -> Option<ExitCode> {
    let state_path = PathBuf::from(std::env::var_os(STATE_VAR)?);
    let mut args = std::env::args_os();
    let called = PathBuf::from(args.next()?);
    let role = Entry::role(&called)?;
    let args: Vec<OsString> = args.collect();
    Some(match State::read(&state_path).and_then(|state| run(&state, &role, args)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("livepatch: failed to {}", chain(&error));
            ExitCode::FAILURE
        }
    })
}

/// [`as_wrapper`] for a binary that serves nothing else.
pub fn main() -> ExitCode {
    as_wrapper().unwrap_or_else(|| {
        eprintln!("livepatch: not started as a linker: {STATE_VAR} is not set");
        ExitCode::FAILURE
    })
}

fn run(state: &State, role: &state::Role, args: Vec<OsString>) -> Result<u8> {
    match role {
        state::Role::Rustc => rustc::run(state, &args),
        state::Role::Linker { triple } => link(state, triple, args),
    }
}

/// The error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

fn link(state: &State, triple: &str, args: Vec<OsString>) -> Result<u8> {
    let linker = state.linkers.get(triple).ok_or_else(|| Error::Target(triple.to_owned()))?;
    let parsed = LinkArgs::parse(&args, linker)?;
    if !wanted(&parsed) {
        return Ok(exit_code(start(linker, &args)?));
    }
    let work = tempfile::tempdir_in(&state.work).at("create a folder in", &state.work)?;
    let map = parsed.map.clone().unwrap_or_else(|| work.path().join("map"));
    let mut full = parsed.unstripped(&args, work.path())?;
    if parsed.map.is_none() {
        full.extend(parsed.to_linker([format!("-Map={}", map.display())]));
    }
    let status = start(linker, &full)?;
    if !status.success() {
        return Ok(exit_code(status));
    }
    if build_id(&parsed.output)?.is_none() {
        full.extend(parsed.to_linker(["--build-id".to_owned()]));
        let status = start(linker, &full)?;
        if !status.success() {
            return Ok(exit_code(status));
        }
    }
    record::record(state, linker, &parsed, &map).inspect_err(|_| {
        // An output without its record would look finished to cargo.
        let _ = std::fs::remove_file(&parsed.output);
    })?;
    Ok(0)
}

/// Whether this link makes something that can be shipped and patched.
///
/// Build scripts and procedural macros run inside the build only. cargo marks the packages that were asked for; a
/// Rust or C shared object of another package is shipped beside them, unless it is a procedural macro, which is told
/// by the compiler's `proc_macro` library among its inputs.
fn wanted(args: &LinkArgs) -> bool {
    let Ok(name) = std::env::var("CARGO_CRATE_NAME") else { return false };
    if name.starts_with("build_script_") {
        return false;
    }
    if !args.shared {
        return std::env::var_os("CARGO_PRIMARY_PACKAGE").is_some();
    }
    !args.files().any(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libproc_macro-"))
    })
}

fn start(program: &str, args: &[OsString]) -> Result<ExitStatus> {
    Command::new(program)
        .args(args)
        .status()
        .map_err(|source| Error::Spawn { program: program.to_owned(), source })
}

/// The code with which a shell would report it.
fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}

/// `path` as the process in `cwd` means it.
fn resolve(cwd: &Path, path: &str) -> PathBuf {
    cwd.join(path)
}
