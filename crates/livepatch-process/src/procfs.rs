//! The few facts of `/proc` that tracing needs, parsed from bytes.
//!
//! Thread names are arbitrary bytes chosen by the program, and so are paths; parsers that go through UTF-8 strings
//! fail on them. `stat` is split at the *last* `)` because a name may hold parentheses and spaces.

use crate::{Pid, Tid, numbered};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Whether the ids in `/proc` are those by which this process knows others.
pub(crate) fn is_of_own_namespace() -> io::Result<bool> {
    match std::fs::read_link("/proc/self") {
        Ok(own) => Ok(own.as_os_str() == numbered::own_pid().to_string().as_str()),
        // There is no process of this one's in it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a thread does, from the third field of `/proc/PID/task/TID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadState {
    /// `R`: running or ready to run.
    Running,
    /// `S`: sleeping; a signal or an interrupt wakes it.
    Sleeping,
    /// `D`: waiting where nothing but the event wakes it (disk, vfork).
    Uninterruptible,
    /// `Z`: has exited, not yet reaped. For the first thread this lasts as long as other threads live.
    Zombie,
    /// `T`: stopped by SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU.
    Stopped,
    /// `t`: stopped by a tracer.
    TracingStop,
    /// `X`: dead, about to go.
    Dead,
    /// A letter that is none of these (`I`, `P`, …).
    Other(u8),
}

impl ThreadState {
    fn from_letter(letter: u8) -> Self {
        match letter {
            b'R' => Self::Running,
            b'S' => Self::Sleeping,
            b'D' => Self::Uninterruptible,
            b'Z' => Self::Zombie,
            b'T' => Self::Stopped,
            b't' => Self::TracingStop,
            b'X' | b'x' => Self::Dead,
            other => Self::Other(other),
        }
    }

    /// Whether the thread has exited: it runs no instruction any more.
    pub fn has_exited(self) -> bool {
        matches!(self, Self::Zombie | Self::Dead)
    }
}

impl fmt::Display for ThreadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Sleeping => f.write_str("sleeping"),
            Self::Uninterruptible => f.write_str("uninterruptible"),
            Self::Zombie => f.write_str("exited"),
            Self::Stopped => f.write_str("stopped by a signal"),
            Self::TracingStop => f.write_str("stopped by a tracer"),
            Self::Dead => f.write_str("dead"),
            Self::Other(letter) => write!(f, "state {}", char::from(*letter)),
        }
    }
}

/// What `/proc/PID/task/TID/status` says about a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Effective user id.
    pub euid: u32,
    /// Real user id.
    pub uid: u32,
    /// What the thread does.
    pub state: ThreadState,
    /// Number of threads of the process, exited first thread included.
    pub threads: usize,
    /// The parent process.
    pub parent: Pid,
    /// The process's id in its own PID namespace, if the kernel tells.
    pub own_number: Option<i32>,
    /// The thread that traces this thread.
    pub tracer: Option<Tid>,
    /// Whether the thread runs under a seccomp filter, which may answer a remote system call by a signal.
    pub seccomp: bool,
    /// Number of its seccomp filters; 0 on a kernel that does not tell.
    pub seccomp_filters: u32,
    /// Whether the thread has a user shadow stack (CET): a forged return address would fault.
    pub shadow_stack: bool,
    /// Signals that the thread blocks; bit `n - 1` stands for signal `n`.
    pub blocked: u64,
    /// Signals that the process has a handler for.
    pub caught: u64,
    /// Whether the process has user memory. Kernel threads and zombies have none.
    pub has_memory: bool,
}

pub(crate) fn task_dir(pid: Pid, tid: Tid) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/task/{tid}"))
}

/// All threads of the process in the kernel's order, exited ones that are not reaped included.
pub(crate) fn task_ids(pid: Pid) -> io::Result<Vec<Tid>> {
    Ok(numbers_in(format!("/proc/{pid}/task"))?.into_iter().map(Tid).collect())
}

/// All processes that this user sees.
///
/// # Errors
/// The list cannot be read.
pub fn process_ids() -> io::Result<Vec<Pid>> {
    Ok(numbers_in("/proc")?.into_iter().map(Pid).collect())
}

/// The names in a folder that are numbers.
fn numbers_in(folder: impl AsRef<Path>) -> io::Result<Vec<i32>> {
    let names = numbered::names_in(folder)?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// The process that a thread belongs to, by the thread's id alone.
pub(crate) fn process_of(tid: Tid) -> Option<Pid> {
    let text = std::fs::read(format!("/proc/{tid}/status")).ok()?;
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Tgid:"))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok().map(Pid)
}

/// The thread's name (`comm`), invalid UTF-8 replaced; `None` if the thread is gone.
pub(crate) fn name(pid: Pid, tid: Tid) -> Option<String> {
    let name = std::fs::read(task_dir(pid, tid).join("comm")).ok()?;
    Some(String::from_utf8_lossy(name.trim_ascii_end()).into_owned())
}

/// The thread's state, `None` if the thread is gone.
pub(crate) fn thread_state(pid: Pid, tid: Tid) -> Option<ThreadState> {
    let stat = read_page(task_dir(pid, tid).join("stat")).ok()?;
    parse_stat_state(&stat)
}

/// The fields behind the name.
fn stat_fields(stat: &[u8]) -> Option<&[u8]> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    stat.get(name_end + 2..)
}

pub(crate) fn parse_stat_state(stat: &[u8]) -> Option<ThreadState> {
    stat_fields(stat)?.first().map(|&letter| ThreadState::from_letter(letter))
}

/// Whether it is a thread of the kernel, and not of a program.
pub(crate) fn is_kernel_thread(pid: Pid) -> bool {
    /// `PF_KTHREAD` of the kernel's `include/linux/sched.h`.
    const KERNEL_THREAD: u32 = 0x0020_0000;
    let stat = read_page(task_dir(pid, pid.leader()).join("stat")).unwrap_or_default();
    parse_stat_flags(&stat).is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

/// Whether a thread of this name may work for the kernel: for io_uring, for vhost. To be asked first, as the name is cheap to read.
pub(crate) fn is_worker_name(name: &[u8]) -> bool {
    [&b"iou-"[..], b"vhost-"].iter().any(|start| name.starts_with(start))
}

/// Whether it is a thread that the kernel keeps in the process to work for it. It never runs code of the program, and a request to
/// stop would end the read or write that it carries out with `EINTR`.
pub(crate) fn parse_stat_is_worker(stat: &[u8]) -> bool {
    /// `PF_IO_WORKER` and `PF_USER_WORKER` (since Linux 6.4) of the kernel's `include/linux/sched.h`.
    const WORKER: u32 = 0x10 | 0x4000;
    parse_stat_flags(stat).is_some_and(|flags| flags & WORKER != 0)
}

/// Those of the signals 1 to 31 that the thread blocks.
pub(crate) fn parse_stat_blocked(stat: &[u8]) -> Option<u64> {
    stat_number(stat, 32)
}

fn parse_stat_flags(stat: &[u8]) -> Option<u32> {
    stat_number(stat, 9)
}

/// A field by its number in proc(5); the fields behind the name begin with the third.
fn stat_number<T: std::str::FromStr>(stat: &[u8], field: usize) -> Option<T> {
    let fields = std::str::from_utf8(stat_fields(stat)?).ok()?;
    fields.split_ascii_whitespace().nth(field - 3)?.parse().ok()
}

/// Whether a thread has user memory: it gives that up early on its way to its end.
pub(crate) fn has_memory(pid: Pid, tid: Tid) -> bool {
    let sizes = read_page(task_dir(pid, tid).join("statm"));
    sizes.is_ok_and(|sizes| !sizes.starts_with(b"0 "))
}

/// Ticks of a second in `/proc` on x86-64 (`USER_HZ`).
const TICKS: u64 = 100;

/// When a process was started, to the second or so.
pub(crate) fn started(pid: Pid) -> io::Result<SystemTime> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "unexpected format of /proc/PID/stat");
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    let ticks = parse_stat_started(&stat).ok_or_else(invalid)?;
    let machine = std::fs::read_to_string("/proc/stat")?;
    let boot = machine.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    let boot = SystemTime::UNIX_EPOCH + Duration::from_secs(boot.ok_or_else(invalid)?);
    Ok(boot + Duration::from_millis(ticks * (1000 / TICKS)))
}

fn parse_stat_started(stat: &[u8]) -> Option<u64> {
    stat_number(stat, 22)
}

/// The kernel function a thread waits in, if the kernel tells.
pub(crate) fn wait_channel(pid: Pid, tid: Tid) -> Option<String> {
    let name = std::fs::read_to_string(task_dir(pid, tid).join("wchan")).ok()?;
    (!name.is_empty() && name != "0").then_some(name)
}

fn read_page(path: PathBuf) -> io::Result<Vec<u8>> {
    read_small(&File::open(path)?)
}

/// Reads a file from its start, most often with one system call. The kernel prints such a file as a whole and says 0 for its size:
/// what leaves room in the buffer has come to its end.
pub(crate) fn read_small(file: &File) -> io::Result<Vec<u8>> {
    let mut text = vec![0; 4096];
    let mut len = 0;
    loop {
        len += numbered::read_at(file, &mut text[len..], len as u64)?;
        if len < text.len() {
            text.truncate(len);
            return Ok(text);
        }
        text.resize(len * 2, 0);
    }
}

pub(crate) fn status(pid: Pid, tid: Tid) -> io::Result<Status> {
    parse_status(&read_page(task_dir(pid, tid).join("status"))?).ok_or_else(unexpected_status)
}

pub(crate) fn unexpected_status() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unexpected format of /proc/PID/status")
}

pub(crate) fn parse_status(text: &[u8]) -> Option<Status> {
    let field = |name: &str| {
        text.split(|&byte| byte == b'\n').find_map(|line| {
            let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
            std::str::from_utf8(value).ok().map(str::trim)
        })
    };
    let uids: Vec<u32> = field("Uid")?.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect();
    let tracer: i32 = field("TracerPid")?.parse().ok()?;
    Some(Status {
        uid: *uids.first()?,
        euid: *uids.get(1)?,
        state: ThreadState::from_letter(*field("State")?.as_bytes().first()?),
        threads: field("Threads")?.parse().ok()?,
        parent: Pid(field("PPid")?.parse().ok()?),
        own_number: field("NStgid").and_then(|ids| ids.split_ascii_whitespace().last()?.parse().ok()),
        tracer: (tracer != 0).then_some(Tid(tracer)),
        seccomp: field("Seccomp").is_some_and(|mode| mode != "0"),
        seccomp_filters: field("Seccomp_filters").and_then(|count| count.parse().ok()).unwrap_or(0),
        shadow_stack: field("x86_Thread_features")
            .is_some_and(|features| features.split_ascii_whitespace().any(|feature| feature == "shstk")),
        blocked: field("SigBlk").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0),
        caught: field("SigCgt").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0),
        has_memory: field("VmSize").is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_state() {
        assert_eq!(parse_stat_state(b"12 (a) R (b) S 1 2 3"), Some(ThreadState::Sleeping));
        assert_eq!(parse_stat_state(b"12 (\xff) Z 1 2 3"), Some(ThreadState::Zombie));
        assert_eq!(parse_stat_state(b"12"), None);
        let kernel = parse_stat_flags(b"2 (k t) S 0 0 0 0 -1 2129984 0").unwrap();
        assert_eq!(kernel & 0x0020_0000, 0x0020_0000);
        assert_eq!(parse_stat_flags(b"2 (k) S 0"), None);
        assert!(
            parse_stat_is_worker(b"9 (iou-wrk-7) S 1 7 7 0 -1 4210768 0") && is_worker_name(b"iou-wrk-7\n")
        );
        assert!(!parse_stat_is_worker(b"9 (iou-wrk-7) S 1 7 7 0 -1 4194368 0") && !is_worker_name(b"w0\n"));
    }

    #[test]
    fn status_with_a_name_that_is_no_text() {
        let text = b"Name:\t\xff\xfe\nState:\tT (stopped)\nPPid:\t6\nNStgid:\t12\t3\nTracerPid:\t7\nUid:\t1\t2\t3\t4\nVmSize:\t 5 kB\nThreads:\t9\n\
            SigBlk:\t0000000000000010\nSigCgt:\t00000001000004c0\nSeccomp:\t2\nSeccomp_filters:\t3\nx86_Thread_features:\tshstk wrss \n";
        let expected = Status {
            uid: 1,
            euid: 2,
            state: ThreadState::Stopped,
            threads: 9,
            parent: Pid(6),
            own_number: Some(3),
            tracer: Some(Tid(7)),
            seccomp: true,
            seccomp_filters: 3,
            shadow_stack: true,
            blocked: 0x10,
            caught: 0x1_0000_04c0,
            has_memory: true,
        };
        assert_eq!(parse_status(text), Some(expected));
    }

    #[test]
    fn the_start_of_a_process() {
        let now = SystemTime::now();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let started = started(Pid(child.id() as i32));
        child.kill().unwrap();
        child.wait().unwrap();
        let started = started.unwrap();
        let apart = now.duration_since(started).or_else(|_| started.duration_since(now)).unwrap();
        assert!(apart < Duration::from_secs(60), "{apart:?}");
        assert_eq!(
            parse_stat_started(b"12 (a) R 1) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 77 0"),
            Some(77)
        );
    }

    #[test]
    fn blocked_signals_in_both_files() {
        let stat =
            b"12 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 77 20 21 22 23 24 25 26 27 28 16 30";
        assert_eq!(parse_stat_blocked(stat), Some(16));
        let pid = Pid(std::process::id() as i32);
        let stat = read_page(task_dir(pid, pid.leader()).join("stat")).unwrap();
        let status = status(pid, pid.leader()).unwrap();
        assert_eq!(parse_stat_blocked(&stat), Some(status.blocked & 0x7fff_ffff));
    }

    #[test]
    fn own_status() {
        let pid = Pid(std::process::id() as i32);
        let status = status(pid, pid.leader()).unwrap();
        assert!(status.has_memory && status.tracer.is_none() && status.threads >= 1);
        assert!(task_ids(pid).unwrap().contains(&pid.leader()));
    }
}
