//! A process that may be patched: what `/proc` says about it, and its memory.

use crate::error::{ProcessError, Tracer};
use crate::maps::{self, Mapping};
use crate::pause::Pause;
use crate::procfs::{self, Status, ThreadState};
use crate::tasks::Tasks;
use crate::{Pid, Tid, sys, tracer};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the threads of a killed process may take to lose one after the other what they have.
const LONGEST_END: Duration = Duration::from_millis(50);

/// An open process: 64-bit x86-64, alive, traceable by this user.
///
/// Holds the process's memory (`/proc/PID/mem`) and a pidfd, both of which stay with *this* process: when its id is
/// taken over by another one, or the program is replaced by `execve`, operations answer [`ProcessError::Lost`].
/// Clones share both.
#[derive(Clone, Debug)]
pub struct Process {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub pid: Pid,
    pub mem: File,
    maps: File,
    pub tasks: Tasks,
    pidfd: OwnedFd,
    own_uid: u32,
}

impl Process {
    /// Opens the process after checking that it can be traced and patched at all. Changes nothing in it.
    ///
    /// # Errors
    /// [`ProcessError::AlreadyTraced`] among others.
    pub fn open(pid: Pid) -> Result<Self, ProcessError> {
        let process = Self::open_to_read(pid)?;
        // Whoever traces some other thread is met when that one is to be attached to, before anything is written.
        let tid = process.live_thread()?;
        if let Some(tracer) = tracer_of(pid, tid) {
            return Err(ProcessError::AlreadyTraced { pid, tid, tracer });
        }
        Ok(process)
    }

    /// Opens the process even if somebody traces it, for looking only.
    pub fn open_to_read(pid: Pid) -> Result<Self, ProcessError> {
        let pidfd = sys::pidfd_open(pid).map_err(|errno| match errno {
            // EINVAL: not a possible id, or the id of a thread that is not the first of its process.
            Errno::ESRCH | Errno::EINVAL | Errno::ENOENT => ProcessError::NoSuchProcess { pid },
            errno => ProcessError::io(pid, "open a pidfd", errno),
        })?;
        let read = |error| ProcessError::io(pid, "read /proc/self", error);
        if !procfs::is_of_own_namespace().map_err(read)? {
            let hint = "/proc is that of another PID namespace, where this id stands for another process; mount one of this namespace \
                        (`mount -t proc proc /proc`, or `unshare --mount-proc`)"
                .to_owned();
            return Err(ProcessError::Permission { pid, hint });
        }
        let status = open_status(pid)?;
        if pid == crate::numbered::own_pid() {
            let hint = "a process cannot trace itself, start the tool as a process of its own".to_owned();
            return Err(ProcessError::Permission { pid, hint });
        }
        let denied = |action: &str, error: io::Error| access_error(pid, &status, action, error);
        let tid = any_live_thread(pid)?;
        let dir = procfs::task_dir(pid, tid);
        let mut exe = File::open(dir.join("exe")).map_err(|error| denied("open the executable", error))?;
        check_architecture(pid, &mut exe)?;
        let mem = File::options()
            .read(true)
            .write(true)
            .open(dir.join("mem"))
            .map_err(|error| denied("open the memory", error))?;
        let maps = File::open(dir.join("maps")).map_err(|error| denied("open the memory map", error))?;
        let tasks = Tasks::open(pid).map_err(|error| denied("open the list of threads", error))?;
        // Everything above was opened by id. That the first process of that id still lives shows that all of it
        // belongs to that one.
        if sys::pidfd_ended(pidfd.as_fd()) {
            return Err(ProcessError::NoSuchProcess { pid });
        }
        Ok(Self { inner: Arc::new(Inner { pid, mem, maps, tasks, pidfd, own_uid: status.euid }) })
    }

    /// Its id.
    pub fn pid(&self) -> Pid {
        self.inner.pid
    }

    /// Effective user id of the process at the time it was opened.
    pub fn uid(&self) -> u32 {
        self.inner.own_uid
    }

    /// Whether a thread of it has not exited. `execve` does not end a process.
    pub fn is_alive(&self) -> bool {
        self.live_thread().is_ok() && !self.is_reapable()
    }

    /// Whether it is about to end, or has: a process that ends loses its memory before its threads count as exited.
    pub(crate) fn is_ending(&self) -> bool {
        !self.is_alive() || self.live_thread().map_or(true, |tid| !procfs::has_memory(self.pid(), tid))
    }

    /// Whether it is ending, after something of it could not be read or written: the threads of a process that is killed lose files
    /// and memory one by one, and what is missing of one is looked for before the next has lost its own.
    fn is_going(&self) -> bool {
        let deadline = Instant::now() + LONGEST_END;
        let mut pause = Pause::default();
        loop {
            if self.is_ending() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            pause.take(deadline);
        }
    }

    /// Whether all threads have exited and been collected, but perhaps the first one. That of a traced process waits for the
    /// tracer, so it may have ended without this being true yet.
    pub(crate) fn is_reapable(&self) -> bool {
        sys::pidfd_ended(self.inner.pidfd.as_fd())
    }

    /// The memory map, in address order. While threads run it is a snapshot that may be out of date.
    pub fn maps(&self) -> Result<Vec<Mapping>, ProcessError> {
        let text = self.read_live("maps", std::fs::read)?;
        maps::parse(&text)
            .filter(|maps| !maps.is_empty())
            .ok_or_else(|| self.io_error("parse the memory map", io::Error::from(io::ErrorKind::InvalidData)))
    }

    /// The mapping that holds an address, if there is one: for a process with many mappings faster than [`Self::maps`] where the
    /// kernel can be asked for it (Linux 6.11).
    pub fn mapping_at(&self, addr: RunAddr) -> Result<Option<Mapping>, ProcessError> {
        // The descriptor stays with the address space that it was opened on.
        match sys::query_map(self.inner.maps.as_fd(), addr) {
            Ok((answer, name)) => Ok(Some(Mapping::queried(&answer, &name))),
            Err(Errno::ENOENT) => Ok(None),
            Err(_) => Ok(self.maps()?.into_iter().find(|mapping| mapping.contains(addr))),
        }
    }

    /// The executable's path in the target's mount namespace, as the kernel prints it (with ` (deleted)` after the path of a
    /// removed file). To read the file itself use [`Self::open_exe`].
    pub fn exe(&self) -> Result<PathBuf, ProcessError> {
        self.read_live("exe", std::fs::read_link)
    }

    /// The file that the process executes, even if it was removed or lies in another mount namespace.
    pub fn open_exe(&self) -> Result<File, ProcessError> {
        self.read_live("exe", File::open)
    }

    /// What the kernel told the program at its start: pairs of a tag and a value, eight bytes each (getauxval(3)).
    pub fn auxv(&self) -> Result<Vec<u8>, ProcessError> {
        self.read_live("auxv", std::fs::read)
    }

    /// The file behind a mapping, through `/proc/PID/map_files`: right even if it was removed, replaced or lies in another
    /// mount namespace. Needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE on some kernels. That it cannot be had says nothing about the process.
    pub fn open_mapped_file(&self, mapping: &Mapping) -> io::Result<File> {
        let (start, end) = (mapping.range.start.0, mapping.range.end.0);
        File::open(format!("/proc/{}/map_files/{start:x}-{end:x}", self.pid()))
    }

    /// Facts about the first thread that is still alive.
    pub fn status(&self) -> Result<Status, ProcessError> {
        let tid = self.live_thread()?;
        self.inner.tasks.status(tid).map_err(|error| self.io_error("read the status", error))
    }

    /// All threads that have not exited. While the process runs it is a snapshot that may be out of date.
    pub fn threads(&self) -> Result<Vec<Tid>, ProcessError> {
        let mut tids =
            procfs::task_ids(self.pid()).map_err(|error| self.io_error("list the threads", error))?;
        // Only the first thread stays listed after its end while the process lives; a thread that is about to be
        // reaped looks alive to any caller a moment before, too.
        let leader = self.pid().leader();
        tids.retain(|&tid| tid != leader || self.thread_state(tid).is_some_and(|state| !state.has_exited()));
        if tids.is_empty() || !self.is_alive() {
            return Err(ProcessError::ended(self.pid()));
        }
        Ok(tids)
    }

    /// What the thread does, or `None` if it is gone.
    pub fn thread_state(&self, tid: Tid) -> Option<ThreadState> {
        self.inner.tasks.state(tid)
    }

    /// Facts about one thread.
    pub fn thread_status(&self, tid: Tid) -> Result<Status, ProcessError> {
        self.inner.tasks.status(tid).map_err(|error| self.io_error("read a thread's status", error))
    }

    /// Those of the signals 1 to 31 that a thread blocks, bit `n - 1` for signal `n`; `None` if it is gone.
    pub fn blocked_signals(&self, tid: Tid) -> Option<u64> {
        self.inner.tasks.blocked_signals(tid)
    }

    /// The thread's name (`comm`), invalid UTF-8 replaced; `None` if the thread is gone.
    pub fn thread_name(&self, tid: Tid) -> Option<String> {
        procfs::name(self.pid(), tid)
    }

    /// A thread that has not exited, the first one if possible.
    pub(crate) fn live_thread(&self) -> Result<Tid, ProcessError> {
        let leader = self.pid().leader();
        match self.thread_state(leader) {
            Some(state) if !state.has_exited() => Ok(leader),
            _ => any_live_thread(self.pid()),
        }
    }

    /// Reads a `/proc` entry of a live thread: the first thread's entries are empty once it has exited.
    fn read_live<T>(&self, entry: &str, read: impl Fn(PathBuf) -> io::Result<T>) -> Result<T, ProcessError> {
        let tid = self.live_thread()?;
        let value = read(procfs::task_dir(self.pid(), tid).join(entry))
            .map_err(|error| self.io_error(&format!("read /proc/PID/{entry}"), error))?;
        // Without this check the answer might be about a later process of the same id.
        if !self.is_alive() {
            return Err(ProcessError::ended(self.pid()));
        }
        Ok(value)
    }

    /// [`ProcessError::Lost`] if the process has ended, else the error as it is.
    pub(crate) fn io_error(&self, action: &str, error: io::Error) -> ProcessError {
        if self.is_going() {
            return ProcessError::ended(self.pid());
        }
        match error.kind() {
            io::ErrorKind::PermissionDenied => match procfs::status(self.pid(), self.pid().leader()) {
                Ok(status) => access_error(self.pid(), &status, action, error),
                Err(_) => ProcessError::io(self.pid(), action, error),
            },
            _ => ProcessError::io(self.pid(), action, error),
        }
    }
}

fn open_status(pid: Pid) -> Result<Status, ProcessError> {
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ProcessError::NoSuchProcess { pid },
        _ if error.raw_os_error() == Some(Errno::ESRCH as i32) => ProcessError::NoSuchProcess { pid },
        _ => ProcessError::io(pid, "read the status", error),
    };
    let tid = any_live_thread(pid).map_err(|_| ProcessError::NoSuchProcess { pid })?;
    let status = procfs::status(pid, tid).map_err(gone)?;
    match status.has_memory {
        true => Ok(status),
        false if procfs::is_kernel_thread(pid) => Err(ProcessError::KernelThread { pid }),
        // It has ended, or is about to.
        false => Err(ProcessError::NoSuchProcess { pid }),
    }
}

fn any_live_thread(pid: Pid) -> Result<Tid, ProcessError> {
    let alive = |tid: &Tid| procfs::thread_state(pid, *tid).is_some_and(|state| !state.has_exited());
    if alive(&pid.leader()) {
        return Ok(pid.leader());
    }
    let tids = procfs::task_ids(pid).unwrap_or_default();
    tids.into_iter().find(alive).ok_or_else(|| ProcessError::ended(pid))
}

/// Refuses if any thread is traced, whoever the tracer is.
pub(crate) fn check_tracers(pid: Pid) -> Result<(), ProcessError> {
    for tid in procfs::task_ids(pid).unwrap_or_default() {
        if let Some(tracer) = tracer_of(pid, tid) {
            return Err(ProcessError::AlreadyTraced { pid, tid, tracer });
        }
    }
    Ok(())
}

/// Who traces a thread. A thread that is gone meanwhile is traced by nobody; a tracer that ends between two looks is looked
/// for again, and one that cannot be seen has no name.
fn tracer_of(pid: Pid, tid: Tid) -> Option<Tracer> {
    const LOOKS: u32 = 8;
    let mut hidden = None;
    for _ in 0..LOOKS {
        let tracer = procfs::status(pid, tid).ok()?.tracer?;
        if let Some(tracer) = tracer::identify(tracer) {
            return Some(tracer);
        }
        hidden = Some(Tracer { pid: Pid(tracer.0), name: String::new(), livepatch: false });
        crate::numbered::yield_now();
    }
    hidden
}

fn check_architecture(pid: Pid, exe: &mut File) -> Result<(), ProcessError> {
    const ELFCLASS64: u8 = 2;
    const EM_X86_64: u16 = 62;
    let mut header = [0_u8; 20];
    exe.read_exact(&mut header).map_err(|error| ProcessError::io(pid, "read the executable", error))?;
    let (class, machine) = (header[4], u16::from_le_bytes([header[18], header[19]]));
    let found = match (&header[..4] == b"\x7fELF", class, machine) {
        (true, ELFCLASS64, EM_X86_64) => return Ok(()),
        (false, ..) => "not an ELF program".to_owned(),
        (true, ELFCLASS64, machine) => format!("a 64-bit program for ELF machine {machine}"),
        (true, _, machine) => format!("a 32-bit program (ELF machine {machine})"),
    };
    Err(ProcessError::WrongArchitecture { pid, found })
}

/// Turns a refusal of the kernel into [`ProcessError::Permission`] with what to grant.
pub(crate) fn access_error(pid: Pid, status: &Status, action: &str, error: io::Error) -> ProcessError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM) => {
            ProcessError::Permission { pid, hint: permission_hint(pid, status) }
        }
        Some(Errno::ESRCH | Errno::ENOENT) => ProcessError::NoSuchProcess { pid },
        _ => ProcessError::io(pid, action, error),
    }
}

fn permission_hint(pid: Pid, target: &Status) -> String {
    let own = sys::own_euid();
    if own != target.euid || own != target.uid {
        let user = target.euid;
        return format!(
            "it runs as user {user} and this tool as user {own}; run the tool as user {user}, or as root, or give it \
             CAP_SYS_PTRACE"
        );
    }
    // The kernel gives the files, not the folder, of a process that is not dumpable to root.
    if std::fs::metadata(format!("/proc/{pid}/status")).is_ok_and(|entry| entry.uid() != target.euid) {
        return "the process is not dumpable, as after it changed its user (setuid) or was started from a file that gives it rights; a \
                program can call prctl(PR_SET_DUMPABLE, 1) then, otherwise run the tool as root or give it CAP_SYS_PTRACE"
            .to_owned();
    }
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match yama.trim() {
        "3" => "kernel.yama.ptrace_scope is 3: tracing is off for everybody until the next boot".to_owned(),
        "2" => "kernel.yama.ptrace_scope is 2: run the tool as root or give it CAP_SYS_PTRACE".to_owned(),
        "1" => "kernel.yama.ptrace_scope is 1: run the tool as root, give it CAP_SYS_PTRACE, or set \
                kernel.yama.ptrace_scope to 0"
            .to_owned(),
        _ => "the process is not dumpable, or in another user namespace, or a security module or seccomp forbids it; \
              run the tool as root or give it CAP_SYS_PTRACE (in a container: add the capability SYS_PTRACE)"
            .to_owned(),
    }
}
