//! The running program. It prints `ready`; each line `step` that it reads makes it run one round, print the round's
//! lines and then a line with a single dot.

use crate::{Failed, fail};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// No round may take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// A running program. It is killed when this value goes away.
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Program {
    /// Starts it and waits for `ready`.
    ///
    /// # Errors
    /// If it does not start or says something else.
    pub fn start(mut command: Command) -> Result<Self, Failed> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut program = Self { child, stdin, lines };
        match program.line()?.as_str() {
            "ready" => Ok(program),
            other => fail(format!("the program said `{other}` and not `ready`")),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs one round and returns its lines.
    ///
    /// # Errors
    /// If the program ended or did not answer in time.
    pub fn round(&mut self) -> Result<Vec<String>, Failed> {
        self.send("step")?;
        let mut lines = Vec::new();
        loop {
            match self.line()? {
                dot if dot == "." => return Ok(lines),
                line => lines.push(line),
            }
        }
    }

    /// Sends a line.
    ///
    /// # Errors
    /// If the program ended.
    pub fn send(&mut self, line: &str) -> Result<(), Failed> {
        let stdin = self.stdin.as_mut().ok_or("the program's input is closed")?;
        Ok(writeln!(stdin, "{line}")?)
    }

    /// The next line that it prints.
    ///
    /// # Errors
    /// If it ended or printed nothing in time.
    pub fn line(&mut self) -> Result<String, Failed> {
        self.lines.recv_timeout(LIMIT).map_err(|_| match self.child.try_wait() {
            Ok(Some(status)) => format!("the program ended: {status}").into(),
            _ => format!("the program printed nothing for {LIMIT:?}").into(),
        })
    }

    /// Closes its input and waits for a regular end.
    ///
    /// # Errors
    /// If it ended with an error.
    pub fn finish(mut self) -> Result<(), Failed> {
        drop(self.stdin.take());
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { fail(format!("the program ended with {status}")) }
    }

    /// Kills it and waits until nobody has its output open any more.
    ///
    /// # Errors
    /// If somebody has for longer than a round may take.
    pub fn kill_and_wait_for_its_output(mut self) -> Result<(), Failed> {
        self.child.kill()?;
        self.child.wait()?;
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    return fail("the program is dead and somebody has its output open");
                }
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only if the program has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
