//! Strict stack walking by call frame information.
//!
//! A walk proves where every activation of a thread is, or says that it cannot. There is no frame pointer fallback, no
//! scan and no guess: each frame comes from a CFI row that covers exactly the address in question, each value
//! from a register or a memory word that could be read, and the walk ends only where the CFI itself says that there is
//! no caller (an *undefined* return address, as in `_start` and `clone3` of glibc).
//!
//! | situation | lookup address |
//! |---|---|
//! | innermost frame, or a frame that a signal interrupted | the instruction pointer itself |
//! | a frame that called something | return address − 1 (the call may be the last instruction of the function) |
//!
//! The functions of the unwinder that throw an exception replace the registers that they have saved by those of the
//! frame that catches it, so their tables are wrong for the last part of the way. They are known by saving `rax` and `rdx`, which
//! no other function does, and make a stack unproven for the moment.
//!
//! The canonical frame address grows from frame to frame; only a signal frame may lead to another stack
//! (`sigaltstack`). Known limit: a coroutine stack that is suspended is on no thread's stack and is not seen.

pub mod depth;
pub mod entry;
mod expr;
pub mod memory;
pub mod modules;
pub mod table;

pub use memory::Memory;
pub use table::{Table, TableError, Tables};

use livepatch_patch::RunAddr;
use table::{Cfa, Row, Rule};

/// DWARF numbers of the AMD64 registers that unwinding follows (System V ABI AMD64 supplement, figure 3.36).
pub mod dwarf {
    /// Callee-saved registers: without a rule they keep their value across a call.
    pub const CALLEE_SAVED: [usize; 6] = [3, 6, 12, 13, 14, 15];
    /// The register that compilers use as frame pointer.
    pub const RBP: usize = 6;
    /// The stack pointer.
    pub const RSP: usize = 7;
    /// The return address column.
    pub const RIP: usize = 16;
    /// `rax` and `rdx`, which pass the exception to a landing pad.
    pub const EXCEPTION: [usize; 2] = [0, 1];
    /// Number of registers followed.
    pub const COUNT: usize = 17;
}

/// Most frames that a walk follows; a deeper stack counts as unverified. The smallest frame takes 16 bytes, so stacks of 16 MiB
/// never have more.
pub const MAX_FRAMES: usize = 1 << 20;

/// Register values in DWARF order; `None` where the value is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers(pub [Option<u64>; dwarf::COUNT]);

impl Registers {
    fn get(&self, register: usize) -> Result<u64, Unverified> {
        self.0.get(register).copied().flatten().ok_or(Unverified::LostRegister(register as u16))
    }

    fn pc(&self) -> Result<RunAddr, Unverified> {
        self.get(dwarf::RIP).map(RunAddr)
    }
}

/// How a frame was entered, which decides what its address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The thread is stopped in it.
    Innermost,
    /// A signal handler runs above it: the address is the next instruction.
    Interrupted,
    /// It called the frame above: the address is where that returns to.
    Caller,
}

/// One activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Instruction pointer or return address, as [`FrameKind`] says.
    pub pc: RunAddr,
    /// How to read `pc`.
    pub kind: FrameKind,
    /// The frame is the trampoline that the kernel makes a signal handler return to.
    pub signal: bool,
    /// Canonical frame address: the stack pointer after this frame has returned.
    pub cfa: RunAddr,
    /// Start of the function, as its frame description entry has it.
    pub function: RunAddr,
}

impl Frame {
    /// An address that is inside the function that is active, whatever the kind.
    pub fn lookup(&self) -> RunAddr {
        lookup_address(self.pc, self.kind)
    }
}

fn lookup_address(pc: RunAddr, kind: FrameKind) -> RunAddr {
    match kind {
        FrameKind::Innermost | FrameKind::Interrupted => pc,
        FrameKind::Caller => pc.offset(-1),
    }
}

/// Why a stack could not be proven.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// The address is in no known module or in a function without call frame information.
    #[error("no call frame information for {0}")]
    NoCfi(RunAddr),
    /// The unwind tables are damaged or use something that is not understood.
    #[error("call frame information for {pc} cannot be used: {what}")]
    BadCfi {
        /// Address looked up.
        pc: RunAddr,
        /// What is wrong.
        what: String,
    },
    /// A register whose value is needed was not preserved (DWARF number).
    #[error("value of DWARF register {0} is lost")]
    LostRegister(u16),
    /// The tables describe the frame by its frame pointer, whose value is not known.
    #[error("the frame of {0} is not to be found without its frame pointer")]
    NoFramePointer(RunAddr),
    /// Stack memory could not be read.
    #[error("memory at {0} cannot be read")]
    Unreadable(RunAddr),
    /// The frame is not above the one it was called from.
    #[error("frame address does not grow: {cfa} after stack pointer {sp}")]
    NotGrowing {
        /// The computed canonical frame address.
        cfa: RunAddr,
        /// Stack pointer in the frame.
        sp: RunAddr,
    },
    /// An exception is being thrown: the frame at this address rewrites the saved registers of its callers.
    #[error("an exception is being thrown at {0}")]
    Throwing(RunAddr),
    /// More than [`MAX_FRAMES`] frames.
    #[error("more than {MAX_FRAMES} frames")]
    TooDeep,
}

/// What a walk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Frames from the innermost outwards; all that were proven if `end` is an error.
    pub frames: Vec<Frame>,
    /// `Ok` if the walk reached the proven end of the stack.
    pub end: Result<(), Unverified>,
}

/// Walks one stack. `tables` must hold every module of the process; `memory` is the thread's stopped memory.
pub fn walk(tables: &Tables, memory: &mut dyn Memory, registers: Registers) -> Walk {
    let mut frames = Vec::new();
    let end = follow(tables, memory, registers, &mut frames);
    Walk { frames, end }
}

fn follow(
    tables: &Tables,
    memory: &mut dyn Memory,
    mut registers: Registers,
    frames: &mut Vec<Frame>,
) -> Result<(), Unverified> {
    let mut kind = FrameKind::Innermost;
    loop {
        if frames.len() >= MAX_FRAMES {
            return Err(Unverified::TooDeep);
        }
        let pc = registers.pc()?;
        let row = tables.row(lookup_address(pc, kind))?;
        if row.rewrites_callers() {
            return Err(Unverified::Throwing(pc));
        }
        let sp = registers.get(dwarf::RSP)?;
        let cfa = match without_frame_pointer(&row, &registers) {
            None => canonical_frame_address(&row, &registers, memory)?,
            Some(offset) => match tables.depth(row.function, lookup_address(pc, kind), offset) {
                Some(depth) => sp.wrapping_add_signed(depth),
                None => return Err(Unverified::NoFramePointer(pc)),
            },
        };
        if !row.signal && cfa <= sp {
            return Err(Unverified::NotGrowing { cfa: RunAddr(cfa), sp: RunAddr(sp) });
        }
        frames.push(Frame { pc, kind, signal: row.signal, cfa: RunAddr(cfa), function: row.function });
        if matches!(row.rules[dwarf::RIP], Rule::Undefined) {
            return Ok(());
        }
        registers = caller(&row, &registers, cfa, memory)?;
        kind = if row.signal { FrameKind::Interrupted } else { FrameKind::Caller };
    }
}

/// How far the frame address is above a frame pointer whose value is unknown.
fn without_frame_pointer(row: &Row, registers: &Registers) -> Option<i64> {
    match row.cfa {
        Cfa::Register { register, offset } if usize::from(register) == dwarf::RBP => {
            registers.0[dwarf::RBP].is_none().then_some(offset)
        }
        _ => None,
    }
}

fn canonical_frame_address(
    row: &Row,
    registers: &Registers,
    memory: &mut dyn Memory,
) -> Result<u64, Unverified> {
    match &row.cfa {
        Cfa::Register { register, offset } => {
            Ok(registers.get(usize::from(*register))?.wrapping_add_signed(*offset))
        }
        Cfa::Expression(expression) => expr::evaluate(expression, registers, memory, None),
    }
}

/// Register values in the calling (or interrupted) frame.
fn caller(
    row: &Row,
    registers: &Registers,
    cfa: u64,
    memory: &mut dyn Memory,
) -> Result<Registers, Unverified> {
    let mut next = Registers([None; dwarf::COUNT]);
    for (number, rule) in row.rules.iter().enumerate() {
        next.0[number] = match rule {
            Rule::Unspecified => match number {
                dwarf::RSP => Some(cfa),
                _ if dwarf::CALLEE_SAVED.contains(&number) => registers.0[number],
                _ => None,
            },
            Rule::Undefined => None,
            Rule::Same => registers.0[number],
            Rule::At(offset) => Some(memory::word(memory, cfa.wrapping_add_signed(*offset))?),
            Rule::Is(offset) => Some(cfa.wrapping_add_signed(*offset)),
            Rule::Register(other) => registers.0[usize::from(*other)],
            Rule::AtExpression(expression) => {
                let address = expr::evaluate(expression, registers, memory, Some(cfa))?;
                Some(memory::word(memory, address)?)
            }
            Rule::IsExpression(expression) => Some(expr::evaluate(expression, registers, memory, Some(cfa))?),
            Rule::Constant(value) => Some(*value),
        };
    }
    Ok(next)
}

#[cfg(test)]
mod tests;
