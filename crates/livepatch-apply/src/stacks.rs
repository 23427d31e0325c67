//! The proven stacks of stopped threads.

use crate::unwind::{self, Frame, FrameKind, Registers, Tables, Unverified, Walk, dwarf};
use livepatch_patch::RunAddr;
use livepatch_process::{Asleep, PAGE_SIZE, PageCache, Process, ProcessError, Regs, Stopped, Tid};

/// What a stopped thread is doing.
#[derive(Clone, Debug)]
pub struct ThreadStack {
    /// The thread.
    pub tid: Tid,
    /// Its registers.
    pub regs: Regs,
    /// Its stack.
    pub walk: Walk,
}

/// Stack pages of each thread that are read ahead with one system call.
const READ_AHEAD: u64 = 4;
/// Stack pages of a sleeping thread that are read at once.
const FIRST_PAGES: usize = 3;
/// Stack pages that are copied of a thread that is not held for the walk.
const COPIED: usize = 12;

/// Walks the stacks of all threads.
pub fn of_all(stopped: &Stopped, tables: &Tables) -> Result<Vec<ThreadStack>, ProcessError> {
    let threads = stopped
        .threads()
        .into_iter()
        .map(|tid| stopped.regs(tid).map(|regs| (tid, regs)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut cache = PageCache::new(stopped.process());
    for ahead in 0..READ_AHEAD {
        cache.prefetch(threads.iter().map(|(_, regs)| regs.sp().offset((ahead * PAGE_SIZE) as i64)));
    }
    Ok(threads.into_iter().map(|(tid, regs)| walk(tid, regs, tables, &mut cache)).collect())
}

/// Walks the stack of a thread that is off the processor and not stopped. Only its instruction and stack pointer are known;
/// a frame that needs another register ends the walk unproven. Valid if the thread [slept on](Process::slept_since).
pub fn of_sleeper(process: &Process, tid: Tid, asleep: &Asleep, tables: &Tables) -> Walk {
    let mut registers = [None; dwarf::COUNT];
    (registers[dwarf::RIP], registers[dwarf::RSP]) = (Some(asleep.ip.0), Some(asleep.sp.0));
    let mut cache = PageCache::of_stack(process, tid, asleep.sp, FIRST_PAGES).and_further();
    unwind::walk(tables, &mut cache, Registers(registers))
}

/// A copy of a thread's stack, to be walked while the thread goes on.
#[derive(Debug)]
pub struct Copied<'p> {
    tid: Tid,
    regs: Regs,
    cache: PageCache<'p>,
}

impl<'p> Copied<'p> {
    /// Copies the upper part of a stopped thread's stack.
    pub fn new(process: &'p Process, tid: Tid, regs: Regs) -> Self {
        Self { tid, regs, cache: PageCache::of_stack(process, tid, regs.sp(), COPIED) }
    }

    /// Walks the copy. A stack that goes beyond it ends unproven.
    pub fn walk(mut self, tables: &Tables) -> Walk {
        walk(self.tid, self.regs, tables, &mut self.cache).walk
    }
}

/// Walks one stack.
pub fn of_one(process: &Process, tid: Tid, regs: Regs, tables: &Tables) -> ThreadStack {
    let mut cache = PageCache::new(process);
    cache.prefetch((0..READ_AHEAD).map(|page| regs.sp().offset((page * PAGE_SIZE) as i64)));
    walk(tid, regs, tables, &mut cache)
}

fn walk(tid: Tid, regs: Regs, tables: &Tables, cache: &mut PageCache<'_>) -> ThreadStack {
    let mut walk = unwind::walk(tables, cache, registers(&regs));
    if walk.end == Err(Unverified::NoCfi(regs.ip())) && walk.frames.is_empty() && at_parting(&regs, cache) {
        walk = parted(&regs, tables, cache);
    }
    ThreadStack { tid, regs, walk }
}

/// `SYS_clone` and `SYS_clone3` of x86-64.
const CLONES: [u64; 2] = [56, 435];
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Whether a thread is right behind the system call that makes a thread. C libraries give the code there no call frame
/// information, because the same instructions run on two different stacks; with new threads coming fast, some thread is there
/// at every moment (a traced one stops there when it is born).
fn at_parting(regs: &Regs, cache: &mut PageCache<'_>) -> bool {
    let mut code = [0; SYSCALL.len()];
    let before = regs.ip().offset(-(SYSCALL.len() as i64));
    regs.syscall().is_some_and(|number| CLONES.contains(&number))
        && cache.read(before, &mut code).is_ok()
        && code == SYSCALL
}

/// The kernel tells the new thread from the old one by the result: 0 for the new one, which has no frames yet. The old one's
/// stack is as it was before the instruction, where the tables hold: they end with the instruction in front (which loads the
/// number of the system call), so its last byte is looked up.
fn parted(regs: &Regs, tables: &Tables, cache: &mut PageCache<'_>) -> Walk {
    const RAX: usize = 0;
    let mut registers = registers(regs);
    if registers.0[RAX] != Some(0) {
        let before = regs.ip().offset(-(SYSCALL.len() as i64) - 1);
        registers.0[dwarf::RIP] = Some(before.0);
        return unwind::walk(tables, cache, registers);
    }
    let born = Frame {
        pc: regs.ip(),
        kind: FrameKind::Innermost,
        signal: false,
        cfa: regs.sp(),
        function: regs.ip(),
    };
    Walk { frames: vec![born], end: Ok(()) }
}

fn registers(regs: &Regs) -> Registers {
    let mut out = [None; dwarf::COUNT];
    for (number, value) in out.iter_mut().enumerate() {
        *value = regs.dwarf(number as u16);
    }
    Registers(out)
}

impl ThreadStack {
    /// Addresses in active functions, innermost first.
    pub fn active(&self) -> impl Iterator<Item = RunAddr> + '_ {
        self.walk.frames.iter().map(Frame::lookup)
    }
}
