//! Registers of traced threads, and what the kernel keeps for them beside.

use super::{Result, ptrace, request_buffer};
use crate::Tid;
use crate::fault::{Effect, operation};
use crate::regs::{Regs, XState};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use nix::libc::{self, c_void};
use std::mem::MaybeUninit;
use std::ptr;

/// `NT_X86_XSTATE` of `<linux/elf.h>`.
const NT_X86_XSTATE: usize = 0x202;

/// The thread's seccomp filters as the kernel's classic BPF programs, oldest first.
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN or with a filter on this process, `EINVAL` in strict mode or on a kernel that does not tell.
pub(crate) fn seccomp_filters(tid: Tid) -> Result<Vec<Vec<libc::sock_filter>>> {
    const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
    let mut filters = Vec::new();
    loop {
        let index = filters.len() as *mut c_void;
        let none = ptr::null_mut::<c_void>();
        // SAFETY: with a null buffer the request writes nothing; it returns the number of steps.
        let count = match unsafe { ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, none) } {
            Ok(count) => count as usize,
            // There is no filter of that number.
            Err(Errno::ENOENT) if !filters.is_empty() => return Ok(filters),
            Err(errno) => return Err(errno),
        };
        let mut steps = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; count];
        let buffer = steps.as_mut_ptr().cast::<c_void>();
        // SAFETY: the request writes as many steps as it told just before: filters are numbered from the oldest, and are
        // never changed or removed, only added.
        unsafe { ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, buffer) }?;
        filters.push(steps);
    }
}

pub(crate) fn get_regs(tid: Tid) -> Result<Regs> {
    let mut regs = MaybeUninit::<libc::user_regs_struct>::zeroed();
    operation(Effect::Look, "read registers", || {
        // SAFETY: PTRACE_GETREGS writes one struct of integers.
        unsafe {
            ptrace(libc::PTRACE_GETREGS, tid, ptr::null_mut(), regs.as_mut_ptr().cast())?;
            Ok(Regs(regs.assume_init()))
        }
    })
}

pub(crate) fn set_regs(tid: Tid, regs: &Regs) -> Result<()> {
    let data = (&raw const regs.0).cast_mut().cast();
    operation(Effect::Write, "set registers", || {
        // SAFETY: PTRACE_SETREGS only reads one struct of that type.
        unsafe { ptrace(libc::PTRACE_SETREGS, tid, ptr::null_mut(), data) }.map(drop)
    })
}

pub(crate) fn get_xstate(tid: Tid) -> Result<XState> {
    // AVX-512 state takes 2.7 KB and AMX 11 KB; a later processor's may be larger, hence the loop.
    let mut buffer = vec![0_u8; 16 << 10];
    loop {
        let mut iovec = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: the iovec describes `buffer`, which outlives the call; the kernel writes at most `iov_len` bytes there
        // and the length that it wrote into the iovec.
        unsafe { request_buffer(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, (&raw mut iovec).cast())? };
        if iovec.iov_len < buffer.len() {
            buffer.truncate(iovec.iov_len);
            return Ok(XState(buffer));
        }
        buffer.resize(buffer.len() * 2, 0);
    }
}

pub(crate) fn set_xstate(tid: Tid, state: &XState) -> Result<()> {
    let mut iovec = libc::iovec { iov_base: state.0.as_ptr().cast_mut().cast(), iov_len: state.0.len() };
    // SAFETY: PTRACE_SETREGSET only reads from the buffer that the iovec describes, which outlives the call.
    unsafe { request_buffer(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, (&raw mut iovec).cast()) }
}

/// `struct ptrace_rseq_configuration` of `<linux/ptrace.h>`.
#[repr(C)]
#[derive(Default)]
struct RseqConfiguration {
    rseq_abi_pointer: u64,
    rseq_abi_size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

/// The address of the thread's registered `struct rseq`, `None` without one or on a kernel that cannot tell.
pub(crate) fn rseq_area(tid: Tid) -> Result<Option<RunAddr>> {
    const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    let mut conf = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>();
    // SAFETY: the request writes at most `addr` bytes, which is the size of `conf`, a struct of integers.
    match unsafe { request_buffer(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, (&raw mut conf).cast()) } {
        Ok(()) => Ok((conf.rseq_abi_pointer != 0).then_some(RunAddr(conf.rseq_abi_pointer))),
        Err(Errno::EIO | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}
