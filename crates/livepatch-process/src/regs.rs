//! Registers of a stopped thread.

use livepatch_patch::RunAddr;
use nix::libc;

/// The general registers, `user_regs_struct` of `<sys/user.h>`.
///
/// `orig_rax` is the number of the system call that the thread is in, or −1 outside one; together with a `rax` of
/// −ERESTART… it makes the kernel restart an interrupted system call when the thread resumes. Setting both back exactly is
/// what keeps remote work unnoticed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Regs(pub libc::user_regs_struct);

/// The code segment selector of 64-bit user code (`__USER_CS`); 32-bit code runs with 0x23.
const USER64_CS: u64 = 0x33;

impl Regs {
    /// The next instruction.
    pub fn ip(&self) -> RunAddr {
        RunAddr(self.0.rip)
    }

    /// Sets the next instruction.
    pub fn set_ip(&mut self, ip: RunAddr) {
        self.0.rip = ip.0;
    }

    /// The stack pointer.
    pub fn sp(&self) -> RunAddr {
        RunAddr(self.0.rsp)
    }

    /// Sets the stack pointer.
    pub fn set_sp(&mut self, sp: RunAddr) {
        self.0.rsp = sp.0;
    }

    /// The thread pointer (`fs` base), from which thread-locals are addressed.
    pub fn thread_pointer(&self) -> RunAddr {
        RunAddr(self.0.fs_base)
    }

    /// The register of that number in DWARF's numbering for x86-64 (System V psABI, figure 3.36): 0 rax, 1 rdx, 2 rcx, 3 rbx,
    /// 4 rsi, 5 rdi, 6 rbp, 7 rsp, 8–15 r8–r15, 16 the return address column, here the instruction pointer.
    pub fn dwarf(&self, register: u16) -> Option<u64> {
        let r = &self.0;
        let all = [
            r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15, r.rip,
        ];
        all.get(usize::from(register)).copied()
    }

    /// The number of the system call that the thread was stopped in.
    pub fn syscall(&self) -> Option<u64> {
        (self.0.orig_rax as i64 >= 0).then_some(self.0.orig_rax)
    }

    /// Whether the thread executes 64-bit code.
    pub fn is_64_bit(&self) -> bool {
        self.0.cs == USER64_CS
    }
}

impl std::fmt::Debug for Regs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Floating-point, vector and further state of a thread, in the processor's XSAVE format (`NT_X86_XSTATE`).
#[derive(Clone, PartialEq, Eq)]
pub struct XState(pub(crate) Vec<u8>);

impl XState {
    /// The XSAVE image: legacy area of 512 bytes (FXSAVE), header, extended components.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for XState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "XState({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwarf_numbers() {
        // SAFETY: `user_regs_struct` is made of integers only; all zero is a value of it.
        let mut regs = Regs(unsafe { std::mem::zeroed() });
        (regs.0.rdx, regs.0.rbx, regs.0.rbp, regs.0.rsp) = (1, 3, 6, 7);
        (regs.0.r8, regs.0.r15, regs.0.rip, regs.0.orig_rax) = (8, 15, 16, u64::MAX);
        for (number, value) in [(0, 0), (1, 1), (3, 3), (6, 6), (7, 7), (8, 8), (15, 15), (16, 16)] {
            assert_eq!(regs.dwarf(number), Some(value), "register {number}");
        }
        assert_eq!(regs.dwarf(17), None);
        assert_eq!(regs.syscall(), None);
    }
}
