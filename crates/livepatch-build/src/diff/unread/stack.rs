//! What a function does with its stack, as far as it is simple: it makes room at its entry, reads and writes at places in it, and gives it
//! back before it returns.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

/// A place on the stack, in bytes from the return address.
pub(super) type Place = i64;

/// What an instruction does with the stack.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    Nothing,
    /// It makes room, gives it back, or saves and restores a register.
    Frame,
    /// It reads or writes at this place.
    Place(Place),
}

/// The stack of a function, from its entry on.
#[derive(Default)]
pub(super) struct Stack {
    /// Room that is made, in bytes.
    room: i64,
    /// How much that was when the frame pointer was set.
    frame_pointer: Option<i64>,
    /// Whether all room is made.
    is_made: bool,
    /// Whether room is being given back.
    leaves: bool,
    /// Every access, with its size.
    used: Vec<(Place, i64, OpAccess)>,
}

impl Stack {
    /// What each instruction does with it. `None` if that is not known, or if parts of a value are used.
    pub fn of(code: &[Instruction]) -> Option<(Vec<Use>, Self)> {
        let mut stack = Self::default();
        let mut factory = InstructionInfoFactory::new();
        let uses = code.iter().map(|instruction| stack.follow(instruction, &mut factory));
        let uses = uses.collect::<Option<Vec<_>>>()?;
        stack.used.sort_by_key(|(place, size, _)| (*place, *size));
        let overlap =
            |(one, next): (&(Place, i64, _), &(Place, i64, _))| one.0 != next.0 && one.0 + one.1 > next.0;
        let overlaps = stack.used.iter().zip(stack.used.iter().skip(1)).any(overlap);
        (!overlaps).then_some((uses, stack))
    }

    /// Whether something reads the byte at a place.
    pub fn is_read(&self, place: Place) -> bool {
        let mut reads = self.used.iter().filter(|(.., access)| *access == OpAccess::Read);
        reads.any(|(start, size, _)| (*start..start + size).contains(&place))
    }

    fn follow(&mut self, instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Use> {
        if self.is_of_frame(instruction) {
            return Some(Use::Frame);
        }
        self.is_made = true;
        let used = self.access(instruction, factory)?;
        if self.leaves && matches!(used, Use::Place(_)) {
            return None;
        }
        if !matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch) {
            self.leaves = false;
        }
        Some(used)
    }

    /// Takes note of room that is made or given back.
    fn is_of_frame(&mut self, instruction: &Instruction) -> bool {
        let (to, is_register) = (instruction.op0_register(), instruction.op0_kind() == OpKind::Register);
        let by_number =
            to == Register::RSP && !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory);
        match instruction.mnemonic() {
            Mnemonic::Push if !self.is_made && is_register => self.room += 8,
            Mnemonic::Sub if !self.is_made && by_number => {
                self.room += instruction.immediate(1).cast_signed()
            }
            Mnemonic::Mov
                if !self.is_made && to == Register::RBP && instruction.op1_register() == Register::RSP =>
            {
                self.frame_pointer = Some(self.room);
            }
            Mnemonic::Add if by_number => self.leaves = true,
            Mnemonic::Pop if is_register => self.leaves = true,
            _ => return false,
        }
        true
    }

    fn access(&mut self, instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Use> {
        let (room, frame_pointer) = (self.room, self.frame_pointer);
        let base = |register: Register| match register.full_register() {
            Register::RSP => Some(room),
            Register::RBP => frame_pointer,
            _ => None,
        };
        let names =
            |op| instruction.op_kind(op) == OpKind::Register && base(instruction.op_register(op)).is_some();
        if (0..instruction.op_count()).any(names) || base(instruction.memory_index()).is_some() {
            return None;
        }
        let explicit = base(instruction.memory_base());
        let uses_by_itself = !matches!(
            instruction.flow_control(),
            FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        );
        if uses_by_itself {
            return explicit.is_none().then_some(Use::Nothing);
        }
        let info = factory.info(instruction);
        let mut used = info.used_memory().iter().filter(|memory| base(memory.base()).is_some());
        let (first, second) = (used.next(), used.next());
        let Some(base) = explicit else { return first.is_none().then_some(Use::Nothing) };
        // Without an access it is an address that is formed.
        let access = first.filter(|_| second.is_none() && instruction.memory_index() == Register::None)?;
        if !matches!(access.access(), OpAccess::Read | OpAccess::Write) {
            return None;
        }
        let place = instruction.memory_displacement64().cast_signed() - base;
        self.used.push((place, i64::try_from(access.memory_size().size()).ok()?, access.access()));
        Some(Use::Place(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::knowledge::instructions;

    /// `push rbx; sub rsp, 16`, this, `add rsp, 16; pop rbx; ret`.
    fn within(code: &[u8]) -> Option<(Vec<Use>, Stack)> {
        let all = [&[0x53, 0x48, 0x83, 0xec, 0x10], code, &[0x48, 0x83, 0xc4, 0x10, 0x5b, 0xc3]].concat();
        Stack::of(&instructions(&all))
    }

    /// `mov byte [rsp+7], 0`
    const SET: [u8; 5] = [0xc6, 0x44, 0x24, 0x07, 0x00];
    const PLACE: Place = 7 - 24;

    #[test]
    fn what_is_set_and_what_is_read() {
        let (uses, stack) = within(&SET).unwrap();
        assert!(matches!(uses[2], Use::Place(PLACE)), "{uses:?}");
        assert!(!stack.is_read(PLACE));
        // cmp byte [rsp+7], 0
        let (_, stack) = within(&[SET.as_slice(), &[0x80, 0x7c, 0x24, 0x07, 0x00]].concat()).unwrap();
        assert!(stack.is_read(PLACE));
        // mov rax, [rsp]: its last byte is the one.
        let (_, stack) = within(&[0x48, 0x8b, 0x04, 0x24]).unwrap();
        assert!(stack.is_read(PLACE) && !stack.is_read(PLACE + 1));
    }

    #[test]
    fn what_is_not_simple() {
        // lea rdi, [rsp+8]; mov [rsp], rax and mov ecx, [rsp+4]; mov rax, rsp; mov [rsp+rcx], al; push rax
        for code in [
            &[0x48, 0x8d, 0x7c, 0x24, 0x08][..],
            &[0x48, 0x89, 0x04, 0x24, 0x8b, 0x4c, 0x24, 0x04],
            &[0x48, 0x89, 0xe0],
            &[0x88, 0x04, 0x0c],
            &[0x90, 0x50],
        ] {
            assert!(within(code).is_none(), "{code:x?}");
        }
        // An access behind the end of the room.
        let leaving = [0x48, 0x83, 0xec, 0x10, 0x48, 0x83, 0xc4, 0x10, 0xc6, 0x44, 0x24, 0x07, 0x00, 0xc3];
        assert!(Stack::of(&instructions(&leaving)).is_none());
    }
}
