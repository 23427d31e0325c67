//! Signal frames: a thread's whole user state in memory, in the form from which `rt_sigreturn` puts it back.
//!
//! Remote work leads a thread away from what it does. Before that, its state is laid down in such a frame, and whatever the
//! thread executes ends at `rt_sigreturn` with the stack pointer at the frame. So the thread finds back by itself if
//! the tool dies at any moment.
//!
//! ```text
//! uc      flags · link (our mark) · alternate stack (invalid: left as it is) · registers · signal mask     64-byte aligned
//! fpstate FXSAVE area with the software bytes at 464 · XSAVE header · components · FP_XSTATE_MAGIC2          64-byte aligned
//! ```
//!
//! The layout is that of `struct ucontext` and `struct sigcontext_64` (`<asm/ucontext.h>`, `<asm/sigcontext.h>`). The frame's
//! `siginfo` is not read by `rt_sigreturn` and left out.
//!
//! What an interrupted system call returns is decided by the kernel on the way to user mode. `rt_sigreturn` bypasses that, so
//! the frame holds the decision: the call is made again. One that would be continued with the time left (`nanosleep`, `poll`,
//! a futex with a timeout) returns `EINTR` instead; the kernel forgets its continuation at every `rt_sigreturn`.

use crate::Regs;
use crate::drive::Saved;
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use std::arch::x86_64::{__cpuid_count, CpuidResult};

/// `link` of our frames: tells a thread in remote work of a killed tool from others. The kernel ignores the field.
pub(crate) const MARK: u64 = u64::from_le_bytes(*b"livepat\0");
/// Offset of the link in the frame.
pub(crate) const LINK_AT: i64 = 8;

const UCONTEXT_SIZE: usize = 304;
const REGISTERS_AT: usize = 40;
const SEGMENTS_AT: usize = 184;
const FPSTATE_AT: usize = 224;
const MASK_AT: usize = 296;
/// `UC_FP_XSTATE`, `UC_SIGCONTEXT_SS`, `UC_STRICT_RESTORE_SS`.
const UC_FLAGS: u64 = 1 | 2 | 4;
/// Offset of `uc_stack.ss_flags`, and a value that `sigaltstack` rejects.
const STACK_FLAGS_AT: usize = 24;
const INVALID_STACK_FLAGS: u32 = 0x40;

const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Offset of `struct _fpx_sw_bytes` in the FXSAVE area.
const SOFTWARE_AT: usize = 464;
const XSAVE_HEADER_AT: usize = 512;
const MIN_XSTATE: usize = 576;
const ALIGNMENT: u64 = 64;
/// x87 and SSE.
const LEGACY: u64 = 3;
/// Protection keys. The kernel gives their value in any case, but not always the bit that says so.
const PKRU: u64 = 1 << 9;

/// A frame for one place in memory.
pub(crate) struct SignalFrame {
    /// Where the stack pointer must be at `rt_sigreturn`; 64-byte aligned.
    pub at: RunAddr,
    pub bytes: Vec<u8>,
}

impl SignalFrame {
    /// The highest frame that ends at or below `top`. `None` if the processor and the kernel disagree about the vector state.
    pub fn below(top: RunAddr, saved: &Saved) -> Option<Self> {
        let fpstate = fpstate(saved.xstate.bytes())?;
        let fp_at = (top.0.checked_sub(fpstate.len() as u64)?) & !(ALIGNMENT - 1);
        let at = fp_at.checked_sub(UCONTEXT_SIZE as u64)? & !(ALIGNMENT - 1);
        let mut bytes = ucontext(&on_its_own(&saved.regs), saved.mask, fp_at);
        bytes.resize((fp_at - at) as usize, 0);
        bytes.extend(fpstate);
        Some(Self { at: RunAddr(at), bytes })
    }
}

/// What the thread goes on with if no kernel looks at its interrupted system call any more.
fn on_its_own(regs: &Regs) -> Regs {
    const ERESTARTSYS: i64 = 512;
    const ERESTARTNOINTR: i64 = 513;
    const ERESTARTNOHAND: i64 = 514;
    const ERESTART_RESTARTBLOCK: i64 = 516;
    const SYSCALL_SIZE: i64 = 2;
    let mut out = *regs;
    if let Some(number) = regs.syscall() {
        match -(regs.0.rax as i64) {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                out.set_ip(regs.ip().offset(-SYSCALL_SIZE));
                out.0.rax = number;
            }
            ERESTART_RESTARTBLOCK => out.0.rax = -(Errno::EINTR as i64) as u64,
            _ => {}
        }
    }
    out
}

fn ucontext(regs: &Regs, mask: u64, fpstate: u64) -> Vec<u8> {
    let r = &regs.0;
    let mut bytes = vec![0; UCONTEXT_SIZE];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &UC_FLAGS.to_le_bytes());
    put(LINK_AT as usize, &MARK.to_le_bytes());
    put(STACK_FLAGS_AT, &INVALID_STACK_FLAGS.to_le_bytes());
    let registers = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax,
        r.rcx, r.rsp, r.rip, r.eflags,
    ];
    for (place, value) in registers.iter().enumerate() {
        put(REGISTERS_AT + 8 * place, &value.to_le_bytes());
    }
    for (place, value) in [r.cs, r.gs, r.fs, r.ss].iter().enumerate() {
        put(SEGMENTS_AT + 2 * place, &(*value as u16).to_le_bytes());
    }
    put(FPSTATE_AT, &fpstate.to_le_bytes());
    put(MASK_AT, &mask.to_le_bytes());
    bytes
}

/// The XSAVE image as signal frames have it: as long as what it holds, with the software bytes and the mark behind it.
/// Components beyond are in their initial state, and `rt_sigreturn` initialises what the software bytes do not name.
fn fpstate(xstate: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u64::from_le_bytes(*xstate.get(at..)?.first_chunk()?));
    // The kernel tells there which components it manages for programs.
    let managed = word(SOFTWARE_AT)?;
    let components = word(XSAVE_HEADER_AT)? | managed & PKRU;
    let size = (2..63)
        .filter(|number| components & 1 << number != 0)
        .map(component_end)
        .fold(MIN_XSTATE, usize::max);
    let mut bytes = xstate.get(..size)?.to_vec();
    let named = components | LEGACY;
    let software = [
        &FP_XSTATE_MAGIC1.to_le_bytes()[..],
        &(size as u32 + 4).to_le_bytes(),
        &named.to_le_bytes(),
        &(size as u32).to_le_bytes(),
        &[0; 28],
    ];
    bytes[SOFTWARE_AT..XSAVE_HEADER_AT].copy_from_slice(&software.concat());
    bytes[XSAVE_HEADER_AT..XSAVE_HEADER_AT + 8].copy_from_slice(&components.to_le_bytes());
    // The image is not compacted, whatever the processor uses.
    bytes[XSAVE_HEADER_AT + 8..MIN_XSTATE].fill(0);
    bytes.extend(FP_XSTATE_MAGIC2.to_le_bytes());
    Some(bytes)
}

/// Where a component ends in the standard format (CPUID leaf 0xd, Intel SDM volume 1, section 13.2).
fn component_end(number: u32) -> usize {
    const XSAVE_LEAF: u32 = 0xd;
    let CpuidResult { eax: size, ebx: offset, .. } = __cpuid_count(XSAVE_LEAF, number);
    (offset + size) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::XState;

    fn regs() -> Regs {
        // SAFETY: `user_regs_struct` is made of integers only; all zero is a value of it.
        Regs(unsafe { std::mem::zeroed() })
    }

    fn xstate(components: u64, managed: u64) -> XState {
        let mut bytes = vec![0; 16 << 10];
        bytes[SOFTWARE_AT..SOFTWARE_AT + 8].copy_from_slice(&managed.to_le_bytes());
        bytes[XSAVE_HEADER_AT..XSAVE_HEADER_AT + 8].copy_from_slice(&components.to_le_bytes());
        XState(bytes)
    }

    #[test]
    fn interrupted_system_calls_are_made_again() {
        let cases = [
            (0, -512, 0x1000 - 2, 0),
            (7, -513, 0x1000 - 2, 7),
            (7, -514, 0x1000 - 2, 7),
            (35, -516, 0x1000, -4),
            (7, -4, 0x1000, -4),
            (7, 3, 0x1000, 3),
            (-1, -512, 0x1000, -512),
        ];
        for (number, result, ip, rax) in cases {
            let mut before = regs();
            (before.0.orig_rax, before.0.rax, before.0.rip) = (number as u64, result as u64, 0x1000);
            let after = on_its_own(&before);
            assert_eq!((after.0.rip, after.0.rax as i64), (ip, rax), "system call {number} with {result}");
        }
    }

    #[test]
    fn frames_are_aligned_and_end_below_the_top() {
        let saved = Saved { regs: regs(), mask: 0, xstate: xstate(7, 7), way_back: None };
        for top in 0x7000..0x7080 {
            let frame = SignalFrame::below(RunAddr(top), &saved).unwrap();
            assert_eq!(frame.at.0 % 64, 0);
            let end = frame.at.0 + frame.bytes.len() as u64;
            assert!(end <= top && top - end < 64);
            let fp_at = u64::from_le_bytes(frame.bytes[FPSTATE_AT..FPSTATE_AT + 8].try_into().unwrap());
            assert_eq!(fp_at % 64, 0);
            let fpstate = &frame.bytes[(fp_at - frame.at.0) as usize..];
            let field = |at| u32::from_le_bytes(fpstate[at..at + 4].try_into().unwrap()) as usize;
            let size = field(SOFTWARE_AT + 16);
            assert_eq!(fpstate.len(), size + 4);
            assert_eq!(field(SOFTWARE_AT), FP_XSTATE_MAGIC1 as usize);
            assert_eq!(field(size), FP_XSTATE_MAGIC2 as usize);
        }
    }

    #[test]
    fn the_vector_state_is_as_long_as_what_it_holds() {
        let length = |components| fpstate(xstate(components, 7).bytes()).unwrap().len();
        assert_eq!(length(0), MIN_XSTATE + 4);
        assert_eq!(length(3), MIN_XSTATE + 4);
        // The high halves of the AVX registers: 256 bytes behind the header in every processor that has them.
        assert_eq!(length(7), MIN_XSTATE + 256 + 4);
        assert!(fpstate(&[0; 500]).is_none());
    }
}
