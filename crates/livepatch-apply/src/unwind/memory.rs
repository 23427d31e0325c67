//! Target memory as the unwinder sees it.

use super::Unverified;
use livepatch_patch::RunAddr;
use livepatch_process::PageCache;

/// Readable memory of a stopped thread.
pub trait Memory {
    /// Fills `buf` from `addr`; false if a part of it cannot be read.
    fn read(&mut self, addr: RunAddr, buf: &mut [u8]) -> bool;
}

impl Memory for PageCache<'_> {
    fn read(&mut self, addr: RunAddr, buf: &mut [u8]) -> bool {
        PageCache::read(self, addr, buf).is_ok()
    }
}

/// Reads one little-endian word.
pub(super) fn word(memory: &mut dyn Memory, address: u64) -> Result<u64, Unverified> {
    let mut buf = [0; 8];
    if memory.read(RunAddr(address), &mut buf) {
        Ok(u64::from_le_bytes(buf))
    } else {
        Err(Unverified::Unreadable(RunAddr(address)))
    }
}
