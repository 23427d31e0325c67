//! Exit codes, and which typed error of the libraries ends with which of them.
//!
//! This file is the whole contract: every error that a command can meet becomes a [`Failure`] here, by matches
//! without a catch-all arm, so that a new error variant does not compile before somebody has decided its code.

#[cfg(feature = "apply")]
use livepatch_apply::error::{ApplyError, ThreadInside};
#[cfg(feature = "apply")]
use livepatch_apply::{Mismatch, SelectError};
use livepatch_patch::{ContainerError, chain};
use serde_json::{Value, json};
use std::path::Path;

/// What the tools exit with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command did what it was asked.
    Done = 0,
    /// An internal error, or the environment does not allow the work (disk full, cargo missing, build failed).
    Error = 1,
    /// Wrong usage.
    Usage = 2,
    /// Nothing to patch: the rebuild equals the baseline.
    Nothing = 3,
    /// The change cannot be proven safe. Findings say what and why.
    Refused = 4,
    /// Not quiescent by the deadline. Nothing changed.
    Busy = 5,
    /// Another binary, build or architecture, or a damaged patch. Nothing changed.
    Mismatch = 6,
    /// No permission to look into or change the process.
    Permission = 7,
    /// The process ended under our hands, or there is none.
    Lost = 8,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with.
    pub exit: Exit,
    /// What happened, to what.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Reasons for a refusal.
    pub findings: Vec<Rendered>,
    /// Further members of the JSON object.
    pub extra: Value,
}

/// A finding in both forms.
#[derive(Debug)]
pub struct Rendered {
    /// For `--json`.
    pub json: Value,
    /// For people.
    pub human: String,
}

impl Failure {
    /// A failure with a code and a message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), help: None, findings: Vec::new(), extra: Value::Null }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Puts the file that the failure is about before the message.
    #[must_use]
    pub fn about(mut self, file: &Path) -> Self {
        self.message = format!("{}: {}", file.display(), self.message);
        self
    }
}

/// Whatever is wrong with a patch file, it is not for this tool to use: [`Exit::Mismatch`].
impl From<ContainerError> for Failure {
    fn from(error: ContainerError) -> Self {
        Self::new(Exit::Mismatch, chain(&error))
    }
}

/// What the production side says, by the kind that it already distinguishes.
#[cfg(feature = "apply")]
impl From<ApplyError> for Failure {
    fn from(error: ApplyError) -> Self {
        let (message, details) = (chain(&error), error.details());
        match error {
            ApplyError::Busy { inside, .. } => {
                let mut failure = Self::new(Exit::Busy, message)
                    .help("nothing changed; try again, with a longer --timeout, or see who is inside");
                failure.findings = inside.iter().map(thread_inside).collect();
                failure.extra = details;
                failure
            }
            ApplyError::Held { .. } => {
                let mut failure = Self::new(Exit::Busy, message).help("nothing changed");
                failure.extra = details;
                failure
            }
            ApplyError::Mismatch(mismatch) => Self::new(Exit::Mismatch, message).help(way_out(&mismatch)),
            ApplyError::Permission(_) => Self::new(Exit::Permission, message),
            ApplyError::Lost(_) => Self::new(Exit::Lost, message),
            ApplyError::Refused { .. } => Self::new(Exit::Refused, message),
            ApplyError::Selection(SelectError::NotHeld { .. }) => {
                let mut failure =
                    Self::new(Exit::Usage, message).help("`livepatch inspect FILE` shows what a patch holds");
                failure.extra = details;
                failure
            }
            ApplyError::Selection(SelectError::Indivisible { .. }) => Self::new(Exit::Refused, message)
                .help("apply the whole patch, or make one of a smaller change"),
            ApplyError::Selection(SelectError::Incomplete { .. }) => {
                let mut failure = Self::new(Exit::Refused, message)
                    .help("select what is missing, too, or apply the whole patch");
                failure.extra = details;
                failure
            }
            ApplyError::NothingToRollBack(_) => Self::new(Exit::Usage, message)
                .help("`livepatch status PID` lists the patches of the process"),
            ApplyError::Environment { .. } | ApplyError::NotUndone { .. } => Self::new(Exit::Error, message),
        }
    }
}

#[cfg(feature = "apply")]
fn way_out(mismatch: &Mismatch) -> &'static str {
    match mismatch {
        Mismatch::NoSuchBuild { .. } => {
            "nothing changed; `livepatch ps` shows which process runs which build, and `cargo livepatch baseline list` of which \
             builds there is a baseline to make a patch from"
        }
        Mismatch::Patch(_) | Mismatch::Outside { .. } => {
            "nothing changed; copy the patch file again, or make it anew"
        }
        Mismatch::Code { .. } | Mismatch::Entry { .. } => {
            "nothing changed; a debugger or another tool wrote there: have it take that back, or restart the program"
        }
        Mismatch::Tls | Mismatch::Core(_) | Mismatch::Contents { .. } => "nothing changed",
    }
}

#[cfg(feature = "apply")]
fn thread_inside(thread: &ThreadInside) -> Rendered {
    let mut human = format!("thread {} ({}): {}", thread.tid, thread.name, thread.reason);
    for frame in &thread.backtrace {
        human.push_str("\n    at ");
        human.push_str(frame);
    }
    Rendered { json: json!({"thread": thread}), human }
}

/// What the recording side says. A change that is unfit for a patch is no error there but a finding.
#[cfg(feature = "build")]
impl From<livepatch_build::Error> for Failure {
    fn from(error: livepatch_build::Error) -> Self {
        use livepatch_build::Error as E;
        let exit = match &error {
            E::Io { .. }
            | E::Spawn { .. }
            | E::Failed { .. }
            | E::Cargo { .. }
            | E::Config(_)
            | E::NoHome => Exit::Error,
            E::NotRecorded { .. } | E::NoArtifact | E::Map { .. } | E::Image { .. } => Exit::Error,
            E::NotUtf8 { .. } | E::Target(_) => Exit::Error,
            // The user has to name another baseline.
            E::NoBaseline { .. } | E::Ambiguous { .. } | E::SeveralArtifacts { .. } => Exit::Usage,
            // What is there does not fit: a broken archive, another format, another compiler, a renamed program.
            E::Damaged { .. } | E::Version { .. } | E::Toolchain { .. } | E::ArtifactGone { .. } => {
                Exit::Mismatch
            }
        };
        Self::new(exit, chain(&error))
    }
}

/// What stops the comparison itself: inputs that cannot be read, or an error of livepatch.
#[cfg(feature = "build")]
impl From<livepatch_build::create::CreateError> for Failure {
    fn from(error: livepatch_build::create::CreateError) -> Self {
        use livepatch_build::create::CreateError as E;
        match error {
            E::Source(error) => error.into(),
            E::Image(_) | E::Diff(_) | E::Guard(_) | E::Container(_) | E::Link(_) | E::NoBuildId => {
                Self::new(Exit::Error, chain(&error))
            }
        }
    }
}
