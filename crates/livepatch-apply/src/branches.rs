//! Whether a function branches to its own first bytes, which a jump or a breakpoint is going to overwrite.
//!
//! Addresses of a function's blocks are nobody else's business. What leads to one is a branch; an instruction that loads the
//! address; or a jump table that the function refers to, of distances from the table's own start or of addresses. How long a
//! table is does not show, but all its entries lead into the function (only compilers of other languages move blocks out of it,
//! and their functions are never replaced), so it ends before the first word that does not.
//!
//! Whatever does not fit into this counts as a branch to the first bytes: code that does not decode, a table without an end, a
//! destination that is computed and not by a table that was read.

use crate::elf::{Peek, long};
use crate::jump::JUMP_SIZE;
use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};
use livepatch_patch::RunAddr;
use std::collections::BTreeSet;
use std::ops::Range;

/// Whether some branch of a function may lead behind the first byte of what the jump overwrites. `code` is the whole function at
/// `start`, as the image has it; jump tables are read from `memory`.
pub fn branches_into_entry(start: RunAddr, code: &[u8], memory: &dyn Peek) -> bool {
    Function::new(start, code, memory).may_branch_to(&(start.0 + 1..start.0 + JUMP_SIZE as u64))
}

/// Whether a thread whose next instruction is the first one of a function has just been called: no branch of the function
/// itself leads there. Such a thread has not begun; what it meets at the entry is what it runs.
pub fn entry_is_fresh(start: RunAddr, code: &[u8], memory: &dyn Peek) -> bool {
    !Function::new(start, code, memory).may_branch_to(&(start.0..start.0 + 1))
}

/// Below this there is no memory (`vm.mmap_min_addr`): smaller numbers are no addresses.
const LOWEST: u64 = 1 << 16;
/// More entries than any table has.
const MOST: u64 = 1 << 16;
/// What a called function need not preserve (System V ABI AMD64, figure 3.4).
const VOLATILE: [Register; 9] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

struct Function<'a> {
    range: Range<u64>,
    instructions: Vec<Instruction>,
    memory: &'a dyn Peek,
}

impl<'a> Function<'a> {
    fn new(start: RunAddr, code: &[u8], memory: &'a dyn Peek) -> Self {
        let mut decoder = Decoder::with_ip(64, code, start.0, DecoderOptions::NONE);
        let instructions = decoder.iter().collect();
        Self { range: start.0..start.0 + code.len() as u64, instructions, memory }
    }

    fn may_branch_to(&self, window: &Range<u64>) -> bool {
        let direct = |instruction: &Instruction| match instruction.flow_control() {
            FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::XbeginXabortXend => window.contains(&instruction.near_branch_target()),
            // Recursion comes as every call does.
            FlowControl::Call => {
                let target = instruction.near_branch_target();
                target != self.range.start && window.contains(&target)
            }
            _ => instruction.is_invalid(),
        };
        if self.instructions.iter().any(direct) {
            return true;
        }
        let indirect = |(_, i): &(usize, &Instruction)| i.flow_control() == FlowControl::IndirectBranch;
        let mut jumps = self.instructions.iter().enumerate().filter(indirect).peekable();
        // Where no instruction begins, no block does.
        let begins = self.instructions.iter().any(|instruction| window.contains(&instruction.ip()));
        if !begins || jumps.peek().is_none() {
            return false;
        }
        let addresses = self.addresses();
        let mut tables = 0;
        for address in addresses {
            // The function's own address is that of a function.
            if address != self.range.start && window.contains(&address) {
                return true;
            }
            match self.table(address, window) {
                Table::Leads => return true,
                Table::Elsewhere => tables += 1,
                Table::None => {}
            }
        }
        !jumps.all(|(at, jump)| self.is_known(at, jump, tables > 0))
    }

    /// Every address that the function's instructions hold, but those that they branch to.
    fn addresses(&self) -> BTreeSet<u64> {
        let of = |instruction: &Instruction| {
            let memory = match instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
                true if instruction.is_ip_rel_memory_operand() => instruction.ip_rel_memory_address(),
                true => instruction.memory_displacement64(),
                false => 0,
            };
            let immediate = match (instruction.mnemonic(), instruction.op1_kind()) {
                (Mnemonic::Mov, OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64) => {
                    instruction.immediate(1)
                }
                _ => 0,
            };
            [memory, immediate]
        };
        // Distances from the stack pointer and the like are small, or negative.
        let plausible = |address: &u64| (LOWEST..1 << 47).contains(address);
        self.instructions.iter().flat_map(of).filter(plausible).collect()
    }

    /// What the table at an address leads to, if there is one.
    fn table(&self, at: u64, window: &Range<u64>) -> Table {
        if self.range.contains(&at) {
            return Table::None;
        }
        let distance = |index: u64| {
            let bytes = self.memory.bytes(RunAddr(at + 4 * index), 4).ok()?;
            Some(at.wrapping_add_signed(i64::from(long(&bytes, 0) as i32)))
        };
        let address = |index: u64| self.memory.word(RunAddr(at + 8 * index)).ok();
        self.scan(window, distance).or_else(|| self.scan(window, address)).unwrap_or(Table::None)
    }

    /// `None` if not even the first entry leads into the function.
    fn scan(&self, window: &Range<u64>, entry: impl Fn(u64) -> Option<u64>) -> Option<Table> {
        let entries = (0..MOST).map_while(entry).take_while(|target| self.range.contains(target));
        let mut count = 0;
        for target in entries {
            if window.contains(&target) {
                return Some(Table::Leads);
            }
            count += 1;
        }
        match count {
            0 => None,
            MOST => Some(Table::Leads),
            _ => Some(Table::Elsewhere),
        }
    }

    /// Whether it is known what kind of destination an indirect jump has: what a pointer in memory or a parameter leads to, which is
    /// a function, or an entry of a table that was read.
    fn is_known(&self, at: usize, jump: &Instruction, has_table: bool) -> bool {
        jump.op0_kind() != OpKind::Register || self.value_is_known(at, jump.op0_register(), has_table)
    }

    /// The same for the value of a register before an instruction: by the last instruction before it that sets it.
    fn value_is_known(&self, before: usize, register: Register, has_table: bool) -> bool {
        let mut register = register.full_register();
        for (at, instruction) in self.instructions[..before].iter().enumerate().rev() {
            if !sets(instruction, register) {
                continue;
            }
            let source = (instruction.op_count() == 2 && instruction.op1_kind() == OpKind::Register)
                .then(|| instruction.op1_register().full_register());
            let conditional = instruction.condition_code() != ConditionCode::None;
            match (instruction.mnemonic(), instruction.flow_control(), source) {
                (_, FlowControl::Call | FlowControl::IndirectCall, _) => return true,
                (Mnemonic::Mov, _, Some(source)) => register = source,
                (Mnemonic::Mov | Mnemonic::Lea, ..) => return true,
                (Mnemonic::Add, _, Some(_)) => return has_table,
                (_, _, Some(source)) if conditional => {
                    if !self.value_is_known(at, source, has_table) {
                        return false;
                    }
                }
                _ if conditional => {}
                _ => return false,
            }
        }
        true
    }
}

/// What was found at an address.
enum Table {
    /// No jump table of this function.
    None,
    /// One that leads elsewhere.
    Elsewhere,
    /// One that leads to the bytes in question, or may.
    Leads,
}

fn sets(instruction: &Instruction, register: Register) -> bool {
    // What an epilogue takes from the stack is the caller's.
    if instruction.mnemonic() == Mnemonic::Pop {
        return false;
    }
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        return VOLATILE.contains(&register);
    }
    let written = |access| {
        matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    };
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(instruction).used_registers();
    used.iter().any(|used| written(used.access()) && used.register().full_register() == register)
}

#[cfg(test)]
mod tests {
    use super::*;
    use livepatch_process::{Pid, ProcessError};

    const START: RunAddr = RunAddr(0x10_0000);
    const TABLE: u64 = 0x10_1000;

    /// Memory that holds one table.
    struct Memory(u64, Vec<u8>);

    impl Peek for Memory {
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

    fn nothing() -> Memory {
        Memory(0, Vec::new())
    }

    #[test]
    fn finds_branches_into_the_entry() {
        let inside = |code: &[u8]| branches_into_entry(START, code, &nothing());
        // xor eax,eax; inc eax; cmp eax,edi; jne <inc>; ret
        assert!(inside(&[0x31, 0xc0, 0xff, 0xc0, 0x39, 0xf8, 0x75, 0xfa, 0xc3]));
        // the same with the branch to the very start: the jump is what it then meets
        assert!(!inside(&[0x31, 0xc0, 0xff, 0xc0, 0x39, 0xf8, 0x75, 0xf8, 0xc3]));
        assert!(inside(&[0x06]), "an invalid instruction");
        // xor eax,eax; nop; jmp rax
        assert!(inside(&[0x31, 0xc0, 0x90, 0xff, 0xe0]), "a destination from nowhere");
        // xor eax,eax; nop; lea rax,[rip-8] (the nop); jmp rax
        assert!(inside(&[0x31, 0xc0, 0x90, 0x48, 0x8d, 0x05, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xe0]));
        // mov eax,1; jmp rax: nothing to come back to inside the first five bytes
        assert!(!inside(&[0xb8, 1, 0, 0, 0, 0xff, 0xe0]));
    }

    #[test]
    fn tells_a_fresh_entry_from_a_loop_head() {
        let fresh = |code: &[u8]| entry_is_fresh(START, code, &nothing());
        // mov eax,1; ret
        assert!(fresh(&[0xb8, 1, 0, 0, 0, 0xc3]));
        // dec edi; jne <start>; ret
        assert!(!fresh(&[0xff, 0xcf, 0x75, 0xfc, 0xc3]));
        // call <start>; ret: recursion is a fresh call
        assert!(fresh(&[0xe8, 0xfb, 0xff, 0xff, 0xff, 0xc3]));
    }

    #[test]
    fn tail_calls_are_told_from_jump_tables() {
        let known = |code: &[u8]| {
            let fresh = entry_is_fresh(START, code, &nothing());
            assert_eq!(branches_into_entry(START, code, &nothing()), !fresh);
            fresh
        };
        assert!(known(&[0x90, 0x90, 0xff, 0xe0]), "jmp rax, a parameter");
        assert!(known(&[0x90, 0x90, 0xff, 0x60, 0x18]), "jmp [rax+0x18], a vtable");
        assert!(known(&[0x90, 0x48, 0x8b, 0x46, 0x18, 0xff, 0xe0]), "mov rax,[rsi+0x18]; jmp rax");
        assert!(known(&[0x90, 0xff, 0xd6, 0xff, 0xe0]), "call rsi; jmp rax");
        // mov r14,[rsi]; pop r14; ret; mov rax,r14; jmp rax
        assert!(known(&[0x4c, 0x8b, 0x36, 0x41, 0x5e, 0xc3, 0x4c, 0x89, 0xf0, 0xff, 0xe0]));
        // mov rax,[rsi]; test edi,edi; cmove rax,rdx; mov rcx,rax; jmp rcx
        let chosen = [0x48, 0x8b, 0x06, 0x85, 0xff, 0x48, 0x0f, 0x44, 0xc2, 0x48, 0x89, 0xc1, 0xff, 0xe1];
        assert!(known(&chosen));
        assert!(!known(&[0x90, 0x48, 0xff, 0xc0, 0xff, 0xe0]), "inc rax; jmp rax");
        assert!(!known(&[0x90, 0x48, 0x01, 0xc8, 0xff, 0xe0]), "add rax,rcx; jmp rax without a table");
    }

    #[test]
    fn jump_tables_are_read() {
        // xor eax,eax; nop; lea rcx,[TABLE]; movsxd rax,[rcx+rdi*4]; add rax,rcx; jmp rax; nop; ret
        let code = [
            0x31, 0xc0, 0x90, 0x48, 0x8d, 0x0d, 0xf6, 0x0f, 0, 0, 0x48, 0x63, 0x04, 0xb9, 0x48, 0x01, 0xc8,
            0xff, 0xe0, 0x90, 0xc3,
        ];
        let table = |targets: &[u64]| {
            let words =
                targets.iter().flat_map(|target| ((*target as i64 - TABLE as i64) as i32).to_le_bytes());
            Memory(TABLE, words.collect())
        };
        let judge = |code: &[u8], memory: Memory| {
            (branches_into_entry(START, code, &memory), entry_is_fresh(START, code, &memory))
        };
        assert_eq!(judge(&code, table(&[0x10_0013, 0x10_0014, 0x10_0013])), (false, true));
        assert_eq!(
            judge(&code, table(&[0x10_0013, 0x10_0002])),
            (true, true),
            "to the nop behind the first instruction"
        );
        assert_eq!(judge(&code, table(&[0x10_0013, 0x10_0000])), (false, false), "to the start");
        assert_eq!(judge(&code, table(&[0x10_0013, 0x50_0000, 0x10_0002])), (false, true), "behind its end");
        assert_eq!(judge(&code, table(&[])), (true, false), "a table that cannot be read");
        let endless = vec![0x10_0013; MOST as usize];
        assert_eq!(judge(&code, table(&endless)), (true, false), "a table that does not end");
        // xor eax,eax; jmp [rdi*8+TABLE]; ret
        let code = [0x31, 0xc0, 0xff, 0x24, 0xfd, 0, 0x10, 0x10, 0, 0xc3];
        let table = |targets: &[u64]| Memory(TABLE, targets.iter().flat_map(|t| t.to_le_bytes()).collect());
        assert_eq!(judge(&code, table(&[0x10_0009, 0x10_0009])), (false, true));
        assert_eq!(judge(&code, table(&[0x10_0009, 0x10_0002])), (true, true));
        assert_eq!(judge(&code, table(&[0x10_0009, 0x10_0000])), (false, false));
    }
}
