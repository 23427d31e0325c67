//! How far the stack pointer is below the frame address, by the code of a function.
//!
//! Of a thread that is looked at in its sleep only the instruction and the stack pointer are known, and the tables of code with
//! frame pointers describe a frame by `rbp` alone. But the instructions tell how far each of them moves the stack pointer, and so
//! the distance at every instruction, along all ways through the function from its entry. The result is used only if it
//! agrees with the tables: where the code sets the frame pointer, the distance has to be the one that the tables have.
//!
//! Ways that the code does not show lead to landing pads, where the unwinder puts the stack pointer back to what it was at the
//! call, and out of jump tables, which do not move it. So instructions that no visible way leads to count as reached with the
//! distance that all calls and indirect jumps have in common, and as unknown if they have none in common. What several
//! ways reach with different distances is unknown; code that leaves the function in the middle of a frame (it may
//! come back in any state), that traps (the bytes may be a breakpoint's) or does not decode makes the whole function so.

use super::entry::{stack_growth, writes};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};
use std::collections::HashMap;

/// Distance at the entry: the return address.
pub(super) const AT_ENTRY: i64 = 8;
/// The largest function that is looked at, in bytes.
pub(super) const MAX_CODE: u64 = 256 << 10;

/// A distance in bytes, or the knowledge that there is none that always holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    Known(i64),
    Unknown,
}

/// The distances in one function.
#[derive(Debug, Default)]
pub struct Depths {
    /// End of each instruction, ascending, with the distance before it.
    known: Vec<(u64, Option<i64>)>,
    start: u64,
    /// Distances from the frame pointer to the frame address, by the code.
    frame_pointers: Vec<i64>,
}

impl Depths {
    /// Looks at the code of a whole function. `None` if it cannot be followed.
    pub fn of(start: u64, code: &[u8]) -> Option<Self> {
        let flow = Flow::decode(start, code)?;
        let mut visible = vec![None; flow.code.len()];
        flow.reach(&mut visible, 0, Depth::Known(AT_ENTRY))?;
        let unseen = flow.in_common(&visible);
        let mut depths = visible.clone();
        flow.reach_rest(&mut depths, unseen)?;
        if flow.in_common(&depths) != unseen {
            depths = visible;
            flow.reach_rest(&mut depths, Depth::Unknown)?;
        }
        if !flow.returns_are_plain(&depths) {
            return None;
        }
        let known = |depth: &Option<Depth>| match depth {
            Some(Depth::Known(depth)) => Some(*depth),
            _ => None,
        };
        let frame_pointers = flow.frame_pointers(&depths)?;
        let ends = flow.code.iter().map(Instruction::next_ip);
        Some(Self { known: ends.zip(depths.iter().map(known)).collect(), start, frame_pointers })
    }

    /// The distance at the instruction that holds an address, if the frame address is `offset` above the frame pointer wherever
    /// the code sets it.
    pub fn at(&self, address: u64, offset: i64) -> Option<i64> {
        let agrees = !self.frame_pointers.is_empty() && self.frame_pointers.iter().all(|fp| *fp == offset);
        let index = self.known.partition_point(|(end, _)| *end <= address);
        self.known.get(index).filter(|_| agrees && address >= self.start)?.1
    }
}

/// The instructions of a function.
struct Flow {
    code: Vec<Instruction>,
    index: HashMap<u64, usize>,
    range: std::ops::Range<u64>,
    growth: Vec<Option<i64>>,
}

impl Flow {
    fn decode(start: u64, bytes: &[u8]) -> Option<Self> {
        let mut info = InstructionInfoFactory::new();
        let (mut code, mut growth) = (Vec::new(), Vec::new());
        for instruction in Decoder::with_ip(64, bytes, start, DecoderOptions::NONE).iter() {
            use FlowControl::{Interrupt, XbeginXabortXend};
            if instruction.is_invalid() || matches!(instruction.flow_control(), Interrupt | XbeginXabortXend)
            {
                return None;
            }
            growth.push(stack_growth(&instruction, &mut info));
            code.push(instruction);
        }
        let index = code.iter().enumerate().map(|(index, instruction)| (instruction.ip(), index)).collect();
        Some(Self { code, index, range: start..start + bytes.len() as u64, growth })
    }

    /// Adds what can be reached from an instruction. `None` if the function cannot be followed.
    fn reach(&self, depths: &mut [Option<Depth>], from: usize, depth: Depth) -> Option<()> {
        let mut open = vec![(from, depth)];
        while let Some((at, depth)) = open.pop() {
            let merged = match depths[at] {
                None => depth,
                Some(known) if known == depth => continue,
                Some(Depth::Unknown) => continue,
                Some(Depth::Known(_)) => Depth::Unknown,
            };
            depths[at] = Some(merged);
            self.follow(at, merged, &mut open)?;
        }
        Some(())
    }

    /// The instructions that may come after one.
    fn follow(&self, at: usize, depth: Depth, open: &mut Vec<(usize, Depth)>) -> Option<()> {
        let instruction = &self.code[at];
        let after = match (depth, self.growth[at]) {
            (Depth::Known(depth), Some(growth)) => Depth::Known(depth + growth),
            _ => Depth::Unknown,
        };
        let control = instruction.flow_control();
        if matches!(control, FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch) {
            let target = instruction.near_branch_target();
            match self.index.get(&target) {
                Some(target) => open.push((*target, after)),
                None if self.range.contains(&target) => return None,
                // Another function takes over the frame's place.
                None if after == Depth::Known(AT_ENTRY) => {}
                None => return None,
            }
        }
        match control {
            FlowControl::Return
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Exception => Some(()),
            // Behind the last instruction there is nothing: it does not come back.
            _ => {
                open.extend((at + 1 < self.code.len()).then_some((at + 1, after)));
                Some(())
            }
        }
    }

    /// Everything that is left is reached with this distance.
    fn reach_rest(&self, depths: &mut [Option<Depth>], unseen: Depth) -> Option<()> {
        for at in 0..self.code.len() {
            if depths[at].is_none() {
                self.reach(depths, at, unseen)?;
            }
        }
        Some(())
    }

    /// Whether nothing but the return address is left on the stack at a return, as far as is known.
    fn returns_are_plain(&self, depths: &[Option<Depth>]) -> bool {
        let mut returns =
            self.code.iter().zip(depths).filter(|(i, _)| i.flow_control() == FlowControl::Return);
        returns.all(|(_, depth)| matches!(depth, None | Some(Depth::Unknown | Depth::Known(AT_ENTRY))))
    }

    /// The distance that all calls and indirect jumps have in common. A jump through a pointer at a fixed place is no jump table.
    fn in_common(&self, depths: &[Option<Depth>]) -> Depth {
        let leaves_sight = |instruction: &Instruction| match instruction.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => true,
            FlowControl::IndirectBranch => {
                instruction.op0_kind() == OpKind::Register || instruction.memory_index() != Register::None
            }
            _ => false,
        };
        let sites = self.code.iter().zip(depths).filter(|(instruction, _)| leaves_sight(instruction));
        let mut found = sites.filter_map(|(_, depth)| *depth);
        let Some(first) = found.next() else { return Depth::Unknown };
        if found.all(|depth| depth == first) { first } else { Depth::Unknown }
    }

    /// Where the code sets the frame pointer: how far it is below the frame address there. `None` if it does so in another
    /// way than by the stack pointer, apart from taking back what it saved.
    fn frame_pointers(&self, depths: &[Option<Depth>]) -> Option<Vec<i64>> {
        let mut info = InstructionInfoFactory::new();
        let mut found = Vec::new();
        for (instruction, depth) in self.code.iter().zip(depths) {
            if !writes(instruction, &mut info).contains(&Register::RBP) {
                continue;
            }
            let above = match instruction.mnemonic() {
                Mnemonic::Pop | Mnemonic::Leave => continue,
                Mnemonic::Mov if instruction.op1_register() == Register::RSP => 0,
                Mnemonic::Lea
                    if instruction.memory_base() == Register::RSP
                        && instruction.memory_index() == Register::None =>
                {
                    instruction.memory_displacement64() as i64
                }
                _ => return None,
            };
            let Some(Depth::Known(depth)) = *depth else { return None };
            found.push(depth - above);
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// push rbp; mov rbp, rsp; push rbx; sub rsp, 24
    const PROLOGUE: [u8; 9] = [0x55, 0x48, 0x89, 0xe5, 0x53, 0x48, 0x83, 0xec, 24];
    /// add rsp, 24; pop rbx; pop rbp; ret
    const EPILOGUE: [u8; 7] = [0x48, 0x83, 0xc4, 24, 0x5b, 0x5d, 0xc3];
    const CALL: [u8; 5] = [0xe8, 0, 0, 0, 0];
    /// In the body: return address, rbp, rbx, 24 bytes.
    const BODY: i64 = 8 + 8 + 8 + 24;

    fn depths(parts: &[&[u8]]) -> Option<Depths> {
        Depths::of(0x1000, &parts.concat())
    }

    fn at(parts: &[&[u8]], offset: u64) -> Option<i64> {
        depths(parts)?.at(0x1000 + offset, 16)
    }

    #[test]
    fn every_instruction_of_a_plain_function() {
        let code: [&[u8]; 3] = [&PROLOGUE, &CALL, &EPILOGUE];
        let found: Vec<_> = [0, 1, 4, 5, 9, 13, 14, 18, 19, 20].map(|offset| at(&code, offset)).to_vec();
        let expected = [8, 16, 16, 24, BODY, BODY, BODY, 24, 16, 8].map(Some);
        assert_eq!(found, expected);
        assert_eq!(at(&code, 21), None);
        // The tables have the frame elsewhere.
        assert_eq!(depths(&code).unwrap().at(0x1009, 24), None);
    }

    #[test]
    fn what_two_ways_reach_differently_is_unknown() {
        // je +1; push rax; call; …
        let code: [&[u8]; 5] = [&PROLOGUE, &[0x74, 1], &[0x50], &CALL, &EPILOGUE];
        assert_eq!((at(&code, 11), at(&code, 12)), (Some(BODY), None));
        // sub rsp, rax
        let code: [&[u8]; 4] = [&PROLOGUE, &[0x48, 0x29, 0xc4], &CALL, &EPILOGUE];
        assert_eq!((at(&code, 9), at(&code, 12)), (Some(BODY), None));
    }

    #[test]
    fn landing_pads_have_the_depth_of_all_calls() {
        // The call behind the return is reached by nothing that shows.
        let pad: [&[u8]; 4] = [&PROLOGUE, &CALL, &EPILOGUE, &CALL];
        assert_eq!(at(&pad, 21), Some(BODY));
        // push rax; call; pop rcx: now the calls have no depth in common.
        let two: [&[u8]; 7] = [&PROLOGUE, &CALL, &[0x50], &CALL, &[0x59], &EPILOGUE, &CALL];
        assert_eq!((at(&two, 15), at(&two, 28)), (Some(BODY + 8), None));
        // A jump table without a frame may lead to where nothing else does: jmp rax
        let table: [&[u8]; 5] = [&PROLOGUE, &CALL, &EPILOGUE[..6], &[0xff, 0xe0], &CALL];
        assert_eq!(at(&table, 22), None);
    }

    #[test]
    fn code_that_cannot_be_followed_has_no_depths() {
        let rest: [&[u8]; 2] = [&CALL, &EPILOGUE];
        // int3 in place of the first byte, as a breakpoint
        let trapped = [&[0xcc], &PROLOGUE[1..]].concat();
        // jmp out of the function within the frame
        let leaves = [&PROLOGUE[..], &[0xe9, 0, 1, 0, 0]].concat();
        // jmp into the middle of an instruction
        let inside = [&PROLOGUE[..], &[0xeb, 0xfd]].concat();
        // xor ebp, ebp
        let taken = [&PROLOGUE[..], &[0x31, 0xed]].concat();
        for first in [&trapped, &leaves, &inside, &taken] {
            assert!(depths(&[first, rest[0], rest[1]]).is_none(), "{first:x?}");
        }
        // A return with something left on the stack is no return.
        assert!(depths(&[&PROLOGUE, &[0xc3]]).is_none());
    }
}
