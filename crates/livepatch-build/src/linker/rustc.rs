//! The compiler wrapper: notes how each unit was compiled; in a rebuild, same paths and names in the program, whatever the
//! folder.
//!
//! Paths of generated code (`OUT_DIR`) and of sources outside the workspace get into the program through panic locations
//! and `file!()`. A rebuild runs in a target folder of its own and perhaps on another machine, so each prefix that
//! differs is mapped to what it was. `-C metadata` is the baseline's also where cargo would give another, see
//! [`crate::units`], so that symbols keep their names. Beside each compilation of local code runs another one for its raw
//! code, see [`crate::raw`].

use super::{State, exit_code, start};
use crate::error::{Error, Result};
use crate::raw::RawRun;
use std::ffi::OsString;

const FLAG: &str = "--remap-path-prefix";

/// Runs `[rustc, args…]` with the remapping added, through the user's wrapper if there is one.
pub(super) fn run(state: &State, args: &[OsString]) -> Result<u8> {
    let no_compiler = || Error::Damaged {
        path: "livepatch-rustc".into(),
        what: "started without a compiler to run".into(),
    };
    let wrapper = &state.rustc;
    let (compiler, rest) = args.split_first().ok_or_else(no_compiler)?;
    let mut full: Vec<OsString> = rest.to_vec();
    // Only for compilations: cargo also asks for versions and configuration, and caches the answers.
    let compiles = rest.iter().any(|arg| arg == "--crate-name");
    let pin = asked(rest).and_then(|asked| wrapper.pins.of(asked));
    if compiles {
        let user = user_remaps(rest);
        // The innermost folder last: rustc takes the last mapping that fits.
        let folders = pin.into_iter().flat_map(|pin| &pin.folders);
        for (here, there) in wrapper.remap.iter().chain(folders) {
            full.push(FLAG.into());
            full.push(format!("{here}={}", apply(&user, there)).into());
        }
        if let Some(pin) = pin {
            // The compiler takes all values of the option together.
            for arg in full.iter_mut().filter(|arg| number(arg).is_some()) {
                *arg = format!("{}metadata={}", if is_joined(arg) { "-C" } else { "" }, pin.metadata).into();
            }
        }
    }
    let program = match &wrapper.chained {
        Some(chained) => {
            full.insert(0, compiler.clone());
            chained.clone()
        }
        None => compiler.to_string_lossy().into_owned(),
    };
    let arguments = if wrapper.chained.is_some() { &full[1..] } else { &full[..] };
    let wrapped = wrapper.chained.is_some().then_some(&**compiler);
    let raw = if compiles { RawRun::start(&program, wrapped, arguments) } else { None };
    let status = start(&program, &full)?;
    if compiles && status.success() {
        let raw = raw.and_then(RawRun::finish);
        crate::units::write(rest, pin.map(|pin| &*pin.metadata), raw)?;
    }
    Ok(exit_code(status))
}

/// The value of `-C metadata`, which cargo gives once.
fn asked(args: &[OsString]) -> Option<&str> {
    args.iter().find_map(number)
}

/// The number in the argument `metadata=NUMBER`, alone behind `-C` or joined with it.
fn number(arg: &OsString) -> Option<&str> {
    let arg = arg.to_str()?;
    arg.strip_prefix("-C").unwrap_or(arg).strip_prefix("metadata=")
}

fn is_joined(arg: &OsString) -> bool {
    arg.to_str().is_some_and(|arg| arg.starts_with("-C"))
}

/// The user's own mappings, in order. rustc applies only the last that fits, so ours has to give what theirs gave.
fn user_remaps(args: &[OsString]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let arg = arg.to_string_lossy();
        let value = match arg.strip_prefix(FLAG) {
            Some("") => args.next().map(|value| value.to_string_lossy().into_owned()),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        // rustc splits at the last `=`.
        found.extend(
            value.and_then(|value| value.rsplit_once('=').map(|(from, to)| (from.to_owned(), to.to_owned()))),
        );
    }
    found
}

fn apply(remaps: &[(String, String)], path: &str) -> String {
    for (from, to) in remaps.iter().rev() {
        if let Ok(rest) = std::path::Path::new(path).strip_prefix(from) {
            return std::path::Path::new(to).join(rest).to_string_lossy().into_owned();
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_mapping_is_kept() {
        let args = ["--remap-path-prefix=/home=/h", "--remap-path-prefix", "/home/me=/m"].map(OsString::from);
        let user = user_remaps(&args);
        assert_eq!(apply(&user, "/home/me/p"), "/m/p");
        assert_eq!(apply(&user, "/home/you"), "/h/you");
        assert_eq!(apply(&user, "/homes"), "/homes");
    }
}
