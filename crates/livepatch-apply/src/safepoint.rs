//! Threads on which a function of the target may be called.
//!
//! Registering unwind tables and loading the TLS carrier allocate and take the loader's lock. A thread that is in the
//! middle of `malloc` or `dlopen` must not do that: it would wait for itself or find half-made structures. A thread is safe
//! when its proven stack shows that it holds none of those locks:
//!
//! - no signal frame, and no frame in the dynamic loader;
//! - frames in *system* modules (those that define the allocator, the thread library or the unwinder) only at the bottom
//!   (`start_thread`, `__libc_start_main`) or as one run at the top whose outermost function is a known blocking call, or
//!   one of buffered input and output that waits in `read` or `write`;
//! - if the executable defines the allocator itself, only the latter.
//!
//! All other threads keep running during the call, so whatever lock it waits for is released by its owner.

use crate::dynsym::DynamicSymbols;
use crate::elf::Image;
use crate::error::{ApplyError, ThreadInside};
use crate::quietest::Quietest;
use crate::stacks::{self, ThreadStack};
use crate::stops;
use crate::target::Modules;
use crate::unwind::{Frame, Tables};
use livepatch_patch::RunAddr;
use livepatch_process::{
    CallSite, InterruptError, Loan, Process, ProcessError, RemoteError, Seized, StoppedThread, Tid,
};
use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

/// Calls that wait, or return at once, without holding a lock of the C library.
const BLOCKING: &[&str] = &[
    "accept",
    "accept4",
    "clock_nanosleep",
    "connect",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "flock",
    "fsync",
    "futimens",
    "ioctl",
    "msgrcv",
    "nanosleep",
    "pause",
    "poll",
    "ppoll",
    "pread",
    "pread64",
    "preadv",
    "pselect",
    "pthread_cond_clockwait",
    "pthread_cond_timedwait",
    "pthread_cond_wait",
    "pwrite",
    "pwrite64",
    "read",
    "readv",
    "recv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sched_yield",
    "select",
    "sem_clockwait",
    "sem_timedwait",
    "sem_wait",
    "semop",
    "semtimedop",
    "send",
    "sendmsg",
    "sendto",
    "sigsuspend",
    "sigtimedwait",
    "sigwait",
    "sigwaitinfo",
    "syscall",
    "usleep",
    "wait",
    "wait4",
    "waitid",
    "waitpid",
    "write",
    "writev",
];

/// Buffered input and output: while one of these waits in `read` or `write` it holds the lock of its stream and no other.
const BUFFERED: &[&str] = &[
    "fflush", "fgetc", "fgets", "fprintf", "fputc", "fputs", "fread", "fscanf", "fwrite", "getc", "getchar",
    "getdelim", "getline", "printf", "putc", "putchar", "puts", "scanf", "vfprintf", "vprintf",
];
/// Where those wait.
const TRANSFER: &[&str] = &["read", "write"];

/// Definitions that make a module a system module.
const ALLOCATOR: &[&str] = &["malloc", "free"];
const SYSTEM: &[&str] = &["pthread_mutex_lock", "_Unwind_Find_FDE", "_dl_catch_error", "dlopen"];

/// The longest run of attempts to find a safe thread without letting the process run on.
const ROUND_PAUSE: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Neither holds nor takes a lock of the system.
    Program,
    /// Allocator, thread library, unwinder.
    System,
    /// The dynamic loader.
    Loader,
    /// The kernel's vDSO.
    Vdso,
}

/// What is needed to judge threads; made once, while the process runs.
#[derive(Debug, Default)]
pub struct Rules {
    modules: Vec<(Image, Kind)>,
    blocking: HashSet<RunAddr>,
    buffered: HashSet<RunAddr>,
    transfer: HashSet<RunAddr>,
    executable_allocates: bool,
}

impl Rules {
    /// Looks at the dynamic symbols of every module.
    pub fn new(process: &Process, modules: &Modules) -> Result<Self, ProcessError> {
        let mut rules = Self::default();
        let interpreter = crate::target::interpreter(process)?;
        for module in &modules.list {
            let symbols = DynamicSymbols::open(process, &module.image)?;
            let defines = |names: &[&str]| -> Result<bool, ProcessError> {
                let Some(symbols) = &symbols else { return Ok(false) };
                for name in names {
                    if symbols.find(name)?.is_some() {
                        return Ok(true);
                    }
                }
                Ok(false)
            };
            let span = module.image.span();
            let kind = if module.path.as_os_str() == "[vdso]" {
                Kind::Vdso
            } else if interpreter.is_some_and(|at| span.contains(&at)) {
                Kind::Loader
            } else if module.executable {
                rules.executable_allocates = defines(ALLOCATOR)? || module.image.dynamic.is_none();
                Kind::Program
            } else if defines(ALLOCATOR)? || defines(SYSTEM)? {
                Kind::System
            } else {
                Kind::Program
            };
            if let (Kind::System, Some(symbols)) = (kind, &symbols) {
                for (names, set) in [
                    (BLOCKING, &mut rules.blocking),
                    (BUFFERED, &mut rules.buffered),
                    (TRANSFER, &mut rules.transfer),
                ] {
                    for name in names {
                        set.extend(symbols.find(name)?.map(|definition| definition.address));
                    }
                }
            }
            rules.modules.push((module.image.clone(), kind));
        }
        Ok(rules)
    }

    fn kind(&self, at: RunAddr) -> Kind {
        let found = self.modules.iter().find(|(image, _)| image.segment(at).is_some());
        found.map_or(Kind::Program, |(_, kind)| *kind)
    }

    /// Why a thread is not safe.
    pub fn objection(&self, stack: &ThreadStack) -> Option<String> {
        if let Err(why) = &stack.walk.end {
            return Some(format!("its stack cannot be proven: {why}"));
        }
        let frames = &stack.walk.frames;
        if frames.iter().any(|frame| frame.signal) {
            return Some("it runs a signal handler".into());
        }
        let kinds: Vec<Kind> = frames.iter().map(|frame| self.kind(frame.lookup())).collect();
        if kinds.contains(&Kind::Loader) {
            return Some("it is in the dynamic loader".into());
        }
        let Some(top) = kinds.iter().position(|kind| *kind == Kind::Program) else {
            return Some("it runs no code of the program".into());
        };
        // The outermost frame may be `_start`, which is the program's, with the C library between it and `main`.
        let inner = &kinds[top..kinds.len() - 1];
        let bottom = inner.iter().rposition(|kind| *kind == Kind::Program).unwrap_or(0);
        if inner[..bottom.min(inner.len())].iter().any(|kind| *kind != Kind::Program) {
            return Some("it is in a function that a library calls".into());
        }
        self.top_objection(stack, &frames[..top])
    }

    fn top_objection(&self, stack: &ThreadStack, run: &[Frame]) -> Option<String> {
        let Some(outermost) = run.iter().rfind(|frame| self.kind(frame.lookup()) != Kind::Vdso) else {
            return self.executable_allocates.then(|| "it may be in the program's allocator".to_owned());
        };
        let transfers = run.first().is_some_and(|innermost| self.transfer.contains(&innermost.function));
        let buffered = self.buffered.contains(&outermost.function) && transfers;
        if !buffered && !self.blocking.contains(&outermost.function) {
            return Some("it is inside a library function that may hold a lock".into());
        }
        let waits = stack.regs.syscall().is_some();
        (!waits).then(|| "it is entering or leaving a system call".to_owned())
    }
}

/// Does something on a safe thread while the others run.
///
/// # Errors
/// [`ApplyError::Busy`] if no thread is safe until the deadline.
pub fn on_safe_thread<T>(
    seized: &mut Seized,
    rules: &Rules,
    tables: &Tables,
    deadline: Instant,
    mut work: impl FnMut(&mut StoppedThread<'_>) -> Result<T, RemoteError>,
) -> Result<T, ApplyError> {
    let process = seized.process().clone();
    on_one_thread(seized, deadline, &mut |thread| {
        let stack = stacks::of_one(&process, thread.tid(), thread.regs()?, tables);
        if let Some(reason) = rules.objection(&stack) {
            return Ok(Err(reason));
        }
        let done = work(thread);
        if !matches!(done, Err(RemoteError::Unfit { .. })) {
            thread.note_as_worker();
        }
        or_refused(done)
    })
}

/// Does something on any thread that executes system calls; no function may be called.
///
/// # Errors
/// [`ApplyError::Busy`] if no thread is fit until the deadline. Every thread is given a chance.
pub fn on_any_thread<T>(
    seized: &mut Seized,
    deadline: Instant,
    mut work: impl FnMut(&mut StoppedThread<'_>) -> Result<T, ApplyError>,
) -> Result<T, ApplyError> {
    on_one_thread(seized, deadline, &mut |thread| match or_refused(thread.check_fit())? {
        Ok(()) => {
            thread.note_as_worker();
            work(thread).map(Ok)
        }
        Err(reason) => Ok(Err(reason)),
    })
}

/// Makes sure that the system calls of the work to come are open to the process, so that none of it ends halfway.
///
/// # Errors
/// [`ApplyError::Refused`] if a seccomp filter stands against one of them.
pub fn check_filters(seized: &mut Seized, deadline: Instant) -> Result<(), ApplyError> {
    on_any_thread(seized, deadline, |thread| Ok(thread.check_memory_calls()?))
}

/// Waits until no thread is in remote work that a killed run left: they get out of it by themselves. Who was seen outside once
/// stays outside. Several are asked to stop at a time: beside many threads that want to run, each has to wait for its turn.
///
/// # Errors
/// [`ApplyError::Busy`] if one still is at the deadline.
pub fn await_remote_work(seized: &mut Seized, site: &CallSite, deadline: Instant) -> Result<(), ApplyError> {
    let started = Instant::now();
    let mut left: BTreeSet<Tid> = seized.threads().into_iter().collect();
    loop {
        let process = seized.process().clone();
        let asleep = |tid: &Tid| process.sleeps_in_remote_work(*tid, site);
        left.retain(|tid| seized.traces(*tid) && asleep(tid) != Some(false));
        let running: BTreeSet<Tid> = left.iter().filter(|tid| asleep(tid).is_none()).copied().collect();
        let mut outside = |thread: &StoppedThread<'_>| {
            let is_outside = matches!(thread.in_remote_work(site), Ok(false));
            if is_outside {
                left.remove(&thread.tid());
            }
            is_outside
        };
        // There are no breakpoints while a patch is loaded, so no event is lost.
        let visited = stops::visit(seized, running, deadline, &mut Vec::new(), &mut outside);
        left.retain(|tid| seized.traces(*tid));
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let why = |tid: &Tid| match asleep(tid) {
                Some(true) => "it is in a call that a run of livepatch began",
                _ => "it did not stop, or is in a call that a run of livepatch began",
            };
            let inside = left.iter().map(|tid| (*tid, why(tid).to_owned())).collect();
            return Err(busy(seized.process(), started, inside));
        }
        visited?;
        seized.pump(Instant::now() + ROUND_PAUSE)?;
    }
}

/// How long one thread may take to stop before another one is tried, at first.
const ONE_STOP: Duration = Duration::from_millis(50);
/// And at last: beside many threads that want to run, each has to wait for its turn.
const LONGEST_STOP: Duration = Duration::from_secs(1);

fn longer(patience: Duration) -> Duration {
    (patience * 2).min(LONGEST_STOP)
}

/// Until when one thread may take to stop. Past the deadline, those of the round that were not asked yet get a short chance each:
/// a thousand threads that cannot stop (a frozen control group) must not take a thousand times the patience.
fn until(patience: Duration, deadline: Instant) -> Instant {
    let now = Instant::now();
    (now + patience).min(deadline.max(now + ROUND_PAUSE))
}

/// What a thread did, or why it is not the one for it.
type Attempt<T> = Result<T, String>;

/// A thread that is unfit refuses; other errors are errors.
fn or_refused<T>(done: Result<T, RemoteError>) -> Result<Attempt<T>, ApplyError> {
    match done {
        Err(RemoteError::Unfit { reason, .. }) => Ok(Err(reason)),
        other => Ok(Ok(other?)),
    }
}

/// Does something on the first thread that does not refuse it, with a reason. Each is stopped for the attempt, and has this tool's place in
/// the queue meanwhile.
fn on_one_thread<T>(
    seized: &mut Seized,
    deadline: Instant,
    attempt: &mut dyn FnMut(&mut StoppedThread<'_>) -> Result<Attempt<T>, ApplyError>,
) -> Result<T, ApplyError> {
    let started = Instant::now();
    let mut patience = ONE_STOP;
    loop {
        let mut refused = Vec::new();
        for tid in Quietest::of(seized) {
            let loan = Loan::to(tid);
            match seized.interrupt_one(tid, until(patience, deadline)) {
                Ok(mut thread) => {
                    let done = attempt(&mut thread);
                    // Before it goes on with what is its own.
                    drop(loan);
                    match done? {
                        Ok(done) => return Ok(done),
                        Err(reason) => refused.push((tid, reason)),
                    }
                }
                Err(InterruptError::NoThread { .. }) => {}
                Err(error @ InterruptError::Stuck { .. }) => refused.push((tid, error.to_string())),
                Err(error) => return Err(error.into()),
            }
        }
        if seized.threads().is_empty() {
            return Err(ApplyError::Lost("the process has no threads left".into()));
        }
        if Instant::now() >= deadline {
            return Err(busy(seized.process(), started, refused));
        }
        patience = longer(patience);
        // No thread of another program is ever fit.
        seized.process().check_program()?;
        // What happens meanwhile is for the caller to hear: a thread may be held at a breakpoint.
        seized.attend(Instant::now() + ROUND_PAUSE)?;
    }
}

/// No thread was fit for the work since a time; why each was not.
fn busy(process: &Process, started: Instant, refused: Vec<(Tid, String)>) -> ApplyError {
    let inside = refused
        .into_iter()
        .map(|(tid, reason)| ThreadInside {
            tid: tid.0,
            name: process.thread_name(tid).unwrap_or_default(),
            function: None,
            patch: None,
            reason: format!("cannot run the few calls that must run inside the process: {reason}"),
            inlines: None,
            backtrace: Vec::new(),
            leave_running: None,
        })
        .collect();
    ApplyError::Busy { waited_ms: started.elapsed().as_millis() as u64, process: None, inside }
}
