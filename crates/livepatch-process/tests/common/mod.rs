//! A live program to trace: builds `tests/programs/victim.rs`, starts it, and talks to it line by line.
#![allow(dead_code, reason = "every test binary uses its part")]

use livepatch_patch::RunAddr;
use livepatch_process::{Pid, Process, Seized, ThreadState, Tid};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine; reached only by a failing test.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Polls until the condition holds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/victim.rs");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // One for every test program, put in place whole: another run may be using it.
        let program = folder.join(concat!("victim-", env!("CARGO_CRATE_NAME")));
        let fresh = folder.join(format!("fresh-victim-{}", std::process::id()));
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let status = Command::new(rustc)
            .args(["--edition", "2024", "-O", "-o"])
            .args([&fresh, &source])
            .status()
            .expect("rustc runs");
        assert!(status.success());
        std::fs::rename(&fresh, &program).unwrap();
        program
    })
}

pub struct Victim {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    facts: HashMap<String, u64>,
}

impl Victim {
    pub fn start() -> Self {
        let mut child = Command::new(program())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the victim starts");
        let stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut facts = HashMap::new();
        loop {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            match line.trim().split_once(' ') {
                Some((name, value)) => facts.insert(name.to_owned(), value.parse().unwrap()),
                None => break assert_eq!(line, "ready\n"),
            };
        }
        Self { child, stdin, stdout, facts }
    }

    pub fn pid(&self) -> Pid {
        Pid(self.child.id() as i32)
    }

    pub fn process(&self) -> Process {
        Process::open(self.pid()).unwrap()
    }

    pub fn seize(&self) -> Seized {
        Seized::seize_all(&self.process(), soon()).unwrap()
    }

    pub fn fact(&self, name: &str) -> RunAddr {
        RunAddr(self.facts[name])
    }

    pub fn word(&self, process: &Process, name: &str) -> u64 {
        process.read_u64(self.fact(name)).unwrap()
    }

    pub fn send(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    pub fn receive(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// For a victim that is not traced: a traced one's new threads and signals wait for its tracer.
    pub fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.receive()
    }

    /// For a victim that is traced by `seized`.
    pub fn ask_traced(&mut self, seized: &mut Seized, line: &str) -> String {
        self.send(line);
        let stdout = self.stdout.get_ref();
        let ready = || {
            nix::poll::poll(
                &mut [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(stdout), nix::poll::PollFlags::POLLIN)],
                nix::poll::PollTimeout::ZERO,
            )
            .unwrap()
                > 0
        };
        wait_for("an answer", || {
            seized.pump(Instant::now() + Duration::from_millis(1)).unwrap();
            ready()
        });
        self.receive()
    }

    pub fn kill(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid().0), signal).unwrap();
    }

    pub fn state(&self) -> Option<ThreadState> {
        thread_state(self.pid(), self.pid().leader())
    }

    pub fn tasks(&self) -> Vec<Tid> {
        tasks(self.pid())
    }

    /// Waits until the thread sleeps in the system call of that number.
    pub fn wait_in_syscall(&self, tid: Tid, number: u64) {
        let path = format!("/proc/{}/task/{tid}/syscall", self.pid());
        wait_for("a system call", || {
            let text = std::fs::read_to_string(&path).unwrap();
            text.split(' ').next() == Some(&number.to_string())
        });
    }

    /// The victim is untraced and does its work.
    pub fn assert_well(&mut self) {
        assert_eq!(self.ask("echo well"), "echo well");
        for tid in self.tasks() {
            let status = std::fs::read_to_string(format!("/proc/{}/task/{tid}/status", self.pid()));
            // A thread may have ended meanwhile.
            let Ok(status) = status else { continue };
            assert!(status.contains("TracerPid:\t0\n"), "thread {tid} is still traced");
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Read by other means than the library's.
pub fn thread_state(pid: Pid, tid: Tid) -> Option<ThreadState> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    Some(match stat.rsplit(')').next()?.trim().chars().next()? {
        'R' => ThreadState::Running,
        'S' => ThreadState::Sleeping,
        'D' => ThreadState::Uninterruptible,
        'Z' => ThreadState::Zombie,
        'T' => ThreadState::Stopped,
        't' => ThreadState::TracingStop,
        letter => ThreadState::Other(letter as u8),
    })
}

pub fn tasks(pid: Pid) -> Vec<Tid> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    entries.map(|entry| Tid(entry.unwrap().file_name().to_str().unwrap().parse().unwrap())).collect()
}
