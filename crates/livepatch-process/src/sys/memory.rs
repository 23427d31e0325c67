//! Memory of other processes.

use super::Result;
use crate::fault::{Effect, operation};
use crate::{Pid, Tid};
use livepatch_patch::RunAddr;
use nix::errno::Errno;
use nix::libc::{self, c_int, c_long, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `KCMP_VM` of `<linux/kcmp.h>`.
const KCMP_VM: c_int = 1;

/// Whether both processes run in one address space.
pub(crate) fn same_address_space(a: Pid, b: Pid) -> Result<bool> {
    // SAFETY: kcmp takes numbers only.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            c_long::from(a.0),
            c_long::from(b.0),
            c_long::from(KCMP_VM),
            0_u64,
            0_u64,
        )
    };
    Errno::result(order).map(|order| order == 0)
}

/// `struct procmap_query` of `<linux/fs.h>` (Linux 6.11).
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct MapQuery {
    size: u64,
    flags: u64,
    address: u64,
    pub start: u64,
    pub end: u64,
    /// `PROCMAP_QUERY_VMA_*`
    pub allowed: u64,
    page_size: u64,
    pub offset: u64,
    pub inode: u64,
    pub device: (u32, u32),
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

/// Asks an open `/proc/PID/maps` for the mapping that holds an address. Returns it with its name.
///
/// # Errors
/// `ENOENT` if there is no such mapping, `ENOTTY` if the kernel is older.
pub(crate) fn query_map(maps: BorrowedFd<'_>, address: RunAddr) -> Result<(MapQuery, Vec<u8>)> {
    let mut name = vec![0_u8; libc::PATH_MAX as usize];
    let mut query = MapQuery {
        size: size_of::<MapQuery>() as u64,
        address: address.0,
        name_size: name.len() as u32,
        name: name.as_mut_ptr() as u64,
        ..MapQuery::default()
    };
    let request = nix::request_code_readwrite!(b'f', 17, size_of::<MapQuery>());
    // SAFETY: the kernel writes to the structure, whose size it is told, and at most `name_size` bytes to the name; both
    // live until the call returns. No build-id is asked for.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_ioctl, c_long::from(maps.as_raw_fd()), request, &raw mut query)
    })?;
    // The size includes the final NUL; it is 0 without a name.
    name.truncate((query.name_size as usize).saturating_sub(1));
    Ok((query, name))
}

/// Reads many pieces at once; returns the number of bytes read in all, in order.
pub(crate) fn process_vm_readv(tid: Tid, pieces: &mut [(RunAddr, &mut [u8])]) -> Result<usize> {
    let local: Vec<_> = pieces
        .iter_mut()
        .map(|(_, buffer)| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    let remote: Vec<_> = pieces
        .iter()
        .map(|(addr, buffer)| libc::iovec { iov_base: addr.0 as *mut c_void, iov_len: buffer.len() })
        .collect();
    operation(Effect::Look, "read memory", || {
        let (local_count, remote_count) = (local.len() as libc::c_ulong, remote.len() as libc::c_ulong);
        // SAFETY: every local iovec describes a buffer that is borrowed for the duration of this call; remote addresses
        // are interpreted in the other process only.
        let got = unsafe {
            let (local, remote, no_flags): (_, _, libc::c_ulong) = (local.as_ptr(), remote.as_ptr(), 0);
            libc::syscall(
                libc::SYS_process_vm_readv,
                tid.0,
                local,
                local_count,
                remote,
                remote_count,
                no_flags,
            )
        };
        Errno::result(got).map(|got| got as usize)
    })
}

/// The most pieces that one [`process_vm_readv`] takes (`UIO_MAXIOV`).
pub(crate) const MAX_PIECES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_space_equals_itself() {
        let own = Pid(std::process::id() as i32);
        assert_eq!(same_address_space(own, own), Ok(true));
    }
}
