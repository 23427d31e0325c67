//! Whether the optimiser may have altered how a function is called, and what its callers show of it.
//!
//! LLVM drops arguments that are not used, passes what one points to, and drops results that nobody reads, of a function that no
//! other code unit can name and whose address is nowhere taken in its own (DeadArgumentElimination and ArgumentPromotion, both
//! of which ask for local linkage and direct calls only). Debug information marks that with `DW_CC_nocall`, but not for methods:
//! those have a declaration, and what is said of the type stands there.

use super::Diff;
use super::compare::{Ref, is_jump, reference};
use super::lost::{Use, users};
use super::program::{At, Program};
use crate::guard::Callers;
use crate::objects::Kind;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions,
    OpAccess, Register,
};
use std::collections::{HashMap, HashSet};

/// Where results are (System V ABI AMD64 supplement, section 3.2.3).
const RESULTS: [Register; 4] = [Register::RAX, Register::RDX, Register::ZMM0, Register::ZMM1];
/// So many instructions behind a call are looked at.
const AHEAD: usize = 64;

/// What is to be seen of the callers of each of these functions in the old build and in the new one.
pub(crate) fn of_pairs(diff: &Diff<'_>, pairs: &[(At, At)]) -> HashMap<(At, At), [Callers; 2]> {
    let old = callers(&diff.old, &pairs.iter().map(|(old, _)| *old).collect());
    let new = callers(&diff.new, &pairs.iter().map(|(_, new)| *new).collect());
    pairs.iter().map(|(was, is)| ((*was, *is), [old[was], new[is]])).collect()
}

/// What is to be seen of the callers of these functions.
pub(crate) fn callers(program: &Program<'_>, functions: &HashSet<At>) -> HashMap<At, Callers> {
    let users = users(program, functions);
    let of_one = |at: &At| {
        let all = users.get(at).map(Vec::as_slice).unwrap_or_default();
        let are_known = is_local(program, *at) && all.iter().all(|(_, how)| *how != Use::Address);
        let mut read = HashSet::new();
        if are_known {
            let callers: HashSet<At> = all.iter().map(|(user, _)| *user).collect();
            callers.iter().for_each(|caller| reads(program, *caller, *at, &mut read));
        }
        (*at, Callers { are_known, results: read.len() })
    };
    functions.iter().map(of_one).collect()
}

/// Whether other code units cannot name it, or could not before they were compiled together.
pub(super) fn is_local(program: &Program<'_>, at: At) -> bool {
    let unit = program.unit(at);
    program.section(at).symbols.iter().all(|ix| {
        let symbol = unit.symbol(*ix);
        !symbol.global || symbol.name.contains(".llvm.")
    })
}

/// The result registers that a caller reads after calls of a function.
fn reads(program: &Program<'_>, caller: At, callee: At, read: &mut HashSet<Register>) {
    let section = program.section(caller);
    if section.kind != Kind::Text {
        return;
    }
    let calls: Vec<u64> = section
        .relocs
        .iter()
        .filter(|reloc| matches!(reference(program, caller.unit, reloc), Ref::Named { at: Some(at), .. } if at == callee))
        .filter(|reloc| !is_jump(section.bytes, reloc))
        .map(|reloc| reloc.offset + 4)
        .collect();
    for behind in calls {
        let code = section.bytes.get(behind as usize..).unwrap_or_default();
        read_behind(Decoder::with_ip(64, code, behind, DecoderOptions::NONE), read);
    }
}

fn read_behind(mut decoder: Decoder<'_>, read: &mut HashSet<Register>) {
    let mut left: Vec<Register> = RESULTS.to_vec();
    let mut info = InstructionInfoFactory::new();
    let mut instruction = Instruction::default();
    for _ in 0..AHEAD {
        if left.is_empty() || !decoder.can_decode() {
            return;
        }
        decoder.decode_out(&mut instruction);
        let used = info.info_options(&instruction, InstructionInfoOptions::NO_MEMORY_USAGE).used_registers();
        let touches = |register: Register, reads: bool| {
            used.iter().any(|used| {
                let is_read = matches!(
                    used.access(),
                    OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
                );
                used.register().full_register() == register && is_read == reads
            })
        };
        read.extend(left.iter().copied().filter(|register| touches(*register, true)));
        left.retain(|register| !touches(*register, true) && !touches(*register, false));
        if !matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch) {
            return;
        }
    }
}
