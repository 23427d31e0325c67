//! Who may have been compiled for what the compiler knew of a function's code that does not hold for its other code.
//!
//! Within a code unit the compiler may know much of a callee: that it returns one of a few values, never returns, does not unwind,
//! does not look at an argument, leaves alone what its arguments point to, or overwrites it first thing (`readonly`, `initializes`
//! and their like in LLVM's Language Reference, "Parameter Attributes" and "Function Attributes"; pass `FunctionAttrs`). What it knows
//! of one function it may derive from another that this one calls. Object code does not say what was known, so it is asked what
//! could have been. The answer errs on the side of knowledge, except that sums, products and what is read from memory are taken
//! for any value where the result is a plain integer.
//!
//! Across the units of one crate (thin-local LTO) it is only whether the callee may unwind. Across crates it is whether the callee leaves
//! alone a value that it is given in memory: rustc writes that into a crate's metadata (query `deduced_param_attrs`), and its callers then
//! pass their own value without making a copy. Crates that were compiled together are one, and their objects are the program's own.

use super::compare::{Ref, is_call, reference};
use super::names::is_mangled;
use super::program::{At, Program};
use crate::guard::{self, FunctionInfo, ResultIn};
use crate::objects::Kind;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use std::collections::{BTreeSet, HashMap};

/// Registers that integer arguments come in (System V ABI AMD64 supplement, section 3.2.3).
pub(super) const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// What does not hold any more of all that may have been known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Anything that is known within the code unit.
    within: bool,
    /// That it does not unwind.
    nounwind: bool,
    /// That it leaves alone what it is given in memory.
    untouched: bool,
}

impl Lost {
    /// What of the knowledge about one piece of code does not hold for another one. `info` is what debug information says of the
    /// function.
    pub(crate) fn between(
        known: (&Program<'_>, At),
        other: (&Program<'_>, At),
        info: Option<&FunctionInfo>,
    ) -> Self {
        let (before, after) = (Effects::of(known.0, known.1), Effects::of(other.0, other.1));
        let nounwind = !before.unwinds && !after.calls.is_subset(&before.calls);
        let stays_result = |info: &FunctionInfo| match info.result {
            ResultIn::Memory => true,
            ResultIn::IntegerRegister => !is_narrow(&before.code, Register::RAX),
            ResultIn::Registers => false,
        };
        // What is pointed to is more than a few words can say: only functions without pointers are looked at.
        let stays = info.is_some_and(|info| !info.takes.pointers && stays_result(info));
        Self {
            within: nounwind || !stays || before.diverges || !before.allow(&after),
            nounwind,
            untouched: info.is_none_or(|info| info.takes.memory),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            within: self.within || other.within,
            nounwind: self.nounwind || other.nounwind,
            untouched: self.untouched || other.untouched,
        }
    }
}

/// Who calls whom directly in a program.
#[derive(Debug)]
pub(crate) struct Callers<'d, 'a> {
    program: &'d Program<'a>,
    of: HashMap<At, Vec<At>>,
}

impl<'d, 'a> Callers<'d, 'a> {
    /// The callers of all functions.
    pub(crate) fn new(program: &'d Program<'a>) -> Self {
        let mut of: HashMap<At, Vec<At>> = HashMap::new();
        for (at, section) in program.all().filter(|(_, section)| section.kind == Kind::Text) {
            for reloc in section.relocs.iter().filter(|reloc| is_call(section.bytes, reloc)) {
                if let Ref::Named { at: Some(callee), .. } = reference(program, at.unit, reloc) {
                    of.entry(callee).or_default().push(at);
                }
            }
        }
        Self { program, of }
    }

    /// The functions that may rest on what is lost of others, each with the one that it calls on the way.
    pub(crate) fn resting_on(&self, others: impl IntoIterator<Item = (At, Lost)>) -> HashMap<At, At> {
        let mut known: HashMap<At, Lost> = HashMap::new();
        let mut via = HashMap::new();
        let mut work: Vec<(At, Lost)> = others.into_iter().collect();
        while let Some((at, lost)) = work.pop() {
            for caller in self.of.get(&at).into_iter().flatten() {
                let reaches = self.reaches(lost, at, *caller);
                let before = known.get(caller).copied().unwrap_or_default();
                let all = before.and(reaches);
                if all == before {
                    continue;
                }
                via.entry(*caller).or_insert(at);
                known.insert(*caller, all);
                work.push((*caller, self.passed_on(reaches, *caller)));
            }
        }
        via
    }

    /// What is lost to a caller.
    fn reaches(&self, lost: Lost, callee: At, caller: At) -> Lost {
        if caller.unit == callee.unit {
            return lost;
        }
        let nounwind = lost.nounwind && together(self.program, caller, callee);
        Lost { within: false, nounwind, ..lost }
    }

    /// What callers of a function may have known of it because of what is lost to itself.
    fn passed_on(&self, lost: Lost, at: At) -> Lost {
        let nounwind = lost.nounwind && !Effects::of(self.program, at).unwinds;
        // What a function does with its own arguments is told from its body alone.
        Lost { within: lost.within, nounwind, untouched: false }
    }
}

/// Whether two objects may come from one run of the compiler: both the program's own, or of one library.
fn together(program: &Program<'_>, a: At, b: At) -> bool {
    let (a, b) = (program.unit(a), program.unit(b));
    match (&a.member, &b.member) {
        (None, None) => true,
        (Some(_), Some(_)) => a.file == b.file,
        _ => false,
    }
}

/// What a piece of code does, as callers could know it.
struct Effects {
    code: Vec<Instruction>,
    /// It never returns.
    diverges: bool,
    /// It calls code that unwinds for all that the compiler knows.
    unwinds: bool,
    reads: bool,
    writes: bool,
    calls: BTreeSet<String>,
    indirect: bool,
    /// What else it refers to by name.
    names: BTreeSet<String>,
    /// Argument registers that it looks at.
    arguments: BTreeSet<Register>,
}

impl Effects {
    fn of(program: &Program<'_>, at: At) -> Self {
        let section = program.section(at);
        let (mut calls, mut names, mut unwinds) = (BTreeSet::new(), BTreeSet::new(), false);
        for reloc in &section.relocs {
            let Ref::Named { name, at: named, .. } = reference(program, at.unit, reloc) else { continue };
            let path = guard::demangle(name);
            if !is_call(section.bytes, reloc) {
                names.insert(path);
                continue;
            }
            let is_apart = named.is_none_or(|callee| !together(program, at, callee));
            unwinds |= (is_apart && is_mangled(name) && !is_nounwind(&path)) || is_panic(&path);
            calls.insert(path);
        }
        let code = instructions(section.bytes);
        let mut effects = Self {
            diverges: !code.iter().any(|i| i.flow_control() == FlowControl::Return),
            unwinds: unwinds && !calls.iter().any(|path| path.starts_with(CANNOT_UNWIND)),
            reads: false,
            writes: false,
            calls,
            indirect: code.iter().any(|i| i.flow_control() == FlowControl::IndirectCall),
            names,
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

    /// Whether all that could be known of this holds for `new`, too, but for results and what arguments point to. Of a variable of
    /// the unit it may be known whether a function reads or writes it (LLVM's `GlobalsAA`).
    fn allow(&self, new: &Self) -> bool {
        new.calls.is_subset(&self.calls)
            && new.names.is_subset(&self.names)
            && new.arguments.is_subset(&self.arguments)
            && (self.indirect || !new.indirect)
            && (self.reads || !new.reads)
            && !new.writes
    }
}

/// Where a function ends up that is declared not to unwind, whatever it calls.
const CANNOT_UNWIND: &str = "core::panicking::panic_cannot_unwind";

/// Functions of the standard library that are declared not to unwind.
fn is_nounwind(path: &str) -> bool {
    ["nounwind", "cannot_unwind", "in_cleanup", "abort"].iter().any(|part| path.contains(part))
}

fn is_panic(path: &str) -> bool {
    let known = ["core::panicking::", "core::fmt::write", "alloc::fmt::format", "std::io::stdio::"];
    known.iter().any(|known| path.starts_with(known)) && !is_nounwind(path)
}

/// Whether an instruction writes to a register, given by its full width, or to a part of it.
pub(super) fn writes(
    instruction: &Instruction,
    register: Register,
    factory: &mut InstructionInfoFactory,
) -> bool {
    let is_write = |access| !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
    let mut used = factory.info(instruction).used_registers().iter();
    used.any(|used| used.register().full_register() == register && is_write(used.access()))
}

/// Whether control may go on behind an instruction.
pub(super) fn falls_through(instruction: &Instruction) -> bool {
    !matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
    )
}

/// The instructions of some code, by their offsets in it.
pub(super) fn instructions(bytes: &[u8]) -> Vec<Instruction> {
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
        if writes(instruction, result, &mut factory) {
            let from_memory = instruction.op_count() > 1 && instruction.op_kind(1) == OpKind::Memory;
            return match instruction.mnemonic() {
                Mnemonic::Mov => from_memory,
                // The address of something is a constant.
                Mnemonic::Lea => !instruction.is_ip_rel_memory_operand(),
                Mnemonic::Add | Mnemonic::Sub | Mnemonic::Imul | Mnemonic::Neg | Mnemonic::Not => true,
                _ => false,
            };
        }
        let returns_float = writes(instruction, Register::ZMM0, &mut factory);
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
