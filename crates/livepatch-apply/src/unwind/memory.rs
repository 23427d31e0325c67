//! Target memory as the unwinder sees it, read in big pieces.

use super::Unverified;
use livepatch_patch::RunAddr;

/// Readable memory of a stopped thread.
pub trait Memory {
    /// Fills `buf` from `addr`, as far as it can be read without a gap; returns the number of bytes.
    fn read(&mut self, addr: RunAddr, buf: &mut [u8]) -> usize;
}

/// Reads one little-endian word.
pub(super) fn word(memory: &mut dyn Memory, address: u64) -> Result<u64, Unverified> {
    let mut buf = [0; 8];
    match memory.read(RunAddr(address), &mut buf) {
        8 => Ok(u64::from_le_bytes(buf)),
        _ => Err(Unverified::Unreadable(RunAddr(address))),
    }
}

/// Bytes fetched at once.
const CHUNK: usize = 16 * 1024;
const PAGE: u64 = 4096;

/// Keeps what it has read, so that a walk costs a few system calls rather than several for each frame.
///
/// The contents must not change while the value lives: one cache for one stop of one thread.
pub struct StackCache<F> {
    read: F,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl<F: FnMut(RunAddr, &mut [u8]) -> usize> StackCache<F> {
    /// `read` fills a buffer from an address and returns how many bytes it got.
    pub fn new(read: F) -> Self {
        Self { read, pieces: Vec::new() }
    }

    fn cached(&self, addr: u64, len: usize) -> Option<&[u8]> {
        self.pieces.iter().rev().find_map(|(start, bytes)| {
            let from = usize::try_from(addr.checked_sub(*start)?).ok()?;
            bytes.get(from..from.checked_add(len)?)
        })
    }

    fn fetch(&mut self, addr: u64) {
        let start = addr & !(PAGE - 1);
        let mut bytes = vec![0; CHUNK];
        let mut got = (self.read)(RunAddr(start), &mut bytes);
        if got < PAGE as usize {
            got = (self.read)(RunAddr(start), &mut bytes[..PAGE as usize]);
        }
        bytes.truncate(got);
        self.pieces.push((start, bytes));
    }
}

impl<F: FnMut(RunAddr, &mut [u8]) -> usize> Memory for StackCache<F> {
    fn read(&mut self, addr: RunAddr, buf: &mut [u8]) -> usize {
        if self.cached(addr.0, buf.len()).is_none() {
            self.fetch(addr.0);
        }
        if let Some(bytes) = self.cached(addr.0, buf.len()) {
            buf.copy_from_slice(bytes);
            return buf.len();
        }
        (self.read)(addr, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_reads_once_and_stops_at_the_edge() {
        let mut calls = 0;
        let memory: Vec<u8> = (0..2 * PAGE).map(|i| i as u8).collect();
        let base = 0x10000;
        {
            let mut cache = StackCache::new(|addr: RunAddr, buf: &mut [u8]| {
                calls += 1;
                let from = (addr.0 - base) as usize;
                let bytes = memory.get(from..).unwrap_or_default();
                let n = bytes.len().min(buf.len());
                buf[..n].copy_from_slice(&bytes[..n]);
                n
            });
            for offset in (0..2 * PAGE - 8).step_by(8) {
                assert_eq!(word(&mut cache, base + offset).unwrap().to_le_bytes()[0], offset as u8);
            }
            assert_eq!(
                word(&mut cache, base + 2 * PAGE - 4),
                Err(Unverified::Unreadable(RunAddr(base + 2 * PAGE - 4)))
            );
        }
        assert!(calls <= 4, "{calls}");
    }
}
