//! The jump at a redirected function's entry.

use crate::elf::Peek;
use crate::registry::Code;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use livepatch_patch::RunAddr;
use std::ops::Range;

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
/// Code that does not decode counts as such a branch. Jump tables are read from `memory`.
pub fn entry_is_fresh(start: RunAddr, code: &[u8], memory: &dyn Peek) -> bool {
    let mut decoder = Decoder::with_ip(64, code, start.0, DecoderOptions::NONE);
    let instructions: Vec<Instruction> = decoder.iter().collect();
    let function = start.0..start.0 + code.len() as u64;
    let tables = TableScan { start: start.0, function, memory };
    let mut jumps_to_register = false;
    for instruction in &instructions {
        let back = match instruction.flow_control() {
            FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::XbeginXabortXend => instruction.near_branch_target() == start.0,
            FlowControl::IndirectBranch if instruction.op0_kind() == OpKind::Register => {
                jumps_to_register = true;
                false
            }
            // Through a pointer in memory: a tail call, unless the pointer is chosen from a table.
            FlowControl::IndirectBranch => {
                instruction.memory_index() != Register::None
                    && tables.absolute(instruction.memory_displacement64())
            }
            _ => instruction.is_invalid(),
        };
        if back {
            return false;
        }
    }
    // Position-independent tables hold distances from their own start, which the function loads with `lea`.
    let bases = instructions.iter().filter(|i| i.mnemonic() == Mnemonic::Lea && i.is_ip_rel_memory_operand());
    !jumps_to_register || bases.map(Instruction::ip_rel_memory_address).all(|base| !tables.relative(base))
}

/// Looks for a function's entry in jump tables. How long a table is does not show, but all its entries lead into the
/// function, so it ends before the first word that does not.
struct TableScan<'a> {
    start: u64,
    function: Range<u64>,
    memory: &'a dyn Peek,
}

impl TableScan<'_> {
    const MOST: u64 = 1 << 16;

    fn relative(&self, base: u64) -> bool {
        self.scan(|index| {
            let bytes = self.memory.bytes(RunAddr(base + 4 * index), 4).ok()?;
            let distance = i32::from_le_bytes(bytes.try_into().ok()?);
            Some(base.wrapping_add_signed(i64::from(distance)))
        })
    }

    fn absolute(&self, table: u64) -> bool {
        self.scan(|index| self.memory.word(RunAddr(table + 8 * index)).ok())
    }

    fn scan(&self, entry: impl Fn(u64) -> Option<u64>) -> bool {
        let targets = (0..Self::MOST).map_while(entry).take_while(|target| self.function.contains(target));
        targets.into_iter().any(|target| target == self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use livepatch_process::{Pid, ProcessError};

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

    /// Memory that holds one table.
    struct Table(u64, Vec<u8>);

    impl Peek for Table {
        fn peek(&self, at: RunAddr, buffer: &mut [u8]) -> Result<(), ProcessError> {
            let missing = ProcessError::NoSuchProcess { pid: Pid(0) };
            let from = at.0.checked_sub(self.0).map(|offset| offset as usize);
            match from.and_then(|from| self.1.get(from..from + buffer.len())) {
                Some(bytes) => buffer.copy_from_slice(bytes),
                None => return Err(missing),
            }
            Ok(())
        }
    }

    #[test]
    fn tells_a_fresh_entry_from_a_loop_head() {
        let start = RunAddr(0x1000);
        let fresh = |code: &[u8]| entry_is_fresh(start, code, &Table(0, Vec::new()));
        // mov eax,1; ret
        assert!(fresh(&[0xb8, 1, 0, 0, 0, 0xc3]));
        // dec edi; jne <start>; ret
        assert!(!fresh(&[0xff, 0xcf, 0x75, 0xfc, 0xc3]));
        // call <start>; ret: recursion is a fresh call
        assert!(fresh(&[0xe8, 0xfb, 0xff, 0xff, 0xff, 0xc3]));
        assert!(fresh(&[0xff, 0xe0]), "jmp rax: a tail call, there is no table");
        assert!(fresh(&[0xff, 0x60, 0x18]), "jmp [rax+0x18]: a tail call through a vtable");
    }

    #[test]
    fn jump_tables_are_read() {
        let start = RunAddr(0x1000);
        // lea rcx,[rip+0xff9] (0x2000); movsxd rax,[rcx+rdi*4]; add rax,rcx; jmp rax; nop; ret
        let code = [
            0x48, 0x8d, 0x0d, 0xf9, 0x0f, 0, 0, 0x48, 0x63, 0x04, 0xb9, 0x48, 0x01, 0xc8, 0xff, 0xe0, 0x90,
            0xc3,
        ];
        let table = |targets: &[i64]| {
            let words = targets.iter().flat_map(|target| ((target - 0x2000) as i32).to_le_bytes());
            Table(0x2000, words.collect())
        };
        assert!(entry_is_fresh(start, &code, &table(&[0x1010, 0x1011, 0x1010])));
        assert!(!entry_is_fresh(start, &code, &table(&[0x1010, 0x1000])));
        assert!(entry_is_fresh(start, &code, &table(&[0x1010, 0x5000, 0x1000])), "behind its end");
        // jmp [rdi*8+0x2000]; ret
        let code = [0xff, 0x24, 0xfd, 0, 0x20, 0, 0, 0xc3];
        let table = |targets: &[u64]| Table(0x2000, targets.iter().flat_map(|t| t.to_le_bytes()).collect());
        assert!(entry_is_fresh(start, &code, &table(&[0x1007, 0x1007])));
        assert!(!entry_is_fresh(start, &code, &table(&[0x1007, 0x1000])));
    }
}
