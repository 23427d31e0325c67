//! What refers to some functions: code that calls them, and whatever may know their address.

use super::side::Image;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Something that refers to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reference {
    /// The function referred to.
    pub(super) to: u64,
    /// The function that calls it and is returned to; `None` for whatever else: a jump, a pointer in code or data.
    pub(super) caller: Option<u64>,
}

/// Everything that refers to the functions at these addresses.
///
/// Code is read from each symbol to the next one, so a caller is the nearest symbol before the call. Where the image is
/// linked for one address, pointers look like numbers and cannot be told: every function may be pointed to.
pub(super) fn to(image: &Image<'_>, targets: &BTreeSet<u64>) -> Vec<Reference> {
    let elf = &image.elf;
    let pointed = match elf.is_relocatable() {
        true => elf.pointed(targets),
        false => targets.iter().copied().collect(),
    };
    let code = elf.code();
    let found: Vec<Vec<Reference>> =
        code.par_iter().map(|(start, bytes)| in_function(*start, bytes, targets)).collect();
    pointed.into_iter().map(|to| Reference { to, caller: None }).chain(found.into_iter().flatten()).collect()
}

fn in_function(start: u64, code: &[u8], targets: &BTreeSet<u64>) -> Vec<Reference> {
    let mut found = Vec::new();
    let mut instruction = Instruction::default();
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.op0_kind() == OpKind::NearBranch64 {
            let to = instruction.near_branch_target();
            let is_loop = to == start && instruction.mnemonic() != Mnemonic::Call;
            if targets.contains(&to) && !is_loop {
                let caller = (instruction.mnemonic() == Mnemonic::Call).then_some(start);
                found.push(Reference { to, caller });
            }
        }
        if instruction.is_ip_rel_memory_operand() && targets.contains(&instruction.ip_rel_memory_address()) {
            found.push(Reference { to: instruction.ip_rel_memory_address(), caller: None });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Reference, in_function};

    #[test]
    fn a_call_is_told_from_a_jump_and_a_pointer() {
        let code = [
            0xe8, 0xfb, 0x0f, 0x00, 0x00, // call 0x2000
            0x48, 0x8d, 0x05, 0xf4, 0x0f, 0x00, 0x00, // lea rax, [rip + 0xff4] = 0x2000
            0xe9, 0xef, 0x0f, 0x00, 0x00, // jmp 0x2000
            0xe8, 0x00, 0x00, 0x00, 0x00, // call the next instruction
        ];
        let found = in_function(0x1000, &code, &[0x2000].into());
        let callers: Vec<Option<u64>> = found.iter().map(|reference| reference.caller).collect();
        assert_eq!(callers, [Some(0x1000), None, None]);
        assert!(found.iter().all(|reference| matches!(reference, Reference { to: 0x2000, .. })));
    }
}
