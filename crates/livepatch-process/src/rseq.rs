//! Restartable sequences (rseq): a thread that is stopped inside one must not be used for remote work. When it returns to user
//! mode outside the sequence, the kernel drops its note of it, and would not abort the sequence any more when the
//! thread is put back into its middle, perhaps on another processor.

use crate::error::RemoteError;
use crate::{Regs, StoppedThread, sys};
use livepatch_patch::RunAddr;

/// Offset of `rseq_cs` in `struct rseq` (`<linux/rseq.h>`).
const RSEQ_CS: i64 = 8;
/// Offsets in `struct rseq_cs`.
const START_IP: i64 = 8;
const POST_COMMIT_OFFSET: i64 = 16;

impl StoppedThread<'_> {
    pub(crate) fn check_rseq(&self, regs: &Regs) -> Result<(), RemoteError> {
        let area = sys::rseq_area(self.tid).map_err(|errno| self.error("read the rseq area of", errno))?;
        let Some(area) = area else { return Ok(()) };
        let descriptor = self.process().read_addr(area.offset(RSEQ_CS))?;
        if descriptor == RunAddr(0) {
            return Ok(());
        }
        let start = self.process().read_u64(descriptor.offset(START_IP))?;
        let length = self.process().read_u64(descriptor.offset(POST_COMMIT_OFFSET))?;
        match regs.ip().0.wrapping_sub(start) < length {
            true => Err(self.unfit("it is inside a restartable sequence".into())),
            false => Ok(()),
        }
    }
}
