//! What a thread's seccomp filters would answer to a system call, found out before the call is made: a filter may kill the
//! process for it, and nothing could undo that.
//!
//! The kernel hands filters out as classic BPF programs (`PTRACE_SECCOMP_GET_FILTER`), which are run here on the arguments of the
//! intended call. Reading them needs CAP_SYS_ADMIN and a tool without a filter of its own. Inside a container neither holds; there a
//! target with as many filters as the tool is taken to run under the container's, which the tool's own calls are subject
//! to, and one with more is refused.

use crate::error::RemoteError;
use crate::{Status, StoppedThread, procfs, sys};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use nix::libc::{self, sock_filter};

/// `AUDIT_ARCH_X86_64` of `<linux/audit.h>`.
const ARCH: u32 = 0xc000_003e;
/// Bytes of the `struct seccomp_data` that a filter sees.
const DATA_BYTES: u32 = 64;
/// Bits of a filter's result that say what to do (`SECCOMP_RET_ACTION_FULL`).
const ACTION: u32 = 0xffff_0000;

/// What the strictest filter makes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// The action, in the words of seccomp(2).
    Forbidden(&'static str),
}

/// The call as the filters see it (`struct seccomp_data`).
fn data(number: libc::c_long, args: &[u64; 6], at: RunAddr) -> [u8; DATA_BYTES as usize] {
    let words = [number as u32 as u64 | u64::from(ARCH) << 32, at.0].into_iter().chain(*args);
    let mut bytes = [0; DATA_BYTES as usize];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// All filters run, and the strictest result counts: the lowest one, as a signed number. A program that cannot be followed
/// forbids.
fn verdict(filters: &[Vec<sock_filter>], data: &[u8; DATA_BYTES as usize]) -> Verdict {
    let results = filters.iter().map(|filter| run(filter, data));
    let mut strictest = libc::SECCOMP_RET_ALLOW as i32;
    for result in results {
        let Some(result) = result else {
            return Verdict::Forbidden("unknown: the filter cannot be followed");
        };
        strictest = strictest.min((result & ACTION) as i32);
    }
    match strictest as u32 {
        libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG => Verdict::Allowed,
        libc::SECCOMP_RET_ERRNO => Verdict::Forbidden("an error"),
        libc::SECCOMP_RET_TRAP => Verdict::Forbidden("SIGSYS"),
        libc::SECCOMP_RET_TRACE | libc::SECCOMP_RET_USER_NOTIF => Verdict::Forbidden("asking a supervisor"),
        // Kernels take an action that they do not know for this one.
        _ => Verdict::Forbidden("killing the process"),
    }
}

/// Runs one program; `None` if it is not well-formed. Filters only jump forward, so they end.
fn run(program: &[sock_filter], data: &[u8; DATA_BYTES as usize]) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0_u32, 0_u32, [0_u32; 16]);
    let mut next = 0_usize;
    loop {
        let step = program.get(next)?;
        next += 1;
        let code = u32::from(step.code);
        let operand = if code & 0x08 == 0 { step.k } else { x };
        match code & 0x07 {
            libc::BPF_LD | libc::BPF_LDX => {
                let value = match code & 0xe0 {
                    libc::BPF_IMM => step.k,
                    libc::BPF_ABS => load(data, step.k)?,
                    libc::BPF_MEM => *memory.get(step.k as usize)?,
                    libc::BPF_LEN => DATA_BYTES,
                    _ => return None,
                };
                if code & 0x07 == libc::BPF_LD { a = value } else { x = value }
            }
            libc::BPF_ST => *memory.get_mut(step.k as usize)? = a,
            libc::BPF_STX => *memory.get_mut(step.k as usize)? = x,
            libc::BPF_ALU => a = compute(code & 0xf0, a, operand)?,
            libc::BPF_JMP => next += jump(code & 0xf0, a, operand, step)?,
            libc::BPF_RET => return Some(if code & 0x18 == libc::BPF_A { a } else { step.k }),
            _ if code & 0xf8 == libc::BPF_TXA => a = x,
            _ => x = a,
        }
    }
}

fn load(data: &[u8; DATA_BYTES as usize], at: u32) -> Option<u32> {
    let word = data.get(at as usize..)?.first_chunk()?;
    at.is_multiple_of(4).then(|| u32::from_le_bytes(*word))
}

fn compute(operation: u32, a: u32, operand: u32) -> Option<u32> {
    Some(match operation {
        libc::BPF_ADD => a.wrapping_add(operand),
        libc::BPF_SUB => a.wrapping_sub(operand),
        libc::BPF_MUL => a.wrapping_mul(operand),
        // Division by a register of 0 ends the program with 0, the strictest result.
        libc::BPF_DIV => a.checked_div(operand)?,
        libc::BPF_OR => a | operand,
        libc::BPF_AND => a & operand,
        libc::BPF_XOR => a ^ operand,
        libc::BPF_LSH => a.checked_shl(operand)?,
        libc::BPF_RSH => a.checked_shr(operand)?,
        libc::BPF_NEG => a.wrapping_neg(),
        _ => return None,
    })
}

fn jump(operation: u32, a: u32, operand: u32, step: &sock_filter) -> Option<usize> {
    let taken = match operation {
        libc::BPF_JA => return Some(step.k as usize),
        libc::BPF_JEQ => a == operand,
        libc::BPF_JGT => a > operand,
        libc::BPF_JGE => a >= operand,
        libc::BPF_JSET => a & operand != 0,
        _ => return None,
    };
    Some(usize::from(if taken { step.jt } else { step.jf }))
}

impl StoppedThread<'_> {
    /// Makes sure that this thread may execute a system call: [`Self::remote_syscall`] does so by itself; ask before a piece of work
    /// that must not end halfway.
    ///
    /// # Errors
    /// [`RemoteError::Forbidden`] if a filter would not let it pass, or cannot be read.
    pub fn check_syscall(&self, number: libc::c_long, args: [u64; 6]) -> Result<(), RemoteError> {
        self.check_syscall_at(&self.status_for_filters()?, number, args, self.regs()?.ip())
    }

    /// The same for a `syscall` instruction that ends at this address, by the thread's status.
    pub(crate) fn check_syscall_at(
        &self,
        status: &Status,
        number: libc::c_long,
        args: [u64; 6],
        at: RunAddr,
    ) -> Result<(), RemoteError> {
        if !status.seccomp {
            return Ok(());
        }
        let forbidden = |answer: String| RemoteError::Forbidden { tid: self.tid, number, answer };
        match sys::seccomp_filters(self.tid) {
            Ok(filters) => match verdict(&filters, &data(number, &args, at)) {
                Verdict::Allowed => Ok(()),
                Verdict::Forbidden(action) => Err(forbidden(format!("answers it by {action}"))),
            },
            Err(Errno::EACCES | Errno::EPERM) if self.under_our_filters(status.seccomp_filters) => Ok(()),
            Err(errno) => Err(forbidden(format!(
                "cannot be read ({}), and might kill the process for it; give the tool CAP_SYS_ADMIN and run it outside \
                 of the sandbox",
                std::io::Error::from(errno)
            ))),
        }
    }

    fn under_our_filters(&self, theirs: u32) -> bool {
        let pid = crate::Pid(std::process::id() as i32);
        let own = procfs::status(pid, pid.leader()).map_or(0, |status| status.seccomp_filters);
        own > 0 && theirs == own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
        sock_filter { code: code as u16, jt, jf, k }
    }

    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ;

    /// Answers one system call by `action` and lets all others pass.
    fn against(number: u32, action: u32) -> Vec<sock_filter> {
        let ret = |k| step(libc::BPF_RET, 0, 0, k);
        vec![step(LOAD, 0, 0, 0), step(EQUAL, 0, 1, number), ret(action), ret(libc::SECCOMP_RET_ALLOW)]
    }

    fn ask(filters: &[Vec<sock_filter>], number: libc::c_long, args: [u64; 6]) -> Verdict {
        verdict(filters, &data(number, &args, RunAddr(0x1234_5678_9abc)))
    }

    #[test]
    fn the_strictest_filter_counts() {
        let error = against(9, libc::SECCOMP_RET_ERRNO | 13);
        let kill = against(9, libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(ask(std::slice::from_ref(&error), 9, [0; 6]), Verdict::Forbidden("an error"));
        for filters in [[error.clone(), kill.clone()], [kill.clone(), error]] {
            assert_eq!(ask(&filters, 9, [0; 6]), Verdict::Forbidden("killing the process"));
            assert_eq!(ask(&filters, 10, [0; 6]), Verdict::Allowed);
        }
        let thread = against(9, libc::SECCOMP_RET_KILL_THREAD);
        assert_eq!(ask(&[thread], 9, [0; 6]), Verdict::Forbidden("killing the process"));
    }

    #[test]
    fn arguments_architecture_and_address_are_seen() {
        // Forbids a third argument with bit 2 (PROT_EXEC), as W^X filters do.
        let ret = |k| step(libc::BPF_RET, 0, 0, k);
        let executable = vec![
            step(LOAD, 0, 0, 32),
            step(libc::BPF_JMP | libc::BPF_JSET, 0, 1, 4),
            ret(libc::SECCOMP_RET_KILL_PROCESS),
            ret(libc::SECCOMP_RET_ALLOW),
        ];
        assert_eq!(ask(std::slice::from_ref(&executable), 10, [0, 0, 1, 0, 0, 0]), Verdict::Allowed);
        assert_ne!(ask(&[executable], 10, [0, 0, 5, 0, 0, 0]), Verdict::Allowed);
        for (at, value) in [(4, ARCH), (8, 0x5678_9abc), (12, 0x1234)] {
            let filter = |wanted| {
                let pass = ret(libc::SECCOMP_RET_ALLOW);
                vec![step(LOAD, 0, 0, at), step(EQUAL, 0, 1, wanted), pass, ret(libc::SECCOMP_RET_TRAP)]
            };
            assert_eq!(ask(&[filter(value)], 0, [0; 6]), Verdict::Allowed);
            assert_eq!(ask(&[filter(!value)], 0, [0; 6]), Verdict::Forbidden("SIGSYS"));
        }
    }

    #[test]
    fn registers_and_memory_compute() {
        // memory[3] = number; x = 5; a = (memory[3] << 2) - x; allowed if that is 35 (number 10).
        let program = vec![
            step(LOAD, 0, 0, 0),
            step(libc::BPF_ST, 0, 0, 3),
            step(libc::BPF_LDX | libc::BPF_IMM, 0, 0, 5),
            step(libc::BPF_LD | libc::BPF_MEM, 0, 0, 3),
            step(libc::BPF_ALU | libc::BPF_LSH, 0, 0, 2),
            step(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_X, 0, 0, 0),
            step(EQUAL, 1, 0, 35),
            step(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
            step(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_LOG),
        ];
        assert_eq!(ask(std::slice::from_ref(&program), 10, [0; 6]), Verdict::Allowed);
        assert_ne!(ask(&[program], 11, [0; 6]), Verdict::Allowed);
    }

    #[test]
    fn what_cannot_be_followed_forbids() {
        let bad: [&[sock_filter]; 4] = [
            &[],
            &[step(LOAD, 0, 0, 62)],
            &[step(libc::BPF_JMP, 0, 0, u32::MAX)],
            &[step(libc::BPF_LD | libc::BPF_MEM, 0, 0, 16)],
        ];
        for program in bad {
            assert_ne!(ask(&[program.to_vec()], 1, [0; 6]), Verdict::Allowed);
        }
    }
}
