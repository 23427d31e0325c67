//! The landing area: what leads a thread from a breakpoint at a function's entry to where it belongs.
//!
//! It lies behind the registry, in reach of the module, and stays as long as the registry:
//!
//! ```text
//! registry end ──► text   0x000 net: handler of SIGTRAP, restorer         R-X
//!                         0x200 landing pads, 32 bytes each
//!                  data   0x000 world (u64) · number of sites (u64)       RW-
//!                         0x010 action that the net replaced (32 bytes) · the net's action (32 bytes)
//!                         0x050 the action that was in force last (32 bytes)
//!                        0x1000 sites: entry, destination before, destination after (u64 each)
//! ```
//!
//! A *landing pad* holds a copy of a function's first instruction and a jump to its second: it enters the old function
//! past a breakpoint (one byte) at its entry.
//!
//! The *net* catches threads that run into a breakpoint while no tracer looks after them, because the tool was killed: a
//! signal handler that looks the address up and sends the thread on, to the destination of the world that the tool
//! committed to. Every thread finds the same world, so the process stays wholly old or wholly new, if slow at these entries, until
//! the next run of the tool repairs it.

use crate::jump::{self, JMP_REL8, JMP_REL32};
use crate::registry::Location;
use crate::registry::format::TOTAL_SIZE;
use crate::transition::entries::write_checked;
use crate::transition::net::SIGTRAP_BIT;
use iced_x86::{ConstantOffsets, Decoder, DecoderOptions, FlowControl, Instruction, Register};
use livepatch_patch::RunAddr;
use livepatch_process::{Process, ProcessError};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Size of the code part. Only touched pages become resident.
pub const TEXT_SIZE: u64 = 512 << 10;
/// Size of the data part.
pub const DATA_SIZE: u64 = (SITES_AT + SITE_SIZE * SITES as u64).next_multiple_of(4096);
/// So many sites have room.
pub const SITES: usize = ((TEXT_SIZE - PADS_AT) / PAD_SIZE) as usize;
/// Size of both.
pub const LANDING_SIZE: u64 = TEXT_SIZE + DATA_SIZE;

const PADS_AT: u64 = 0x200;
const PAD_SIZE: u64 = 32;
const WORLD_AT: i64 = 0;
const COUNT_AT: i64 = 8;
const OLD_ACTION_AT: i64 = 0x10;
const NEW_ACTION_AT: i64 = 0x30;
const LAST_ACTION_AT: i64 = 0x50;
const ACTION_SIZE: usize = 32;
/// In place of a handler's address: no action was read. No address of a program has this value.
const NO_ACTION: u64 = u64::MAX;
const SITES_AT: u64 = 0x1000;
const SITE_SIZE: u64 = 24;

/// Where the landing area of a registry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landing {
    text: RunAddr,
    data: RunAddr,
}

/// Which code a thread belongs to that comes to a breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// What ran before the transition.
    Before,
    /// What runs after it.
    After,
}

/// A landing pad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pad {
    /// The function's entry.
    pub entry: RunAddr,
    /// The pad.
    pub at: RunAddr,
    /// Size of the function's first instruction.
    pub first: u8,
    /// Size of its copy.
    pub copy: u8,
}

impl Pad {
    /// The place in the function that a thread inside the pad stands for.
    pub fn origin(&self, pc: RunAddr) -> Option<RunAddr> {
        match pc.distance_from(self.at) {
            0 => Some(self.entry),
            inside if (0..PAD_SIZE as i64).contains(&inside) => {
                let offset = if inside < i64::from(self.copy) { 0 } else { i64::from(self.first) };
                Some(self.entry.offset(offset))
            }
            _ => None,
        }
    }
}

/// A breakpoint and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The function's entry.
    pub entry: RunAddr,
    /// Where a thread of the old world goes on.
    pub before: RunAddr,
    /// Where a thread of the new world goes on.
    pub after: RunAddr,
}

/// Why a function's first instruction cannot be executed elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is none, or the code is cut off.
    #[error("its first instruction cannot be decoded")]
    NoCode,
    /// A call would leave a return address in the pad on the stack.
    #[error("its first instruction is a call")]
    Call,
    /// It does not have the same effect at the pad's place.
    #[error("its first instruction cannot be moved")]
    Immovable,
    /// The landing area has no room.
    #[error("there is no room for its landing pad")]
    Full,
}

/// Code of the net, as assembled from
///
/// ```text
/// handler:  movabs r8, DATA                    found: mov  rcx, [r8]              # the world
///           cmp    dword [rsi+8], SI_KERNEL           mov  rax, [r9+rcx*8+8]
///           jne    other                              mov  [rdx+168], rax         # uc_mcontext.gregs[REG_RIP]
///           mov    rax, [rdx+168]                     ret
///           mov    rcx, [r8+8]                 other: mov  rax, [r8+0x10]         # the handler before
///           lea    r9, [r8+0x1000]                    cmp  rax, SIG_IGN
///           lea    r10, [rax-1]                       ja   old
/// next:     test   rcx, rcx                           jb   default
///           je     other                              cmp  dword [rsi+8], 0       # sent by a process
///           cmp    [r9], rax                          jg   default
///           je     found                              ret
///           cmp    [r9], r10                   old:   jmp  rax
///           je     found                     default: rt_sigaction(SIGTRAP, r8+0x10, 0, 8)
///           add    r9, 24                             tgkill(getpid(), gettid(), SIGTRAP)
///           dec    rcx                                ret
///           jmp    next                     restorer: rt_sigreturn()
/// ```
///
/// The instruction pointer of a trap is behind the `int3`; that of a thread that a tracer had taken back to it is at it.
#[rustfmt::skip]
const NET: [u8; 164] = [
    0x49, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0x81, 0x7e, 0x08, 0x80, 0x00, 0x00, 0x00, 0x75, 0x3e, 0x48, 0x8b, 0x82, 0xa8,
    0x00, 0x00, 0x00, 0x49, 0x8b, 0x48, 0x08, 0x4d, 0x8d, 0x88, 0x00, 0x10, 0x00, 0x00, 0x4c, 0x8d, 0x50, 0xff,
    0x48, 0x85, 0xc9, 0x74, 0x23, 0x49, 0x39, 0x01, 0x74, 0x0e, 0x4d, 0x39, 0x11, 0x74, 0x09, 0x49, 0x83, 0xc1, 0x18,
    0x48, 0xff, 0xc9, 0xeb, 0xe8,
    0x49, 0x8b, 0x08, 0x49, 0x8b, 0x44, 0xc9, 0x08, 0x48, 0x89, 0x82, 0xa8, 0x00, 0x00, 0x00, 0xc3,
    0x49, 0x8b, 0x40, 0x10, 0x48, 0x83, 0xf8, 0x01, 0x77, 0x09, 0x72, 0x09, 0x83, 0x7e, 0x08, 0x00, 0x7f, 0x03, 0xc3,
    0xff, 0xe0,
    0x49, 0x8d, 0x70, 0x10, 0x31, 0xd2, 0x41, 0xba, 0x08, 0x00, 0x00, 0x00, 0xb8, 0x0d, 0x00, 0x00, 0x00, 0x0f, 0x05,
    0xb8, 0x27, 0x00, 0x00, 0x00, 0x0f, 0x05, 0x49, 0x89, 0xc1, 0xb8, 0xba, 0x00, 0x00, 0x00, 0x0f, 0x05,
    0x4c, 0x89, 0xcf, 0x48, 0x89, 0xc6, 0xba, 0x05, 0x00, 0x00, 0x00, 0xb8, 0xea, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xc3,
    0xb8, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05,
];
/// Place of the data's address in the net.
const NET_DATA: Range<usize> = 2..10;
const RESTORER: i64 = 157;

impl Landing {
    /// The landing area of a registry.
    pub fn of(location: Location) -> Self {
        let text = location.at.offset(TOTAL_SIZE as i64);
        Self { text, data: text.offset(TEXT_SIZE as i64) }
    }

    /// The code part.
    pub fn text(&self) -> Range<RunAddr> {
        self.text..self.data
    }

    /// The data part.
    pub fn data(&self) -> Range<RunAddr> {
        self.data..self.data.offset(DATA_SIZE as i64)
    }

    /// Code of the net, where a thread is between a breakpoint and its destination.
    pub fn net(&self) -> Range<RunAddr> {
        self.text..self.text.offset(NET.len() as i64)
    }

    /// Writes the net's code.
    ///
    /// # Errors
    /// The memory cannot be written.
    pub fn write_net(&self, process: &Process) -> Result<(), ProcessError> {
        let mut code = NET;
        code[NET_DATA].copy_from_slice(&self.data.0.to_le_bytes());
        write_checked(process, self.text, &code)
    }

    /// Makes pads for entries that have none yet. `code` gives a function's bytes as the image has them.
    ///
    /// # Errors
    /// [`Err`] inside: a function that cannot have one, and why.
    pub fn make_pads(
        &self,
        process: &Process,
        pads: &mut Vec<Pad>,
        functions: &[(RunAddr, Vec<u8>)],
    ) -> Result<Result<(), (RunAddr, Unfit)>, ProcessError> {
        for (entry, code) in functions {
            if pads.iter().any(|pad| pad.entry == *entry) {
                continue;
            }
            let at = self.text.offset((PADS_AT + PAD_SIZE * pads.len() as u64) as i64);
            if at.offset(PAD_SIZE as i64) > self.data {
                return Ok(Err((*entry, Unfit::Full)));
            }
            match relocate(*entry, code, at) {
                Ok((pad, bytes)) => {
                    write_checked(process, at, &bytes)?;
                    pads.push(pad);
                }
                Err(unfit) => return Ok(Err((*entry, unfit))),
            }
        }
        Ok(Ok(()))
    }

    /// Tells the net about the sites and sets the world to [`World::Before`]. Only while no thread can be in the net.
    ///
    /// # Errors
    /// The memory cannot be written.
    pub fn write_sites(&self, process: &Process, sites: &[Site]) -> Result<(), ProcessError> {
        let mut table = Vec::with_capacity(sites.len() * SITE_SIZE as usize);
        for site in sites {
            for address in [site.entry, site.before, site.after] {
                table.extend_from_slice(&address.0.to_le_bytes());
            }
        }
        self.set_world(process, World::Before)?;
        write_checked(process, self.data.offset(SITES_AT as i64), &table)?;
        write_checked(process, self.data.offset(COUNT_AT), &(sites.len() as u64).to_le_bytes())
    }

    /// Commits to a world: eight aligned bytes, so that every thread sees one or the other.
    ///
    /// # Errors
    /// The memory cannot be written.
    pub fn set_world(&self, process: &Process, world: World) -> Result<(), ProcessError> {
        write_checked(process, self.data.offset(WORLD_AT), &(world as u64).to_le_bytes())
    }

    /// The world that was committed to.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn world(&self, process: &Process) -> Result<World, ProcessError> {
        let world = process.read_u64(self.data.offset(WORLD_AT))?;
        Ok(if world == World::After as u64 { World::After } else { World::Before })
    }

    /// Address of the world, for memory that is not the process's own.
    pub fn world_word(&self) -> RunAddr {
        self.data.offset(WORLD_AT)
    }

    /// Puts the net's signal action (`struct sigaction` as the kernel has it: handler, flags, restorer, mask) where
    /// `rt_sigaction` can read it.
    ///
    /// In the net all signals are held back, so that no other handler runs on top of it: that one might come to a breakpoint
    /// itself, and a thread that is in the net is to be known by its instruction pointer. SIGTRAP is not, because the kernel kills
    /// a process that comes to a breakpoint with it blocked, and the program's own action for it may lead there.
    ///
    /// # Errors
    /// The memory cannot be written.
    pub fn write_action(&self, process: &Process) -> Result<(), ProcessError> {
        const SA_SIGINFO: u64 = 4;
        const SA_RESTORER: u64 = 0x0400_0000;
        const SA_ONSTACK: u64 = 0x0800_0000;
        const SA_RESTART: u64 = 0x1000_0000;
        const SA_NODEFER: u64 = 0x4000_0000;
        let flags = SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_RESTART | SA_NODEFER;
        let action = [self.text.0, flags, self.text.offset(RESTORER).0, !SIGTRAP_BIT];
        let bytes: Vec<u8> = action.iter().flat_map(|word| word.to_le_bytes()).collect();
        write_checked(process, self.new_action(), &bytes)?;
        self.keep_last_action(process)
    }

    /// The net's action.
    pub fn new_action(&self) -> RunAddr {
        self.data.offset(NEW_ACTION_AT)
    }

    /// The action that the net replaced, for signals that are not its business.
    pub fn old_action(&self) -> RunAddr {
        self.data.offset(OLD_ACTION_AT)
    }

    /// Where `rt_sigaction` puts the action that was in force.
    pub fn last_action(&self) -> RunAddr {
        self.data.offset(LAST_ACTION_AT)
    }

    /// Whether the action that was in force last is the net's.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn last_was_net(&self, process: &Process) -> Result<bool, ProcessError> {
        Ok(process.read_u64(self.last_action())? == self.text.0)
    }

    /// Makes the action that was in force last the one for signals that are not the net's business, if one was read and it
    /// is not the net's own.
    ///
    /// # Errors
    /// The memory cannot be accessed.
    pub fn keep_last_action(&self, process: &Process) -> Result<(), ProcessError> {
        let handler = process.read_u64(self.last_action())?;
        if handler != NO_ACTION && handler != self.text.0 {
            let action: [u8; ACTION_SIZE] = process.read_array(self.last_action())?;
            write_checked(process, self.old_action(), &action)?;
        }
        write_checked(process, self.last_action(), &NO_ACTION.to_le_bytes())
    }
}

/// The pad's code at its place.
fn relocate(entry: RunAddr, code: &[u8], at: RunAddr) -> Result<(Pad, Vec<u8>), Unfit> {
    let mut decoder = Decoder::with_ip(64, code, entry.0, DecoderOptions::NONE);
    let first = decoder.decode();
    if first.is_invalid() {
        return Err(Unfit::NoCode);
    }
    let original = &code[..first.len()];
    let mut bytes = match first.flow_control() {
        FlowControl::Call | FlowControl::IndirectCall => return Err(Unfit::Call),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
            moved_branch(original, RunAddr(first.near_branch_target()), at)
        }
        FlowControl::Next | FlowControl::Return | FlowControl::IndirectBranch => {
            moved_plain(&first, original, decoder.get_constant_offsets(&first), at)
        }
        FlowControl::XbeginXabortXend | FlowControl::Exception | FlowControl::Interrupt => None,
    }
    .ok_or(Unfit::Immovable)?;
    let copy = bytes.len();
    let rest =
        jump::encode(at.offset(copy as i64), RunAddr(first.next_ip())).map_err(|_| Unfit::Immovable)?;
    bytes.extend_from_slice(&rest.0);
    if bytes.len() > PAD_SIZE as usize {
        return Err(Unfit::Immovable);
    }
    Ok((Pad { entry, at, first: first.len() as u8, copy: copy as u8 }, bytes))
}

/// An instruction that is no direct branch: its own bytes, unless it addresses memory relative to itself, in which case the
/// distance is made anew.
fn moved_plain(
    instruction: &Instruction,
    code: &[u8],
    fields: ConstantOffsets,
    at: RunAddr,
) -> Option<Vec<u8>> {
    let mut bytes = code.to_vec();
    match instruction.memory_base() {
        Register::RIP => {
            let next = at.offset(code.len() as i64);
            let distance = RunAddr(instruction.ip_rel_memory_address()).distance_from(next);
            let field =
                fields.displacement_offset()..fields.displacement_offset() + fields.displacement_size();
            let field: &mut [u8; 4] = bytes.get_mut(field)?.try_into().ok()?;
            field.copy_from_slice(&i32::try_from(distance).ok()?.to_le_bytes());
        }
        // With the prefix for 32-bit addresses: what it reaches depends on where it is.
        Register::EIP => return None,
        _ => {}
    }
    Some(bytes)
}

/// `jmp` and `jcc` in their long forms. The others have none (`loop`, `jrcxz`), or prefixes of which each would need thought.
fn moved_branch(code: &[u8], target: RunAddr, at: RunAddr) -> Option<Vec<u8>> {
    let mut bytes = match *code {
        [JMP_REL8, _] | [JMP_REL32, _, _, _, _] => vec![JMP_REL32],
        [jcc @ 0x70..=0x7f, _] => vec![0x0f, jcc + 0x10],
        [0x0f, jcc @ 0x80..=0x8f, _, _, _, _] => vec![0x0f, jcc],
        _ => return None,
    };
    let next = at.offset(bytes.len() as i64 + 4);
    bytes.extend_from_slice(&i32::try_from(target.distance_from(next)).ok()?.to_le_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: RunAddr = RunAddr(0x5555_0000_1000);
    const AT: RunAddr = RunAddr(0x5555_1000_0000);

    fn decoded(code: &[u8], at: RunAddr) -> Vec<Instruction> {
        Decoder::with_ip(64, code, at.0, DecoderOptions::NONE).iter().collect()
    }

    #[test]
    fn a_push_is_copied_and_left_to_the_rest() {
        let (pad, code) = relocate(ENTRY, &[0x55, 0x48, 0x89, 0xe5, 0xc3], AT).unwrap();
        assert_eq!((pad.first, pad.copy), (1, 1));
        assert_eq!(code[0], 0x55);
        assert_eq!(decoded(&code, AT)[1].near_branch_target(), ENTRY.0 + 1);
        assert_eq!(pad.origin(AT), Some(ENTRY));
        assert_eq!(pad.origin(AT.offset(1)), Some(ENTRY.offset(1)));
        assert_eq!(pad.origin(AT.offset(-1)), None);
        assert_eq!(pad.origin(AT.offset(PAD_SIZE as i64)), None);
    }

    #[test]
    fn addresses_relative_to_the_instruction_keep_their_target() {
        // mov rax, [rip+0x100]; ret
        let (_, code) = relocate(ENTRY, &[0x48, 0x8b, 0x05, 0x00, 0x01, 0, 0, 0xc3], AT).unwrap();
        assert_eq!(decoded(&code, AT)[0].ip_rel_memory_address(), ENTRY.0 + 7 + 0x100);
        // jne +0x10 (short)
        let (pad, code) = relocate(ENTRY, &[0x75, 0x10, 0xc3], AT).unwrap();
        assert_eq!(decoded(&code, AT)[0].near_branch_target(), ENTRY.0 + 2 + 0x10);
        assert_eq!((pad.first, pad.copy), (2, 6));
        assert_eq!(pad.origin(AT.offset(6)), Some(ENTRY.offset(2)));
    }

    #[test]
    fn the_distance_may_lie_before_an_immediate() {
        // mov dword [rip+0x100], 0x11223344; the same as a quadword
        for prefix in [&[][..], &[0x48]] {
            let code = [prefix, &[0xc7, 0x05, 0x00, 0x01, 0, 0, 0x44, 0x33, 0x22, 0x11]].concat();
            let (pad, moved) = relocate(ENTRY, &code, AT).unwrap();
            let first = decoded(&moved, AT)[0];
            assert_eq!(first.ip_rel_memory_address(), ENTRY.0 + code.len() as u64 + 0x100);
            assert_eq!((first.immediate32to64(), pad.copy), (0x1122_3344, pad.first));
        }
    }

    #[test]
    fn branches_keep_their_condition_and_their_target() {
        // jmp and jg, short and near; jmp through a word behind it
        for (code, opcode) in [
            (&[0xeb, 0xfe][..], &[0xe9][..]),
            (&[0xe9, 0xfb, 0xff, 0xff, 0xff], &[0xe9]),
            (&[0x7f, 0xfe], &[0x0f, 0x8f]),
            (&[0x0f, 0x8f, 0xfa, 0xff, 0xff, 0xff], &[0x0f, 0x8f]),
        ] {
            let (_, moved) = relocate(ENTRY, code, AT).unwrap();
            assert!(moved.starts_with(opcode), "{code:x?}");
            assert_eq!(decoded(&moved, AT)[0].near_branch_target(), ENTRY.0);
        }
        let (_, moved) = relocate(ENTRY, &[0xff, 0x25, 0, 0x10, 0, 0], AT).unwrap();
        assert_eq!(decoded(&moved, AT)[0].ip_rel_memory_address(), ENTRY.0 + 6 + 0x1000);
    }

    #[test]
    fn what_cannot_be_moved_is_told() {
        assert_eq!(relocate(ENTRY, &[0xe8, 0, 0, 0, 0], AT), Err(Unfit::Call));
        assert_eq!(relocate(ENTRY, &[0xff, 0xd0], AT), Err(Unfit::Call));
        assert_eq!(relocate(ENTRY, &[0x06], AT), Err(Unfit::NoCode));
        assert_eq!(relocate(ENTRY, &[], AT), Err(Unfit::NoCode));
        // loop; jrcxz; jmp with a prefix; lea rax, [eip+0x100]; ud2
        let immovable: [&[u8]; 5] = [
            &[0xe2, 0x10],
            &[0xe3, 0x10],
            &[0xf2, 0xeb, 0x10],
            &[0x67, 0x48, 0x8d, 0x05, 0, 1, 0, 0],
            &[0x0f, 0x0b],
        ];
        for code in immovable {
            assert_eq!(relocate(ENTRY, code, AT), Err(Unfit::Immovable), "{code:x?}");
        }
        let far = RunAddr(0x7fff_0000_0000);
        assert_eq!(relocate(ENTRY, &[0x55, 0xc3], far), Err(Unfit::Immovable));
    }

    #[test]
    fn the_net_is_what_its_listing_says() {
        let mut code = NET;
        code[NET_DATA].copy_from_slice(&0x7000_u64.to_le_bytes());
        let all = decoded(&code, RunAddr(0));
        assert!(all.iter().all(|instruction| !instruction.is_invalid()));
        assert_eq!(all[0].immediate(1), 0x7000);
        let branches: Vec<u64> = all
            .iter()
            .filter(|i| i.is_jcc_short() || i.is_jmp_short())
            .map(|i| i.near_branch_target())
            .collect();
        let (next, found, other, old, default) = (0x29, 0x41, 0x51, 0x64, 0x66);
        assert_eq!(branches, [other, other, found, found, next, old, default, default]);
        let starts: Vec<u64> = all.iter().map(Instruction::ip).collect();
        for label in [next, found, other, old, default, RESTORER as u64] {
            assert!(starts.contains(&label), "{label:#x}");
        }
        let lea = all.iter().find(|i| i.memory_displacement64() == SITES_AT);
        assert!(lea.is_some(), "the sites are where the net looks");
    }

    #[test]
    fn parts_do_not_overlap() {
        let landing = Landing::of(Location { at: RunAddr(0x10_0000) });
        assert_eq!(landing.text().start, RunAddr(0x10_0000 + TOTAL_SIZE));
        assert_eq!(landing.text().end, landing.data().start);
        assert_eq!(landing.data().end.distance_from(landing.text().start) as u64, LANDING_SIZE);
        assert!(landing.net().end <= landing.text().start.offset(PADS_AT as i64));
        const { assert!(DATA_SIZE.is_multiple_of(4096) && TEXT_SIZE.is_multiple_of(4096)) };
    }
}
