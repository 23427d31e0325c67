//! The files of `/proc/PID/task`, opened relative to a directory that stays open.
//!
//! Opening is the dearest part of reading such a file: the kernel finds or makes an inode for each component of the path and
//! checks each against the thread that it stands for. The directory also stays with its process when the id is taken over
//! by another one.

use crate::procfs::{self, Status, ThreadState};
use crate::{Pid, Tid, numbered};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

#[derive(Debug)]
pub(crate) struct Tasks {
    dir: OwnedFd,
    /// `stat` of the first thread, which shows whether the process lives.
    leader: File,
    leader_id: Tid,
}

impl Tasks {
    pub fn open(pid: Pid) -> io::Result<Self> {
        let dir = File::open(format!("/proc/{pid}/task"))?.into();
        let leader_id = pid.leader();
        let leader = open(&dir, leader_id, "stat")?;
        Ok(Self { dir, leader, leader_id })
    }

    /// One file of a thread.
    pub fn file(&self, tid: Tid, name: &str) -> io::Result<File> {
        open(&self.dir, tid, name)
    }

    /// The contents of one file of a thread.
    pub fn read(&self, tid: Tid, name: &str) -> io::Result<Vec<u8>> {
        procfs::read_small(&self.file(tid, name)?)
    }

    /// What the thread does, `None` if it is gone.
    pub fn state(&self, tid: Tid) -> Option<ThreadState> {
        let stat = match tid == self.leader_id {
            true => procfs::read_small(&self.leader),
            false => self.read(tid, "stat"),
        };
        procfs::parse_stat_state(&stat.ok()?)
    }

    /// Those of the signals 1 to 31 that a thread blocks, `None` if it is gone. For many threads: the kernel takes longer for the
    /// full set in [`Self::status`].
    pub fn blocked_signals(&self, tid: Tid) -> Option<u64> {
        procfs::parse_stat_blocked(&self.read(tid, "stat").ok()?)
    }

    /// Whether the kernel keeps the thread in the process to work for it.
    pub fn is_worker(&self, tid: Tid) -> bool {
        let named = self.read(tid, "comm").is_ok_and(|name| procfs::is_worker_name(&name));
        named && self.read(tid, "stat").is_ok_and(|stat| procfs::parse_stat_is_worker(&stat))
    }

    pub fn status(&self, tid: Tid) -> io::Result<Status> {
        procfs::parse_status(&self.read(tid, "status")?).ok_or_else(procfs::unexpected_status)
    }
}

fn open(dir: &OwnedFd, tid: Tid, name: &str) -> io::Result<File> {
    let path = format!("{tid}/{name}");
    Ok(openat(dir, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// Reads a small file from its start.
pub(crate) fn read_line<'b>(file: &File, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let len = numbered::read_at(file, buffer, 0).ok()?;
    buffer.get(..len)
}
