//! The program's side of an operation: one at a time, start the helper, wait for its report, at the deadline kill it.

use crate::answer::Answer;
use crate::command::Command;
use crate::error::{Error, HelperError};
use crate::files::Files;
use crate::frames;
use crate::gate::Pass;
use crate::options::Options;
use crate::report::Call;
use crate::request::{self, Operation, Request};
use crate::spawn::{self, Program, Spawned};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Part of the deadline that is left for undoing, and its bounds.
const UNDO_PART: u32 = 5;
const UNDO_MOST: Duration = Duration::from_secs(2);
/// Longest deadline; whoever asks for more means for ever.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long the end of a killed helper is waited for.
const END_LIMIT: Duration = Duration::from_secs(1);
/// Ends this close to the deadline are the deadline's.
const TIE: Duration = Duration::from_millis(20);
/// Log lines that a report keeps.
const MOST_LINES: usize = 1000;

/// Has an operation done.
pub(crate) fn run(options: &Options, operation: Operation, patch: &[u8]) -> Result<Answer, Error> {
    let started = Instant::now();
    let deadline = started + options.deadline.min(LONGEST);
    let _pass = Pass::take(deadline).ok_or_else(|| Error::InProgress { waited: started.elapsed() })?;
    let waited = started.elapsed();
    let left = deadline.saturating_duration_since(Instant::now());
    let request = Request {
        pid: livepatch_process::numbered::own_pid().0,
        tid: nix::unistd::gettid().as_raw(),
        frames: frames::own(),
        operation,
        until: request::now() + left.saturating_sub((left / UNDO_PART).min(UNDO_MOST)),
        policy: options.policy,
        dry_run: options.dry_run,
        selection: options.selection.clone(),
        leave_running: options.leave_running.clone(),
    };
    let command = Command::new(options, &request, left)?;
    let files = Files::new(&command, &request, patch)?;
    let helper = Helper::start(&command, files, deadline).map_err(|source| match source.kind() {
        io::ErrorKind::TimedOut => HelperError::Deadline { waited: started.elapsed() },
        _ => HelperError::Start { what: command.path.to_string_lossy().into_owned(), source },
    })?;
    let start = started.elapsed() - waited;
    let (json, log) = helper.finish(deadline, started)?;
    let call = Call { waited, start, total: started.elapsed(), log, json: Value::Null };
    Ok(Answer { json, call })
}

/// A running helper. It is killed when this value goes away.
struct Helper {
    process: Spawned,
    report: File,
    /// What it writes to standard error.
    said: File,
    ended: bool,
}

impl Helper {
    fn start(command: &Command, files: Files, deadline: Instant) -> io::Result<Self> {
        let Files { theirs, report, said } = files;
        let program = Program {
            path: command.path.clone(),
            args: command.args.clone(),
            env: command.env.clone(),
            files: theirs,
            // The tool may have rights of its own; the own executable must not gain any.
            same_rights: command.reads_request,
        };
        // Whoever was permitted may be dead by now, and its number somebody else's.
        let process = spawn::spawn(program, permit, deadline).inspect_err(|_| forbid())?;
        Ok(Self { process, report, said, ended: false })
    }

    /// Waits for the report and the end.
    fn finish(mut self, deadline: Instant, started: Instant) -> Result<(Value, Vec<String>), Error> {
        let mut bytes = Vec::new();
        loop {
            let (readable, ended) = self.wait(deadline)?;
            if readable {
                let mut chunk = [0; 16 << 10];
                // An error is treated like the end of the pipe: the process's own end is what counts.
                match self.report.read(&mut chunk).unwrap_or(0) {
                    0 => break,
                    length => bytes.extend_from_slice(&chunk[..length]),
                }
            } else if ended {
                break;
            } else if Instant::now() >= deadline {
                return Err(HelperError::Deadline { waited: started.elapsed() }.into());
            }
        }
        self.end(Instant::now() + END_LIMIT);
        let said = self.messages();
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(mut json) => {
                let log = match json["log"].take() {
                    Value::Array(lines) => {
                        lines.into_iter().filter_map(|l| Some(l.as_str()?.to_owned())).collect()
                    }
                    _ => said.lines().take(MOST_LINES).map(str::to_owned).collect(),
                };
                if let Some(object) = json.as_object_mut() {
                    object.remove("log");
                }
                Ok((json, log))
            }
            // The helper's own time limit is the program's, so either may come first.
            Err(_) if Instant::now() + TIE >= deadline => {
                Err(HelperError::Deadline { waited: started.elapsed() }.into())
            }
            Err(_) if bytes.is_empty() => Err(HelperError::Ended { said }.into()),
            Err(error) => Err(HelperError::Report { reason: error.to_string() }.into()),
        }
    }

    /// Waits for something to read or the helper's end: which of them it is.
    fn wait(&self, until: Instant) -> Result<(bool, bool), HelperError> {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that the wait does not end just before the deadline again and again.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut files = [
            PollFd::new(self.report.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.process.pidfd.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut files, timeout) {
            Ok(_) | Err(Errno::EINTR) => {
                Ok((files[0].any().unwrap_or(false), files[1].any().unwrap_or(false)))
            }
            Err(errno) => {
                Err(HelperError::Start { what: "a wait for the helper".into(), source: errno.into() })
            }
        }
    }

    /// Waits for the end of the process, which lets go of all threads that it traced.
    fn end(&mut self, until: Instant) {
        while !self.ended && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut files = [PollFd::new(self.process.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut files, timeout) {
                Ok(_) => self.ended = files[0].any().unwrap_or(false),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn messages(&mut self) -> String {
        let mut bytes = Vec::new();
        // Messages are worth having, but nothing depends on them.
        let _ = self.said.rewind().and_then(|()| (&self.said).take(64 << 10).read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let until = Instant::now() + END_LIMIT;
        self.process.wait_until(until);
        if !self.ended {
            kill(&self.process.pidfd);
            self.end(until);
        }
        forbid();
        // A child of ours only if orphans come to this program; then it may also have been collected already.
        let _ = spawn::wait_for(self.process.pid, libc::__WALL | libc::WNOHANG);
    }
}

/// Lets a process trace this one where Yama restricts tracing to ancestors. Elsewhere the kernel does not know the call.
fn permit(pid: i32) {
    let (pid, none): (_, libc::c_ulong) = (libc::c_ulong::from(pid.cast_unsigned()), 0);
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PTRACER, pid, none, none, none) };
}

fn forbid() {
    permit(0);
}

fn kill(pidfd: &OwnedFd) {
    let none = std::ptr::null_mut::<libc::siginfo_t>();
    // SAFETY: numbers and a null pointer, which stands for the signal's usual information.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, none, 0) };
}
