//! What the compiler may have known of a function's old code that does not hold for its new code.
//!
//! A caller in the same code unit may have been compiled with such knowledge: that the callee returns one of a few values,
//! does not unwind, neither reads nor writes memory, or does not look at an argument. Object code does not say what was
//! known, so it is asked what could have been. The answer errs on the side of knowledge, except that combinations
//! of full-width arithmetic (a product that is even, say) are taken for any value: LLVM passes ranges and constants between
//! functions, not single bits.

use crate::diff::compare::{Ref, is_call, reference};
use crate::diff::program::{At, Program};
use crate::guard;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use std::collections::BTreeSet;

/// Registers that integer arguments come in (System V ABI AMD64 supplement, section 3.2.3).
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Registers that integer results are returned in (ibid.). What is in memory is not known to callers.
const RESULTS: [Register; 2] = [Register::RAX, Register::RDX];

/// Whether callers in the same unit may rest on something about the old code that the new code does not keep.
///
/// `registers` is how many may hold the result.
pub(super) fn is_lost(old: (&Program<'_>, At), new: (&Program<'_>, At), registers: u8) -> bool {
    let (before, after) = (Effects::of(old.0, old.1), Effects::of(new.0, new.1));
    let results = &RESULTS[..usize::from(registers).min(RESULTS.len())];
    let is_narrow = results.iter().any(|result| is_narrow(&before.code, *result));
    is_narrow || before.diverges || !before.allow(&after)
}

/// Whether the compiler may have known that the old code does not unwind, while the new code may.
pub(super) fn may_newly_unwind(old: (&Program<'_>, At), new: (&Program<'_>, At)) -> bool {
    let (before, after) = (Effects::of(old.0, old.1), Effects::of(new.0, new.1));
    !before.unwinds && !after.calls.is_subset(&before.calls)
}

/// What a piece of code does, as callers could know it.
struct Effects {
    code: Vec<Instruction>,
    /// It never returns.
    diverges: bool,
    /// It calls code that is known to unwind, and that is compiled apart.
    unwinds: bool,
    reads: bool,
    writes: bool,
    calls: BTreeSet<String>,
    indirect: bool,
    /// Argument registers that it looks at.
    arguments: BTreeSet<Register>,
}

impl Effects {
    fn of(program: &Program<'_>, at: At) -> Self {
        let section = program.section(at);
        let calls: BTreeSet<String> = section
            .relocs
            .iter()
            .filter(|reloc| is_call(section.bytes, reloc))
            .filter_map(|reloc| match reference(program, at.unit, reloc) {
                Ref::Named { name, .. } => Some(guard::demangle(name)),
                Ref::Constant { .. } => None,
            })
            .collect();
        let code = instructions(section.bytes);
        let unwinding = ["core::panicking::", "core::fmt::write", "alloc::fmt::format", "std::io::stdio::"];
        let mut effects = Self {
            diverges: !code.iter().any(|i| i.flow_control() == FlowControl::Return),
            unwinds: calls.iter().any(|name| unwinding.iter().any(|known| name.starts_with(known))),
            reads: false,
            writes: false,
            calls,
            indirect: code.iter().any(|i| i.flow_control() == FlowControl::IndirectCall),
            arguments: BTreeSet::new(),
            code,
        };
        effects.scan();
        effects
    }

    fn scan(&mut self) {
        let mut factory = InstructionInfoFactory::new();
        let mut written = BTreeSet::new();
        for instruction in &self.code {
            let info = factory.info(instruction);
            for memory in info.used_memory() {
                if matches!(memory.base(), Register::RSP | Register::RBP) {
                    continue;
                }
                self.reads |= matches!(
                    memory.access(),
                    OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
                );
                self.writes |= matches!(
                    memory.access(),
                    OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
                );
            }
            let of_arguments =
                |used: &&iced_x86::UsedRegister| ARGUMENTS.contains(&used.register().full_register());
            for used in info.used_registers().iter().filter(of_arguments) {
                let register = used.register().full_register();
                match used.access() {
                    OpAccess::Write => drop(written.insert(register)),
                    _ if !written.contains(&register) => drop(self.arguments.insert(register)),
                    _ => {}
                }
            }
        }
    }

    /// Whether all that could be known of this holds for `new`, too.
    fn allow(&self, new: &Self) -> bool {
        let unknown = self.unwinds || self.indirect;
        let calls = new.calls.is_subset(&self.calls) && (self.indirect || !new.indirect);
        (unknown || calls)
            && (unknown || self.reads || !new.reads)
            && (unknown || self.writes || !new.writes)
            && new.arguments.is_subset(&self.arguments)
    }
}

fn instructions(bytes: &[u8]) -> Vec<Instruction> {
    Decoder::new(64, bytes, DecoderOptions::NONE).into_iter().collect()
}

/// Whether what is in a result register at some return may be of a known range.
fn is_narrow(code: &[Instruction], result: Register) -> bool {
    let targets: BTreeSet<u64> = code
        .iter()
        .filter(|i| {
            matches!(i.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch)
        })
        .map(Instruction::near_branch_target)
        .collect();
    let ends = code.iter().enumerate().filter(|(_, i)| match i.flow_control() {
        FlowControl::Return => true,
        // A call in tail position; a branch inside has its return elsewhere.
        FlowControl::UnconditionalBranch => {
            i.near_branch_target() >= code.last().map_or(0, Instruction::next_ip)
        }
        FlowControl::IndirectBranch => true,
        _ => false,
    });
    ends.into_iter()
        .any(|(at, end)| end.flow_control() != FlowControl::Return || !is_open(&code[..at], &targets, result))
}

/// Whether the last value of a result register before the end of this code can be any.
fn is_open(code: &[Instruction], targets: &BTreeSet<u64>, result: Register) -> bool {
    let mut factory = InstructionInfoFactory::new();
    for instruction in code.iter().rev() {
        let is_write = |access| !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
        let writes = |wanted: Register, factory: &mut InstructionInfoFactory| {
            let info = factory.info(instruction);
            let mut used = info.used_registers().iter();
            used.any(|used| used.register().full_register() == wanted && is_write(used.access()))
        };
        if writes(result, &mut factory) {
            let from_memory = instruction.op_count() > 1 && instruction.op_kind(1) == OpKind::Memory;
            return match instruction.mnemonic() {
                Mnemonic::Mov => from_memory,
                // The address of something is a constant.
                Mnemonic::Lea => !instruction.is_ip_rel_memory_operand(),
                Mnemonic::Add | Mnemonic::Sub | Mnemonic::Imul | Mnemonic::Neg | Mnemonic::Not => true,
                _ => false,
            };
        }
        let returns_float = writes(Register::ZMM0, &mut factory);
        let ends_block =
            instruction.flow_control() != FlowControl::Next || targets.contains(&instruction.ip());
        if ends_block || returns_float {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrow(bytes: &[u8]) -> bool {
        is_narrow(&instructions(bytes), Register::RAX)
    }

    #[test]
    fn results_of_a_known_range() {
        // mov eax,5; ret
        assert!(narrow(&[0xb8, 5, 0, 0, 0, 0xc3]));
        // mov eax,edi; and eax,7; ret
        assert!(narrow(&[0x89, 0xf8, 0x83, 0xe0, 7, 0xc3]));
        // mov rax,rdi; shr rax,3; ret
        assert!(narrow(&[0x48, 0x89, 0xf8, 0x48, 0xc1, 0xe8, 3, 0xc3]));
        // mov rax,rdi; ret: whatever was known of it
        assert!(narrow(&[0x48, 0x89, 0xf8, 0xc3]));
        // xor eax,eax; ret
        assert!(narrow(&[0x31, 0xc0, 0xc3]));
        // lea rax,[rip+8]; ret
        assert!(narrow(&[0x48, 0x8d, 0x05, 8, 0, 0, 0, 0xc3]));
        // jmp elsewhere
        assert!(narrow(&[0xe9, 0, 1, 0, 0]));
    }

    #[test]
    fn results_of_any_value() {
        // mov eax,[rsp-4]; ret
        assert!(!narrow(&[0x8b, 0x44, 0x24, 0xfc, 0xc3]));
        // lea rax,[rdi+rsi]; ret
        assert!(!narrow(&[0x48, 0x8d, 0x04, 0x37, 0xc3]));
        // add rax,rdi; pop rbx; ret
        assert!(!narrow(&[0x48, 0x01, 0xf8, 0x5b, 0xc3]));
        // mov rax,[rdi]; mov edx,3; ret: the second half is narrow
        let pair = instructions(&[0x48, 0x8b, 0x07, 0xba, 3, 0, 0, 0, 0xc3]);
        assert!(!is_narrow(&pair, Register::RAX) && is_narrow(&pair, Register::RDX));
        // one return of two is narrow: test edi,edi; je +4; lea eax,[rdi+1] (3); ret; xor eax,eax; ret
        assert!(narrow(&[0x85, 0xff, 0x74, 0x04, 0x8d, 0x47, 0x01, 0xc3, 0x31, 0xc0, 0xc3]));
    }
}
