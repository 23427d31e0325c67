//! How the registry lies in the target's memory.
//!
//! ```text
//! 0x0000  magic (16 bytes) · version (u32) · slot size (u32) · generation (u64)
//! 0x0020  length of build-id (u32) · zero (u32) · build-id (up to 32 bytes)
//! 0x0050  BLAKE3 of bytes 0..0x50
//! 0x0080  commit word (u64): sequence · 2 + slot; 0 as long as nothing is committed
//! 0x1000  slot 0: sequence (u64) · length (u64) · BLAKE3 of sequence, length and payload · payload (JSON)
//! 0x1000 + slot size: slot 1
//! ```
//!
//! A commit writes the slot that is not current, then the commit word: eight aligned bytes in one write. A tool that is
//! killed in between leaves the old state. Nothing in the process writes here, and the pages are mapped read-only;
//! the contents are still distrusted: every length is checked, and a digest decides.

use super::state::State;
use livepatch_patch::{BuildId, Digest, RunAddr};

/// First bytes of every registry.
pub const MAGIC: [u8; 16] = *b"livepatch\0state\0";
/// Version of layout and payload. A tool refuses other versions.
pub const VERSION: u32 = 3;
/// Bytes of one slot. Only what is used becomes resident.
pub const SLOT_SIZE: u32 = 4 << 20;
/// Size of the registry. Behind it are the landing area and the call site.
pub const TOTAL_SIZE: u64 = HEADER_PAGE + 2 * SLOT_SIZE as u64;
/// Bytes of the header that its digest covers.
const COVERED: usize = 0x50;
/// Bytes of the header with its digest.
pub const HEADER_SIZE: usize = 0x70;
const COMMIT_WORD: i64 = 0x80;
const HEADER_PAGE: u64 = 0x1000;
const SLOT_HEADER: usize = 48;
const MAX_BUILD_ID: usize = 32;

/// Memory that a registry can be read from.
pub trait Load {
    /// Why an access failed.
    type Error;
    /// Fills `buf` from `at`.
    fn load(&mut self, at: RunAddr, buf: &mut [u8]) -> Result<(), Self::Error>;
}

/// Memory that holds a registry.
pub trait Store: Load {
    /// Writes `bytes` to `at`, in one system call.
    fn store(&mut self, at: RunAddr, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// Why a registry cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError<E> {
    /// Made by another version of livepatch.
    #[error("the registry at {at} has version {found}, this tool knows {VERSION}; use the tool that made it")]
    Version {
        /// Where it is.
        at: RunAddr,
        /// Its version.
        found: u32,
    },
    /// Not what a livepatch writes.
    #[error("the registry at {at} is damaged: {what}")]
    Damaged {
        /// Where it is.
        at: RunAddr,
        /// What is wrong.
        what: &'static str,
    },
    /// The state outgrew its slot.
    #[error("the registry is full: the state needs {0} bytes; restart the program to start afresh")]
    Full(usize),
    /// The memory could not be accessed.
    #[error(transparent)]
    Access(E),
}

/// What identifies a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Module that it speaks for.
    pub build_id: BuildId,
    /// Counts registries of the same module; the highest is the valid one.
    pub generation: u64,
}

/// Whether bytes at the start of a mapping look like a registry.
pub fn looks_like_registry(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The header's bytes.
pub fn encode_header(header: &Header) -> [u8; HEADER_SIZE] {
    let mut out = [0; HEADER_SIZE];
    out[..16].copy_from_slice(&MAGIC);
    out[16..20].copy_from_slice(&VERSION.to_le_bytes());
    out[20..24].copy_from_slice(&SLOT_SIZE.to_le_bytes());
    out[24..32].copy_from_slice(&header.generation.to_le_bytes());
    let id = header.build_id.as_bytes();
    let id = &id[..id.len().min(MAX_BUILD_ID)];
    out[32..36].copy_from_slice(&(id.len() as u32).to_le_bytes());
    out[40..40 + id.len()].copy_from_slice(id);
    let digest = Digest::of(&out[..COVERED]);
    out[COVERED..].copy_from_slice(&digest.0);
    out
}

/// Reads a header that starts with the magic.
pub fn decode_header<E>(at: RunAddr, bytes: &[u8; HEADER_SIZE]) -> Result<Header, FormatError<E>> {
    let damaged = |what| FormatError::Damaged { at, what };
    if !looks_like_registry(bytes) {
        return Err(damaged("no magic"));
    }
    if bytes[COVERED..] != Digest::of(&bytes[..COVERED]).0 {
        return Err(damaged("header digest"));
    }
    let version = u32_at(bytes, 16);
    if version != VERSION {
        return Err(FormatError::Version { at, found: version });
    }
    if u32_at(bytes, 20) != SLOT_SIZE {
        return Err(damaged("slot size"));
    }
    let length = u32_at(bytes, 32) as usize;
    let id = bytes[40..COVERED].get(..length).ok_or_else(|| damaged("length of the build-id"))?;
    Ok(Header { build_id: BuildId::new(id), generation: u64_at(bytes, 24) })
}

/// An initialised registry in some memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Its first byte.
    pub at: RunAddr,
}

impl Location {
    fn slot(self, slot: u64) -> RunAddr {
        self.at.offset((HEADER_PAGE + slot * u64::from(SLOT_SIZE)) as i64)
    }

    fn commit_word<S: Load>(self, store: &mut S) -> Result<u64, FormatError<S::Error>> {
        let mut word = [0; 8];
        store.load(self.at.offset(COMMIT_WORD), &mut word).map_err(FormatError::Access)?;
        Ok(u64::from_le_bytes(word))
    }

    /// The committed state; `None` if there never was one.
    pub fn read<S: Load>(self, store: &mut S) -> Result<Option<State>, FormatError<S::Error>> {
        let damaged = |what| FormatError::Damaged { at: self.at, what };
        let word = self.commit_word(store)?;
        if word == 0 {
            return Ok(None);
        }
        let at = self.slot(word & 1);
        let mut header = [0; SLOT_HEADER];
        store.load(at, &mut header).map_err(FormatError::Access)?;
        if u64_at(&header, 0) != word >> 1 {
            return Err(damaged("sequence number"));
        }
        let length = u64_at(&header, 8);
        if length > u64::from(SLOT_SIZE) - SLOT_HEADER as u64 {
            return Err(damaged("length of the state"));
        }
        let mut payload = vec![0; length as usize];
        store.load(at.offset(SLOT_HEADER as i64), &mut payload).map_err(FormatError::Access)?;
        if header[16..] != digest(&header[..16], &payload).0 {
            return Err(damaged("digest of the state"));
        }
        serde_json::from_slice(&payload).map(Some).map_err(|_| damaged("contents of the state"))
    }

    /// Replaces the state. A failure leaves the old one current.
    pub fn commit<S: Store>(self, store: &mut S, state: &State) -> Result<(), FormatError<S::Error>> {
        let payload = serde_json::to_vec(state)
            .map_err(|_| FormatError::Damaged { at: self.at, what: "state cannot be encoded" })?;
        let size = SLOT_HEADER + payload.len();
        if size > SLOT_SIZE as usize {
            return Err(FormatError::Full(size));
        }
        let word = self.commit_word(store)?;
        let sequence = (word >> 1) + 1;
        let slot = (word & 1) ^ 1;
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        let digest = digest(&bytes, &payload);
        bytes.extend_from_slice(&digest.0);
        bytes.extend_from_slice(&payload);
        store.store(self.slot(slot), &bytes).map_err(FormatError::Access)?;
        let word = sequence << 1 | slot;
        store.store(self.at.offset(COMMIT_WORD), &word.to_le_bytes()).map_err(FormatError::Access)
    }
}

fn digest(header: &[u8], payload: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    Digest(*hasher.finalize().as_bytes())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use livepatch_patch::Bias;
    use std::collections::BTreeMap;

    /// Sparse memory that fails after a number of writes, as if the tool were killed there.
    #[derive(Default, Clone)]
    struct Fake {
        bytes: BTreeMap<u64, u8>,
        writes_left: Option<u32>,
    }

    impl Load for Fake {
        type Error = ();
        fn load(&mut self, at: RunAddr, buf: &mut [u8]) -> Result<(), ()> {
            for (i, byte) in buf.iter_mut().enumerate() {
                *byte = self.bytes.get(&(at.0 + i as u64)).copied().unwrap_or(0);
            }
            Ok(())
        }
    }

    impl Store for Fake {
        fn store(&mut self, at: RunAddr, bytes: &[u8]) -> Result<(), ()> {
            if let Some(left) = &mut self.writes_left {
                *left = left.checked_sub(1).ok_or(())?;
            }
            self.bytes.extend(bytes.iter().enumerate().map(|(i, byte)| (at.0 + i as u64, *byte)));
            Ok(())
        }
    }

    const AT: Location = Location { at: RunAddr(0x7000_0000) };

    fn state(bias: u64) -> State {
        State::new(BuildId::new([1, 2, 3]), Bias(bias))
    }

    #[test]
    fn header_round_trips_and_every_flipped_bit_shows() {
        let header = Header { build_id: BuildId::new([7; 20]), generation: 3 };
        let bytes = encode_header(&header);
        assert_eq!(decode_header::<()>(AT.at, &bytes).unwrap(), header);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_header::<()>(AT.at, &bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn other_versions_are_refused() {
        let header = Header { build_id: BuildId::new([7; 20]), generation: 3 };
        for other in [VERSION - 1, VERSION + 1] {
            let mut bytes = encode_header(&header);
            bytes[16..20].copy_from_slice(&other.to_le_bytes());
            let digest = Digest::of(&bytes[..COVERED]);
            bytes[COVERED..].copy_from_slice(&digest.0);
            let refused = decode_header::<()>(AT.at, &bytes).unwrap_err();
            assert!(matches!(refused, FormatError::Version { found, .. } if found == other), "{refused:?}");
        }
    }

    #[test]
    fn torn_commits_leave_the_old_state() {
        let mut memory = Fake::default();
        assert_eq!(AT.read(&mut memory).unwrap(), None);
        for round in 1..6 {
            AT.commit(&mut memory, &state(round)).unwrap();
            assert_eq!(AT.read(&mut memory).unwrap(), Some(state(round)));
            for writes in 0..2 {
                let mut torn = Fake { writes_left: Some(writes), ..memory.clone() };
                AT.commit(&mut torn, &state(99)).unwrap_err();
                assert_eq!(AT.read(&mut torn).unwrap(), Some(state(round)), "killed after {writes} writes");
            }
        }
    }

    #[test]
    fn damage_is_told_from_state() {
        let mut memory = Fake::default();
        AT.commit(&mut memory, &state(1)).unwrap();
        let written: Vec<u64> = memory.bytes.keys().copied().collect();
        for at in written {
            let mut bad = memory.clone();
            *bad.bytes.get_mut(&at).unwrap() ^= 0x10;
            assert_ne!(AT.read(&mut bad).ok().flatten(), Some(state(1)), "byte {at:#x}");
        }
    }

    #[test]
    fn a_state_that_is_too_large_is_refused_before_any_write() {
        let mut memory = Fake { writes_left: Some(0), ..Fake::default() };
        let huge = State::new(BuildId::new(vec![0; SLOT_SIZE as usize]), Bias(0));
        assert!(matches!(AT.commit(&mut memory, &huge), Err(FormatError::Full(_))));
    }
}
