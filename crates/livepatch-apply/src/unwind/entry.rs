//! The one function of a Rust program that may have no unwind tables: `main`.
//!
//! With `panic=abort` the compiler leaves out the tables of the C `main` that it generates (it calls the runtime and returns),
//! although every other function has them. Its frame is proven from the code instead: `_start` hands the address of `main` to
//! the C library, and as long as instructions follow each other without a branch, how far each moves the stack pointer is
//! certain. Code that does anything else with the stack or with a callee-saved register is left unproven.

use super::dwarf;
use super::table::{Cfa, Row, Rule};
use crate::elf::{Image, Peek};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use livepatch_patch::RunAddr;
use std::ops::Range;

/// Instructions of a function up to its first branch or return.
#[derive(Debug)]
pub struct StraightCode {
    start: u64,
    /// Each instruction with the distance from the stack pointer before it to the return address.
    depths: Vec<(Range<u64>, i64)>,
}

/// Callee-saved registers.
const KEPT: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];
/// Longest code that is looked at.
const START_SIZE: usize = 64;
const MAIN_SIZE: usize = 256;

/// The executable's `main`, if `_start` names it in the usual way.
pub fn main_of(memory: &dyn Peek, image: &Image) -> Option<StraightCode> {
    let start = memory.bytes(image.entry, START_SIZE).ok()?;
    let main = Decoder::with_ip(64, &start, image.entry.0, DecoderOptions::NONE)
        .iter()
        .take_while(|instruction| instruction.flow_control() == FlowControl::Next)
        .find_map(|instruction| first_argument(memory, &instruction))?;
    image.segment(main).filter(|segment| segment.execute)?;
    Some(StraightCode::decode(main, &memory.bytes(main, MAIN_SIZE).ok()?))
}

/// What an instruction of `_start` puts into `rdi`, the first argument of `__libc_start_main`.
fn first_argument(memory: &dyn Peek, instruction: &Instruction) -> Option<RunAddr> {
    if instruction.op0_register() != Register::RDI && instruction.op0_register() != Register::EDI {
        return None;
    }
    let address = instruction.is_ip_rel_memory_operand().then(|| instruction.ip_rel_memory_address());
    match (instruction.mnemonic(), address) {
        (Mnemonic::Lea, Some(address)) => Some(RunAddr(address)),
        (Mnemonic::Mov, Some(slot)) => memory.word(RunAddr(slot)).ok().map(RunAddr),
        (Mnemonic::Mov, None) if instruction.op1_kind() != OpKind::Register => {
            Some(RunAddr(instruction.immediate(1)))
        }
        _ => None,
    }
}

impl StraightCode {
    fn decode(start: RunAddr, code: &[u8]) -> Self {
        let mut info = InstructionInfoFactory::new();
        let (mut depths, mut depth) = (Vec::new(), 0);
        for instruction in Decoder::with_ip(64, code, start.0, DecoderOptions::NONE).iter() {
            if instruction.is_invalid() {
                break;
            }
            depths.push((instruction.ip()..instruction.next_ip(), depth));
            let goes_on = matches!(
                instruction.flow_control(),
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall
            );
            let kept = writes(&instruction, &mut info).iter().all(|register| !KEPT.contains(register));
            match stack_growth(&instruction, &mut info) {
                Some(growth) if goes_on && kept => depth += growth,
                _ => break,
            }
        }
        Self { start: start.0, depths }
    }

    /// How to leave the frame of a thread that is at this address.
    pub(super) fn row(&self, pc: RunAddr) -> Option<Row> {
        let (_, depth) = self.depths.iter().find(|(range, _)| range.contains(&pc.0))?;
        let mut rules = [const { Rule::Unspecified }; dwarf::COUNT];
        rules[dwarf::RIP] = Rule::At(-8);
        Some(Row {
            cfa: Cfa::Register { register: dwarf::RSP as u8, offset: depth + 8 },
            rules,
            signal: false,
            function: RunAddr(self.start),
        })
    }
}

/// The registers that an instruction writes to, in full width.
pub(super) fn writes(instruction: &Instruction, info: &mut InstructionInfoFactory) -> Vec<Register> {
    let writes = |access| {
        !matches!(access, OpAccess::Read | OpAccess::None | OpAccess::NoMemAccess | OpAccess::CondRead)
    };
    let used = info.info(instruction).used_registers().iter();
    used.filter(|used| writes(used.access())).map(|used| used.register().full_register()).collect()
}

/// Bytes by which an instruction moves the stack pointer down, a call with its return; `None` if that is in doubt.
pub(super) fn stack_growth(instruction: &Instruction, info: &mut InstructionInfoFactory) -> Option<i64> {
    let is_call = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
    if is_call || !writes(instruction, info).contains(&Register::RSP) {
        return Some(0);
    }
    let immediate = |instruction: &Instruction| {
        (instruction.op0_register() == Register::RSP && instruction.op1_kind() != OpKind::Register)
            .then(|| instruction.try_immediate(1).ok().map(|value| value as i64))
            .flatten()
    };
    match instruction.mnemonic() {
        Mnemonic::Pop if instruction.op0_register().full_register() == Register::RSP => None,
        Mnemonic::Push | Mnemonic::Pop => Some(-i64::from(instruction.stack_pointer_increment())),
        Mnemonic::Sub => immediate(instruction),
        Mnemonic::Add => immediate(instruction).map(|value| -value),
        Mnemonic::Lea
            if instruction.op0_register() == Register::RSP
                && instruction.memory_base() == Register::RSP
                && instruction.memory_index() == Register::None =>
        {
            Some(-(instruction.memory_displacement64() as i64))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(code: &[u8], at: u64) -> Option<i64> {
        let row = StraightCode::decode(RunAddr(0x1000), code).row(RunAddr(0x1000 + at))?;
        match row.cfa {
            Cfa::Register { offset, .. } => Some(offset),
            Cfa::Expression(_) => None,
        }
    }

    #[test]
    fn follows_the_stack_pointer() {
        // push rax; mov rcx, rsi; sub rsp, 16; call +0; add rsp, 16; pop rcx; ret
        let code = [
            0x50, 0x48, 0x89, 0xf1, 0x48, 0x83, 0xec, 16, 0xe8, 0, 0, 0, 0, 0x48, 0x83, 0xc4, 16, 0x59, 0xc3,
        ];
        let depths: Vec<_> = [0, 1, 4, 12, 13, 17, 18, 19].map(|at| depth(&code, at)).to_vec();
        let expected = [Some(8), Some(16), Some(16), Some(32), Some(32), Some(16), Some(8), None];
        assert_eq!(depths, expected);
    }

    #[test]
    fn stops_where_it_is_not_certain() {
        // jne +0; nop
        assert_eq!((depth(&[0x75, 0, 0x90], 0), depth(&[0x75, 0, 0x90], 2)), (Some(8), None));
        // and rsp, -16; nop
        assert_eq!(depth(&[0x48, 0x83, 0xe4, 0xf0, 0x90], 4), None);
        // mov ebx, edi; nop
        assert_eq!(depth(&[0x89, 0xfb, 0x90], 2), None);
    }
}
