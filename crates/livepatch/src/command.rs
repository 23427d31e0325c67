//! What is started: the program's own executable as a helper, or the `livepatch` tool.

use crate::entry;
use crate::error::HelperError;
use crate::options::Options;
use crate::request::{Operation, Request, Which};
use livepatch_apply::Part;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

/// A file, its words and its environment.
#[derive(Debug)]
pub(crate) struct Command {
    pub path: CString,
    pub args: Vec<CString>,
    pub env: Vec<CString>,
    /// Whether it reads the request, or only the patch.
    pub reads_request: bool,
}

/// Variables that decide whether the program's shared objects are found. Others would only change how the helper behaves.
const KEPT: [&str; 1] = ["LD_LIBRARY_PATH"];

/// The executable itself.
pub(crate) const OWN: &CStr = c"/proc/self/exe";
/// The file that the tool reads the patch from.
const PATCH: &str = "/proc/self/fd/3";

impl Command {
    /// The command for a request. `limit` is when the whole call ends.
    pub fn new(options: &Options, request: &Request, limit: Duration) -> Result<Self, HelperError> {
        match &options.tool {
            None => Self::own(limit),
            Some(path) => Ok(Self {
                path: string(path.as_os_str().as_bytes().to_vec())?,
                args: tool_args(request, request.left())
                    .into_iter()
                    .map(|word| string(word.into_bytes()))
                    .collect::<Result<_, _>>()?,
                env: kept()?,
                reads_request: false,
            }),
        }
    }

    fn own(limit: Duration) -> Result<Self, HelperError> {
        if let Some(reason) = entry::unavailable() {
            return Err(HelperError::Unavailable { reason });
        }
        let mut env = vec![string(entry::environment(limit))?];
        env.extend(kept()?);
        Ok(Self {
            // The kernel's link leads to the running file, also after another one took its place.
            path: OWN.to_owned(),
            args: vec![string(entry::name())?, entry::MARK.to_owned()],
            env,
            reads_request: true,
        })
    }
}

fn kept() -> Result<Vec<CString>, HelperError> {
    KEPT.iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)))
        .map(|(name, value)| string([name.as_bytes(), b"=", &value.into_vec()].concat()))
        .collect()
}

fn string(bytes: Vec<u8>) -> Result<CString, HelperError> {
    CString::new(bytes).map_err(|error| HelperError::Start {
        what: "the helper".into(),
        source: io::Error::new(io::ErrorKind::InvalidInput, error),
    })
}

/// The tool's command line for a request.
fn tool_args(request: &Request, left: Duration) -> Vec<String> {
    let mut words = vec!["livepatch".to_owned(), "--json".into(), "-vv".into()];
    let pid = request.pid.to_string();
    match &request.operation {
        Operation::Apply if request.dry_run => words.extend(["check".into(), pid, PATCH.into()]),
        Operation::Apply => words.extend(["apply".into(), pid, PATCH.into()]),
        Operation::Rollback(which) => {
            words.extend(["rollback".into(), pid]);
            match which {
                Which::Last => {}
                Which::Id(id) => words.push(id.clone()),
                Which::All => words.push("--all".into()),
            }
        }
        Operation::Status => {
            words.extend(["status".into(), pid]);
            return words;
        }
    }
    words.push(format!("--timeout={:.3}", left.as_secs_f64().max(0.001)));
    if let Ok(serde_json::Value::String(policy)) = serde_json::to_value(request.policy) {
        words.push(format!("--policy={policy}"));
    }
    if request.operation == Operation::Apply {
        words.extend(request.selection.parts().map(|part| match part {
            Part::Module(path) => format!("--module={path}"),
            Part::Type(path) => format!("--type={path}"),
            Part::Function(path) => format!("--function={path}"),
        }));
        words.extend(request.leave_running.iter().map(|path| format!("--leave-running={path}")));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use livepatch_apply::{Policy, Selection};

    #[test]
    fn the_tools_words() {
        let mut request = Request {
            pid: 7,
            tid: 8,
            frames: Vec::new(),
            operation: Operation::Apply,
            until: Duration::ZERO,
            policy: Policy::Immediate,
            dry_run: false,
            selection: Selection::new().module("a::b"),
            leave_running: vec!["a::main".into()],
        };
        assert_eq!(
            tool_args(&request, Duration::from_millis(1500)).join(" "),
            "livepatch --json -vv apply 7 /proc/self/fd/3 --timeout=1.500 --policy=immediate --module=a::b --leave-running=a::main"
        );
        request.operation = Operation::Rollback(Which::Id("ab".into()));
        assert_eq!(
            tool_args(&request, Duration::from_millis(1500)).join(" "),
            "livepatch --json -vv rollback 7 ab --timeout=1.500 --policy=immediate"
        );
        request.operation = Operation::Status;
        assert_eq!(
            tool_args(&request, Duration::from_millis(1500)).join(" "),
            "livepatch --json -vv status 7"
        );
    }
}
