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
    /// What refers to it.
    pub(super) by: By,
}

/// What refers to a function, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum By {
    /// This function calls it and is returned to.
    Call(u64),
    /// This function jumps to it.
    Jump(u64),
    /// Its address is in code or data.
    Address,
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
    pointed
        .into_iter()
        .map(|to| Reference { to, by: By::Address })
        .chain(found.into_iter().flatten())
        .collect()
}

fn in_function(start: u64, code: &[u8], targets: &BTreeSet<u64>) -> Vec<Reference> {
    let mut found = Vec::new();
    let mut instruction = Instruction::default();
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.op0_kind() == OpKind::NearBranch64 {
            let to = instruction.near_branch_target();
            let by = match instruction.mnemonic() {
                Mnemonic::Call => By::Call(start),
                _ => By::Jump(start),
            };
            if targets.contains(&to) && by != By::Jump(to) {
                found.push(Reference { to, by });
            }
        }
        if instruction.is_ip_rel_memory_operand() && targets.contains(&instruction.ip_rel_memory_address()) {
            found.push(Reference { to: instruction.ip_rel_memory_address(), by: By::Address });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{By, Reference, in_function};

    #[test]
    fn a_call_is_told_from_a_jump_and_a_pointer() {
        let code = [
            0xe8, 0xfb, 0x0f, 0x00, 0x00, // call 0x2000
            0x48, 0x8d, 0x05, 0xf4, 0x0f, 0x00, 0x00, // lea rax, [rip + 0xff4] = 0x2000
            0xe9, 0xef, 0x0f, 0x00, 0x00, // jmp 0x2000
            0xe8, 0x00, 0x00, 0x00, 0x00, // call the next instruction
        ];
        let found = in_function(0x1000, &code, &[0x2000].into());
        let by: Vec<By> = found.iter().map(|reference| reference.by).collect();
        assert_eq!(by, [By::Call(0x1000), By::Address, By::Jump(0x1000)]);
        assert!(found.iter().all(|reference| matches!(reference, Reference { to: 0x2000, .. })));
    }
}
