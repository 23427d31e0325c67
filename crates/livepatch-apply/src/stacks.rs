//! The proven stacks of stopped threads.

use crate::unwind::{self, Registers, Tables, Walk, dwarf};
use livepatch_patch::RunAddr;
use livepatch_process::{PAGE_SIZE, PageCache, Process, ProcessError, Regs, Stopped, Tid};

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
    Ok(threads
        .into_iter()
        .map(|(tid, regs)| ThreadStack {
            tid,
            walk: unwind::walk(tables, &mut cache, registers(&regs)),
            regs,
        })
        .collect())
}

/// Walks one stack.
pub fn of_one(process: &Process, tid: Tid, regs: Regs, tables: &Tables) -> ThreadStack {
    let mut cache = PageCache::new(process);
    ThreadStack { tid, walk: unwind::walk(tables, &mut cache, registers(&regs)), regs }
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
        self.walk.frames.iter().map(unwind::Frame::lookup)
    }
}
