//! Reading and writing the memory of a process.
//!
//! Reads and single writes go through `/proc/PID/mem`, whose descriptor stays with the address space that it was opened on.
//! It writes to read-only private mappings, too (a private copy of the page is made, files are never changed).

use crate::error::{Loss, ProcessError};
use crate::fault::{Effect, operation};
use crate::{Process, Tid, numbered, sys};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use std::collections::HashMap;
use std::io;

/// Bytes of a page on x86-64.
pub const PAGE_SIZE: u64 = 4096;

impl Process {
    /// Fills the buffer from `addr` on, all of it or an error.
    pub fn read(&self, addr: RunAddr, buffer: &mut [u8]) -> Result<(), ProcessError> {
        let result = numbered::read_exact_at(&self.inner.mem, buffer, addr.0);
        result.map_err(|error| self.memory_error("read", addr, buffer.len(), error))
    }

    /// Reads `len` bytes. The caller bounds `len`.
    pub fn read_vec(&self, addr: RunAddr, len: usize) -> Result<Vec<u8>, ProcessError> {
        let mut buffer = vec![0; len];
        self.read(addr, &mut buffer)?;
        Ok(buffer)
    }

    /// Reads an array of bytes.
    pub fn read_array<const N: usize>(&self, addr: RunAddr) -> Result<[u8; N], ProcessError> {
        let mut buffer = [0; N];
        self.read(addr, &mut buffer)?;
        Ok(buffer)
    }

    /// Reads a little-endian word of 8 bytes.
    pub fn read_u64(&self, addr: RunAddr) -> Result<u64, ProcessError> {
        self.read_array(addr).map(u64::from_le_bytes)
    }

    /// Reads a little-endian word of 4 bytes.
    pub fn read_u32(&self, addr: RunAddr) -> Result<u32, ProcessError> {
        self.read_array(addr).map(u32::from_le_bytes)
    }

    /// Reads a pointer.
    pub fn read_addr(&self, addr: RunAddr) -> Result<RunAddr, ProcessError> {
        self.read_u64(addr).map(RunAddr)
    }

    /// Reads many pieces with as few system calls as possible, all of them or an error.
    pub fn read_many(&self, pieces: &mut [(RunAddr, &mut [u8])]) -> Result<(), ProcessError> {
        let tid = self.live_thread()?;
        for chunk in pieces.chunks_mut(sys::MAX_PIECES) {
            let wanted: usize = chunk.iter().map(|(_, buffer)| buffer.len()).sum();
            // A short or failed read does not say which piece it was (a system call also ends at 2 GiB), so the
            // pieces are read one by one: that gives the bytes or the exact error.
            if sys::process_vm_readv(tid, chunk) != Ok(wanted) {
                for (addr, buffer) in chunk {
                    self.read(*addr, buffer)?;
                }
            }
        }
        // process_vm_readv goes by id, not by descriptor.
        match self.is_alive() {
            true => Ok(()),
            false => Err(ProcessError::ended(self.pid())),
        }
    }

    /// Writes all bytes or fails. Works on read-only mappings of a process that the caller traces. After an error a part
    /// may have been written; the caller reads back and undoes.
    ///
    /// Nothing here says that the bytes may be changed at this moment: that is the caller's proof.
    pub fn write(&self, addr: RunAddr, bytes: &[u8]) -> Result<(), ProcessError> {
        let result = operation(Effect::Write, "write memory", || {
            numbered::write_all_at(&self.inner.mem, bytes, addr.0)
        });
        result.map_err(|error| self.memory_error("write", addr, bytes.len(), error))
    }

    /// Makes sure that the process is alive and runs the program that it ran when it was opened.
    ///
    /// # Errors
    /// [`ProcessError::Lost`] if not.
    pub fn check_program(&self) -> Result<(), ProcessError> {
        // Nothing is mapped so low, so this fails in one of two ways: see `memory_error`.
        match self.read(RunAddr(0), &mut [0]) {
            Err(lost @ ProcessError::Lost { .. }) => Err(lost),
            _ => Ok(()),
        }
    }

    /// Says that something of ours is left in the process, which is so unless it has ended or runs another program.
    pub fn warn_of_rest(&self, text: std::fmt::Arguments<'_>) {
        if self.check_program().is_ok() {
            crate::log::warn(text);
        }
    }

    /// Replaces the contents of a file by one of the process's open descriptors.
    pub fn write_descriptor(&self, fd: u64, contents: &[u8]) -> Result<(), ProcessError> {
        // The first thread may have exited; the descriptors of any thread are the process's.
        let path = crate::procfs::task_dir(self.pid(), self.live_thread()?).join(format!("fd/{fd}"));
        operation(Effect::Write, "write a file", || std::fs::write(&path, contents))
            .map_err(|error| self.io_error(&format!("write to descriptor {fd}"), error))
    }

    fn memory_error(
        &self,
        access: &'static str,
        addr: RunAddr,
        len: usize,
        source: io::Error,
    ) -> ProcessError {
        let pid = self.pid();
        if self.is_ending() {
            return ProcessError::ended(pid);
        }
        // An address space that its last user has left reads as an empty file. The process has memory: it called execve.
        let left = matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero);
        if left && !addr_beyond_user(addr) {
            return ProcessError::Lost { pid, how: Loss::Exec };
        }
        let source = match left {
            true => io::Error::from(Errno::EIO),
            false => source,
        };
        ProcessError::Memory { pid, access, addr, len, source }
    }
}

/// End of the addresses that a program can map with 4-level page tables (`TASK_SIZE`).
pub(crate) const USER_END: u64 = 0x7fff_ffff_f000;

fn addr_beyond_user(addr: RunAddr) -> bool {
    addr.0 >= USER_END
}

/// Pages of a process, each read once: for walking stacks, where neighbouring words are read one after the other.
///
/// Only valid while no thread writes to these pages; drop it before any that may is resumed.
#[derive(Debug)]
pub struct PageCache<'p> {
    process: &'p Process,
    pages: HashMap<u64, Box<[u8; PAGE_SIZE as usize]>>,
    sealed: bool,
}

impl<'p> PageCache<'p> {
    /// An empty cache.
    pub fn new(process: &'p Process) -> Self {
        Self { process, pages: HashMap::new(), sealed: false }
    }

    /// Copies the stack of a traced thread from its stack pointer upwards, as many pages as there are and as are wanted, with one
    /// system call. Nothing else will be read: the copy stays what the stack was, when the thread goes on meanwhile.
    pub fn of_stack(process: &'p Process, tid: Tid, sp: RunAddr, pages: usize) -> Self {
        let first = sp.0 & !(PAGE_SIZE - 1);
        let addrs = (0..pages as u64).map(|page| first.wrapping_add(page * PAGE_SIZE));
        let mut buffers: Vec<_> = addrs.map(|page| (page, Box::new([0; PAGE_SIZE as usize]))).collect();
        let mut pieces: Vec<(RunAddr, &mut [u8])> =
            buffers.iter_mut().map(|(page, buffer)| (RunAddr(*page), &mut buffer[..])).collect();
        // A short count is the number of bytes in front of the first page that is not there (process_vm_readv(2)).
        let got = sys::process_vm_readv(tid, &mut pieces).unwrap_or(0) / PAGE_SIZE as usize;
        buffers.truncate(got);
        Self { process, pages: buffers.into_iter().collect(), sealed: true }
    }

    /// Reads further pages when they are asked for, of a stack that stays as it is.
    #[must_use]
    pub fn and_further(self) -> Self {
        Self { sealed: false, ..self }
    }

    /// Reads many pages ahead with few system calls (the tops of all stacks, say). If one of them cannot be read, all are left
    /// to be read when they are asked for.
    pub fn prefetch(&mut self, addrs: impl IntoIterator<Item = RunAddr>) {
        let mut fresh: Vec<u64> = addrs.into_iter().map(|addr| addr.0 & !(PAGE_SIZE - 1)).collect();
        fresh.sort_unstable();
        fresh.dedup();
        fresh.retain(|page| !self.pages.contains_key(page));
        let mut buffers: Vec<_> =
            fresh.iter().map(|&page| (page, Box::new([0; PAGE_SIZE as usize]))).collect();
        let mut pieces: Vec<(RunAddr, &mut [u8])> =
            buffers.iter_mut().map(|(page, buffer)| (RunAddr(*page), &mut buffer[..])).collect();
        if self.process.read_many(&mut pieces).is_ok() {
            self.pages.extend(buffers);
        }
    }

    /// Reads a little-endian word of 8 bytes.
    pub fn read_u64(&mut self, addr: RunAddr) -> Result<u64, ProcessError> {
        let mut word = [0; 8];
        self.read(addr, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Fills the buffer from `addr` on, all of it or an error.
    pub fn read(&mut self, addr: RunAddr, buffer: &mut [u8]) -> Result<(), ProcessError> {
        let mut done = 0;
        while done < buffer.len() {
            let at = addr.0.wrapping_add(done as u64);
            let in_page = (at % PAGE_SIZE) as usize;
            let len = (buffer.len() - done).min(PAGE_SIZE as usize - in_page);
            let page = self.page(at - in_page as u64)?;
            buffer[done..done + len].copy_from_slice(&page[in_page..in_page + len]);
            done += len;
        }
        Ok(())
    }

    fn page(&mut self, page: u64) -> Result<&[u8; PAGE_SIZE as usize], ProcessError> {
        use std::collections::hash_map::Entry;
        match self.pages.entry(page) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(_) if self.sealed => {
                let source = io::Error::other("it is not part of the copy");
                let (pid, len) = (self.process.pid(), PAGE_SIZE as usize);
                Err(ProcessError::Memory { pid, access: "read", addr: RunAddr(page), len, source })
            }
            Entry::Vacant(entry) => Ok(entry.insert(Box::new(self.process.read_array(RunAddr(page))?))),
        }
    }
}
