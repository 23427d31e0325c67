//! One function of raw code, taken apart.

use super::stack::{Place, Stack, Use};
use crate::diff::compare::{Ref, is_relative, reference};
use crate::diff::knowledge::instructions;
use crate::diff::program::{At, Program, Target};
use crate::objects::{Kind, LandingPads, Reloc};
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind};

/// What is done at one place of the code.
#[derive(Debug)]
enum Step {
    /// Nothing that counts.
    Nothing,
    /// Control goes elsewhere in the same code.
    Jump(usize),
    Does(Doing),
}

/// An instruction, with that taken out of it which depends on where things lie.
#[derive(Debug)]
pub(super) struct Doing {
    pub what: Instruction,
    /// The place on the stack that it reads or writes.
    pub place: Option<Place>,
    pub reloc: Option<Reloc>,
    /// Where a conditional branch goes.
    pub branch: Option<usize>,
    /// Whether control leaves by a jump to another function.
    pub leaves: bool,
}

pub(super) struct Routine<'p, 'a> {
    pub program: &'p Program<'a>,
    pub at: At,
    steps: Vec<Step>,
    /// Offset of each instruction.
    starts: Vec<u64>,
    /// `None` if it has no table of them: it lets every call unwind.
    pads: Option<LandingPads<'a>>,
}

impl<'p, 'a> Routine<'p, 'a> {
    /// `None` if it does what is not understood.
    pub fn of(program: &'p Program<'a>, at: At) -> Option<Self> {
        let section = program.section(at);
        if section.kind != Kind::Text {
            return None;
        }
        let code = instructions(section.bytes);
        let starts: Vec<u64> = code.iter().map(Instruction::ip).collect();
        let (uses, stack) = Stack::of(&code)?;
        let mut steps = Vec::with_capacity(code.len());
        for (instruction, place) in code.iter().zip(uses) {
            let range = instruction.ip()..instruction.next_ip();
            let mut relocs = section.relocs.iter().filter(|reloc| range.contains(&reloc.offset));
            let reloc = relocs.next().copied();
            if relocs.next().is_some() {
                return None;
            }
            let is_flag = |place| sets_byte(instruction) && reloc.is_none() && !stack.is_read(place);
            steps.push(match place {
                Use::Frame => Step::Nothing,
                Use::Place(place) if is_flag(place) => Step::Nothing,
                Use::Place(place) => step(instruction, Some(place), reloc, &starts)?,
                Use::Nothing => step(instruction, None, reloc, &starts)?,
            });
        }
        let pads = pads(program, at)?;
        Some(Self { program, at, steps, starts, pads })
    }

    /// The instruction that begins at this offset.
    fn index(&self, offset: u64) -> Option<usize> {
        self.starts.binary_search(&offset).ok()
    }

    /// The first place from here on where something is done. `None` if control goes on behind the code, or turns round for ever.
    pub fn doing(&self, mut at: usize) -> Option<(usize, &Doing)> {
        for _ in 0..=self.steps.len() {
            match self.steps.get(at)? {
                Step::Nothing => at += 1,
                Step::Jump(to) => at = *to,
                Step::Does(doing) => return Some((at, doing)),
            }
        }
        None
    }

    /// What is done with exceptions, as far as it is not said of each call.
    pub fn actions(&self) -> Option<&[u8]> {
        self.pads.as_ref().map(|pads| pads.actions)
    }

    /// Where control goes if the call at this place unwinds (`None`: nothing is to be done here), and with which action. `None` if
    /// unwinding ends the program.
    pub fn unwound(&self, call: usize) -> Option<(Option<usize>, u64)> {
        let Some(pads) = &self.pads else { return Some((None, 0)) };
        match pads.behind(self.starts[call])? {
            (0, action) => Some((None, action)),
            (pad, action) => Some((Some(self.index(pad)?), action)),
        }
    }

    /// The instructions to which a table leads that begins at this offset of a section. `None` if it is none.
    pub fn table(&self, table: At, start: i64) -> Option<Vec<usize>> {
        let own = self.program.section(self.at).relocs.iter();
        let starts = own.filter_map(|reloc| match reference(self.program, self.at.unit, reloc) {
            Ref::Constant { at, offset } if at == table => Some(table_start(offset, reloc)),
            _ => None,
        });
        let end = starts.filter(|other| *other > start).min().unwrap_or(i64::MAX);
        let entries = self.program.section(table).relocs.iter();
        let entries = entries.filter(|reloc| (start..end).contains(&reloc.offset.cast_signed()));
        let entries = entries.map(|reloc| {
            let target = self.program.target(table.unit, reloc.symbol, reloc.addend);
            let Target::Place { at, offset, .. } = target else { return None };
            let behind = if is_relative(reloc.kind) { reloc.offset.cast_signed() - start } else { 0 };
            self.index(u64::try_from(offset - behind).ok()?).filter(|_| at == self.at)
        });
        entries.collect::<Option<Vec<_>>>().filter(|entries| !entries.is_empty())
    }
}

/// Where a table begins that an instruction refers to: what is relative counts from the end of the field, which ends the instruction.
pub(super) fn table_start(offset: i64, reloc: &Reloc) -> i64 {
    if is_relative(reloc.kind) { offset + 4 } else { offset }
}

/// Whether a byte in memory is set.
fn sets_byte(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Mov_rm8_imm8 | Code::Mov_rm8_r8)
        && instruction.op0_kind() == OpKind::Memory
}

fn step(
    instruction: &Instruction,
    place: Option<Place>,
    reloc: Option<Reloc>,
    starts: &[u64],
) -> Option<Step> {
    let mut what = *instruction;
    let is_branch =
        matches!(what.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch);
    if what.mnemonic() == Mnemonic::Nop {
        return Some(Step::Nothing);
    }
    if is_branch && reloc.is_none() {
        let to = starts.binary_search(&what.near_branch_target()).ok()?;
        if what.flow_control() == FlowControl::UnconditionalBranch {
            return Some(Step::Jump(to));
        }
        what.as_near_branch();
        what.set_near_branch64(0);
        return Some(Step::Does(Doing { what, place, reloc, branch: Some(to), leaves: false }));
    }
    let by_table = what.code() == Code::Jmp_rm64 && what.is_ip_rel_memory_operand();
    let leaves = reloc.is_some() && (what.code() == Code::Jmp_rel32_64 || by_table);
    if reloc.is_some() || place.is_some() {
        // The linker fills it in, or it is compared as a place. Targets of branches are in the same field.
        what.set_memory_displacement64(0);
        what.set_memory_displ_size(0);
    }
    Some(Step::Does(Doing { what, place, reloc, branch: None, leaves }))
}

/// `None` if the landing pads are not understood.
fn pads<'a>(program: &Program<'a>, at: At) -> Option<Option<LandingPads<'a>>> {
    let [frame] = program.section(at).frames.as_slice() else { return None };
    match frame.relocs.get(1..)? {
        [] => Some(None),
        [table] => match program.target(at.unit, table.symbol, table.addend) {
            Target::Place { at, offset: 0, .. } => Some(Some(LandingPads::of(program.section(at))?)),
            _ => None,
        },
        _ => None,
    }
}
