//! What a function calls, read from its instructions.
//!
//! A value that is only handed from one call to the next has no variable and thus no trace in the description of the
//! function; the signatures of what is called or whose address is taken tell its type.

use super::dwarf::DieId;
use super::elf::Word;
use super::function::signature_types;
use super::side::Image;
use super::types::Types;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};
use livepatch_patch::LinkAddr;
use std::collections::{BTreeSet, HashMap};

/// Reads functions of one image; remembers signatures.
pub(super) struct Reader<'r, 'd, 'a> {
    image: &'r Image<'a>,
    types: &'r Types<'d, 'a>,
    known: HashMap<u64, Vec<DieId>>,
}

impl<'r, 'd, 'a> Reader<'r, 'd, 'a> {
    pub(super) fn new(image: &'r Image<'a>, types: &'r Types<'d, 'a>) -> Self {
        Self { image, types, known: HashMap::new() }
    }

    /// Types of the parameters and results of the functions that the one at `addr` refers to.
    pub(super) fn signatures(&mut self, addr: LinkAddr, size: u64) -> gimli::Result<Vec<DieId>> {
        let mut found = Vec::new();
        for callee in self.referred(addr, size) {
            if !self.known.contains_key(&callee) {
                let mut types = Vec::new();
                for id in self.image.debug.functions_at(callee)? {
                    types.extend(signature_types(self.types, id)?);
                }
                self.known.insert(callee, types);
            }
            found.extend(&self.known[&callee]);
        }
        Ok(found)
    }

    /// Functions that are called, jumped to, or whose address is taken or read, each once.
    fn referred(&self, addr: LinkAddr, size: u64) -> BTreeSet<u64> {
        let mut referred = BTreeSet::new();
        let Some(code) = self.image.elf.bytes(addr.0, size) else { return referred };
        let mut instruction = Instruction::default();
        let mut decoder = Decoder::with_ip(64, code, addr.0, DecoderOptions::NONE);
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            referred.extend(self.targets(&instruction).into_iter().flatten());
        }
        referred.remove(&addr.0);
        referred
    }

    fn targets(&self, instruction: &Instruction) -> [Option<u64>; 3] {
        let elf = &self.image.elf;
        let function = |addr: &u64| elf.is_function(*addr);
        let near =
            matches!(instruction.op0_kind(), OpKind::NearBranch64).then(|| instruction.near_branch_target());
        let memory = instruction.is_ip_rel_memory_operand().then(|| instruction.ip_rel_memory_address());
        // Through the GOT or another pointer that the loader fills.
        let pointed = memory.and_then(|addr| match elf.word(addr) {
            Some(Word::Address(target)) => Some(target),
            _ => None,
        });
        [near.filter(function), memory.filter(function), pointed.filter(function)]
    }
}
