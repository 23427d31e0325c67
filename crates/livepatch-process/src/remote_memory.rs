//! Mapping memory in the target.

use crate::StoppedThread;
use crate::error::RemoteError;
use livepatch_patch::RunAddr;
use nix::libc;
use std::time::Instant;

const MAP_FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;

/// Protection of mapped memory. There is none that is writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// No access.
    None,
    /// `r--`
    Read,
    /// `rw-`
    ReadWrite,
    /// `r-x`
    ReadExecute,
}

impl Protection {
    fn bits(self) -> u64 {
        let bits = match self {
            Protection::None => libc::PROT_NONE,
            Protection::Read => libc::PROT_READ,
            Protection::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
            Protection::ReadExecute => libc::PROT_READ | libc::PROT_EXEC,
        };
        bits as u64
    }
}

impl StoppedThread<'_> {
    /// Maps fresh private memory at exactly this address; never over anything (`MAP_FIXED_NOREPLACE`).
    ///
    /// # Errors
    /// [`RemoteError::Syscall`] with `EEXIST` if something is mapped there meanwhile: choose another hole.
    pub fn map_at(
        &mut self,
        addr: RunAddr,
        size: u64,
        protection: Protection,
        deadline: Instant,
    ) -> Result<(), RemoteError> {
        let args = [addr.0, size, protection.bits(), MAP_FLAGS as u64, u64::MAX, 0];
        let got = self.call("mmap", libc::SYS_mmap, args, deadline)?;
        // Kernels before 4.17 do not know the flag and take the address for a hint.
        if got != addr.0 {
            self.unmap(RunAddr(got), size, deadline)?;
            return Err(RemoteError::Syscall { name: "mmap", source: nix::errno::Errno::EEXIST.into() });
        }
        Ok(())
    }

    /// Changes the protection of whole pages.
    pub fn protect(
        &mut self,
        addr: RunAddr,
        size: u64,
        protection: Protection,
        deadline: Instant,
    ) -> Result<(), RemoteError> {
        let args = [addr.0, size, protection.bits(), 0, 0, 0];
        self.call("mprotect", libc::SYS_mprotect, args, deadline).map(drop)
    }

    /// Makes sure that mapping, protecting in every way, and unmapping are open to this thread.
    ///
    /// # Errors
    /// [`RemoteError::Forbidden`], see [`Self::check_syscall`].
    pub fn check_memory_calls(&self) -> Result<(), RemoteError> {
        let size = crate::PAGE_SIZE;
        let at = 1 << 30;
        for protection in [Protection::None, Protection::Read, Protection::ReadWrite, Protection::ReadExecute]
        {
            if protection != Protection::ReadExecute {
                let args = [at, size, protection.bits(), MAP_FLAGS as u64, u64::MAX, 0];
                self.check_syscall(libc::SYS_mmap, args)?;
            }
            self.check_syscall(libc::SYS_mprotect, [at, size, protection.bits(), 0, 0, 0])?;
        }
        self.check_syscall(libc::SYS_munmap, [at, size, 0, 0, 0, 0])
    }

    /// Removes whole pages from the target's memory.
    pub fn unmap(&mut self, addr: RunAddr, size: u64, deadline: Instant) -> Result<(), RemoteError> {
        self.call("munmap", libc::SYS_munmap, [addr.0, size, 0, 0, 0, 0], deadline).map(drop)
    }

    fn call(
        &mut self,
        name: &'static str,
        number: libc::c_long,
        args: [u64; 6],
        deadline: Instant,
    ) -> Result<u64, RemoteError> {
        let returned = self.remote_syscall(number, args, deadline)?;
        returned.map_err(|errno| RemoteError::Syscall { name, source: errno.into() })
    }
}
