//! What a piece of code or data refers to, constants without a name looked through.

use super::compare::{Ref, constant_bytes, is_call, is_relative, location_file, reference};
use super::program::{At, Program};
use crate::objects::{Kind, Section};
use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind, Register};
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// References by normalised names, each with how often it occurs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Uses<'a> {
    /// Direct calls and jumps.
    pub calls: HashMap<&'a str, usize>,
    /// Everything else: addresses that are taken, vtables and tables, variables.
    pub others: HashMap<&'a str, usize>,
    /// Calls through registers and memory.
    pub indirect: usize,
}

impl<'a> Uses<'a> {
    pub(super) fn of(program: &Program<'a>, at: At) -> Self {
        let mut uses = Self::default();
        let section = program.section(at);
        let mut seen = HashSet::from([at]);
        for reloc in &section.relocs {
            match reference(program, at.unit, reloc) {
                Ref::Named { name, .. } if section.kind == Kind::Text && is_call(section.bytes, reloc) => {
                    *uses.calls.entry(name).or_default() += 1;
                }
                Ref::Named { name, .. } => *uses.others.entry(name).or_default() += 1,
                Ref::Constant { at: constant, .. } => uses.through(program, at, constant, &mut seen),
            }
        }
        if section.kind == Kind::Text {
            uses.indirect = indirect_calls(section);
        }
        uses
    }

    /// What is behind a constant that `owner` refers to. The places in `owner` itself that its jump tables hold are no addresses of
    /// a function; those are never relative in data.
    fn through(&mut self, program: &Program<'a>, owner: At, constant: At, seen: &mut HashSet<At>) {
        let mut work = vec![constant];
        while let Some(at) = work.pop() {
            // What it holds counts for each reference to it, what is further down once.
            if at != constant && !seen.insert(at) {
                continue;
            }
            for reloc in &program.section(at).relocs {
                match reference(program, at.unit, reloc) {
                    Ref::Named { at: Some(to), .. } if to == owner && is_relative(reloc.kind) => {}
                    Ref::Named { name, .. } => *self.others.entry(name).or_default() += 1,
                    Ref::Constant { at: next, .. } if next != constant => work.push(next),
                    Ref::Constant { .. } => {}
                }
            }
        }
    }

    /// The same under other names.
    pub(super) fn renamed<'n>(&self, name: impl Fn(&'a str) -> &'n str) -> Uses<'n> {
        let renamed = |from: &HashMap<&'a str, usize>| {
            let mut into: HashMap<&'n str, usize> = HashMap::new();
            for (old, count) in from {
                *into.entry(name(old)).or_default() += count;
            }
            into
        };
        Uses { calls: renamed(&self.calls), others: renamed(&self.others), indirect: self.indirect }
    }

    /// Both together: for several sections of one name.
    pub(super) fn join(&mut self, other: &Self) {
        for (into, from) in [(&mut self.calls, &other.calls), (&mut self.others, &other.others)] {
            for (name, count) in from {
                let entry = into.entry(name).or_default();
                *entry = (*entry).max(*count);
            }
        }
        self.indirect = self.indirect.max(other.indirect);
    }
}

/// A number for what is in the constants without a name that a piece of code leads to, places in the source left out.
pub(super) fn contents(program: &Program<'_>, at: At) -> u64 {
    let mut hasher = DefaultHasher::new();
    let (mut seen, mut work) = (HashSet::from([at]), vec![at]);
    while let Some(at) = work.pop() {
        for reloc in &program.section(at).relocs {
            let Ref::Constant { at: constant, offset } = reference(program, at.unit, reloc) else { continue };
            if location_file(program, constant).is_some() {
                continue;
            }
            constant_bytes(program, constant, offset).hash(&mut hasher);
            if seen.insert(constant) {
                work.push(constant);
            }
        }
    }
    hasher.finish()
}

/// What data refers to, with the offset of the reference in it.
pub(super) fn held<'a>(program: &Program<'a>, at: At) -> Vec<(u64, &'a str)> {
    let mut held = Vec::new();
    for reloc in &program.section(at).relocs {
        match reference(program, at.unit, reloc) {
            Ref::Named { name, .. } => held.push((reloc.offset, name)),
            Ref::Constant { at: constant, .. } => {
                let mut uses = Uses::default();
                uses.through(program, at, constant, &mut HashSet::from([at]));
                held.extend(uses.others.into_keys().map(|name| (reloc.offset, name)));
            }
        }
    }
    held
}

/// Calls and tail calls through registers and memory, but for those through an entry of the global offset table, which
/// are direct. Jumps through a register or an indexed table are those of a `match`.
fn indirect_calls(section: &Section<'_>) -> usize {
    let decoder = Decoder::with_ip(64, section.bytes, 0, DecoderOptions::NONE);
    let indirect = decoder.into_iter().filter(|instruction| match instruction.flow_control() {
        FlowControl::IndirectCall => !instruction.is_ip_rel_memory_operand(),
        FlowControl::IndirectBranch => {
            instruction.op0_kind() == OpKind::Memory
                && !instruction.is_ip_rel_memory_operand()
                && instruction.memory_index() == Register::None
        }
        _ => false,
    });
    indirect.count()
}
