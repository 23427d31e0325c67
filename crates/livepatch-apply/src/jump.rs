//! The jump at a redirected function's entry.

use crate::registry::Code;
use livepatch_patch::RunAddr;

/// Size of `jmp rel32`.
pub const JUMP_SIZE: usize = 5;

/// Opcodes of `jmp`, by the size of the distance in bits.
pub(crate) const JMP_REL8: u8 = 0xeb;
pub(crate) const JMP_REL32: u8 = 0xe9;

/// The destination is more than 2 GiB away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a jump at {from} cannot reach {to}")]
pub struct TooFar {
    /// Where the jump would be.
    pub from: RunAddr,
    /// Where it would go.
    pub to: RunAddr,
}

/// Encodes `jmp to` for the place `from`.
///
/// # Errors
/// The distance does not fit 32 bits.
pub fn encode(from: RunAddr, to: RunAddr) -> Result<Code, TooFar> {
    let distance = to.distance_from(from.offset(JUMP_SIZE as i64));
    let rel = i32::try_from(distance).map_err(|_| TooFar { from, to })?.to_le_bytes();
    Ok(Code([JMP_REL32, rel[0], rel[1], rel[2], rel[3]]))
}

impl Code {
    /// Where the jump at `at` leads that these bytes are.
    pub fn jump_target(self, at: RunAddr) -> RunAddr {
        let [_, a, b, c, d] = self.0;
        at.offset(JUMP_SIZE as i64 + i64::from(i32::from_le_bytes([a, b, c, d])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_up_to_both_edges() {
        let from = RunAddr(0x1_0000_0000);
        assert_eq!(encode(from, RunAddr(0x1_0000_0005)).unwrap().0, [0xe9, 0, 0, 0, 0]);
        assert_eq!(encode(from, from).unwrap().0, [0xe9, 0xfb, 0xff, 0xff, 0xff]);
        assert_eq!(encode(from, from).unwrap().jump_target(from), from);
        let furthest = from.offset(5 + i64::from(i32::MAX));
        assert_eq!(encode(from, furthest).unwrap().0, [0xe9, 0xff, 0xff, 0xff, 0x7f]);
        assert_eq!(encode(from, furthest.offset(1)), Err(TooFar { from, to: furthest.offset(1) }));
        let lowest = from.offset(5 + i64::from(i32::MIN));
        assert_eq!(encode(from, lowest).unwrap().0, [0xe9, 0, 0, 0, 0x80]);
        assert!(encode(from, lowest.offset(-1)).is_err());
    }
}
