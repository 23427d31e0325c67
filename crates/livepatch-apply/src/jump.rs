//! The jump at a redirected function's entry.

use crate::registry::Code;
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use livepatch_patch::RunAddr;

/// Size of `jmp rel32`.
pub const JUMP_SIZE: usize = 5;

/// Opcode of `jmp rel32`.
const JMP_REL32: u8 = 0xe9;

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

/// Whether some branch of a function may lead behind the first byte of what the jump overwrites.
///
/// `code` is the whole function at `start`. Code that does not decode counts as such a branch, and so does an indirect
/// branch (a jump table may hold any instruction), unless the first instruction alone fills the overwritten bytes.
pub fn branches_into_entry(start: RunAddr, code: &[u8]) -> bool {
    let window = start.0 + 1..start.0 + JUMP_SIZE as u64;
    let mut decoder = Decoder::with_ip(64, code, start.0, DecoderOptions::NONE);
    let mut boundary_inside = false;
    decoder.iter().any(|instruction| {
        boundary_inside |= window.contains(&instruction.ip());
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Call
            | FlowControl::XbeginXabortXend => window.contains(&instruction.near_branch_target()),
            FlowControl::IndirectBranch => boundary_inside,
            _ => instruction.is_invalid(),
        }
    })
}

/// Whether a thread whose next instruction is the first one of a function has just been called: no branch of the function
/// itself leads there. Such a thread has not begun; what it meets at the entry is what it runs.
///
/// Code that does not decode, and an indirect branch (a jump table may hold any address), count as such a branch.
pub fn entry_is_fresh(start: RunAddr, code: &[u8]) -> bool {
    let mut decoder = Decoder::with_ip(64, code, start.0, DecoderOptions::NONE);
    !decoder.iter().any(|instruction| match instruction.flow_control() {
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
            instruction.near_branch_target() == start.0
        }
        FlowControl::IndirectBranch => true,
        _ => instruction.is_invalid(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_up_to_both_edges() {
        let from = RunAddr(0x1_0000_0000);
        assert_eq!(encode(from, RunAddr(0x1_0000_0005)).unwrap().0, [0xe9, 0, 0, 0, 0]);
        assert_eq!(encode(from, from).unwrap().0, [0xe9, 0xfb, 0xff, 0xff, 0xff]);
        let furthest = from.offset(5 + i64::from(i32::MAX));
        assert_eq!(encode(from, furthest).unwrap().0, [0xe9, 0xff, 0xff, 0xff, 0x7f]);
        assert_eq!(encode(from, furthest.offset(1)), Err(TooFar { from, to: furthest.offset(1) }));
        let lowest = from.offset(5 + i64::from(i32::MIN));
        assert_eq!(encode(from, lowest).unwrap().0, [0xe9, 0, 0, 0, 0x80]);
        assert!(encode(from, lowest.offset(-1)).is_err());
    }

    #[test]
    fn finds_branches_into_the_entry() {
        let start = RunAddr(0x1000);
        // xor eax,eax; inc eax; cmp eax,edi; jne <inc>; ret
        let looping = [0x31, 0xc0, 0xff, 0xc0, 0x39, 0xf8, 0x75, 0xfa, 0xc3];
        assert!(branches_into_entry(start, &looping));
        // the same with the branch to the very start: the jump is what it then meets
        let restart = [0x31, 0xc0, 0xff, 0xc0, 0x39, 0xf8, 0x75, 0xf8, 0xc3];
        assert!(!branches_into_entry(start, &restart));
        assert!(branches_into_entry(start, &[0x06]), "an invalid instruction");
        // xor eax,eax; nop; jmp rax: may come back to the nop
        assert!(branches_into_entry(start, &[0x31, 0xc0, 0x90, 0xff, 0xe0]));
        // mov eax,1; jmp rax: nothing to come back to inside the first five bytes
        assert!(!branches_into_entry(start, &[0xb8, 1, 0, 0, 0, 0xff, 0xe0]));
    }

    #[test]
    fn tells_a_fresh_entry_from_a_loop_head() {
        let start = RunAddr(0x1000);
        // mov eax,1; ret
        assert!(entry_is_fresh(start, &[0xb8, 1, 0, 0, 0, 0xc3]));
        // dec edi; jne <start>; ret
        assert!(!entry_is_fresh(start, &[0xff, 0xcf, 0x75, 0xfc, 0xc3]));
        // call <start>; ret: recursion is a fresh call
        assert!(entry_is_fresh(start, &[0xe8, 0xfb, 0xff, 0xff, 0xff, 0xc3]));
        assert!(!entry_is_fresh(start, &[0xff, 0xe0]), "jmp rax");
    }
}
