//! The thread that starts the clones. What it shares with them is closed when it ends.

use super::END_LIMIT;
use nix::libc::{self, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// As the standard library's threads have, so that the C library can take one that it kept.
const STACK: usize = 2 << 20;

type Work = Box<dyn FnOnce() + Send>;

/// Waits for the thread's end when it is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    thread: libc::pthread_t,
    /// When it gives up: a debugger may hold the thread.
    pub until: Instant,
}

impl Worker {
    /// # Errors
    /// The kernel refuses a thread.
    pub fn start(work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let work: Box<Work> = Box::new(Box::new(work));
        let work = Box::into_raw(work);
        let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
        // Not the standard library's: its threads map a stack for signal handlers first, and end the program if they cannot.
        match create(&mut thread, work.cast()) {
            // SAFETY: the C library stored it.
            0 => Ok(Self { thread: unsafe { thread.assume_init() }, until: Instant::now() + END_LIMIT }),
            errno => {
                // SAFETY: no thread was made that could have taken it.
                drop(unsafe { Box::from_raw(work) });
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }
}

fn create(thread: &mut MaybeUninit<libc::pthread_t>, work: *mut c_void) -> c_int {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: attributes are initialised before they are used and destroyed once. `main` takes what `work` leads to.
    unsafe {
        let errno = libc::pthread_attr_init(attributes.as_mut_ptr());
        if errno != 0 {
            return errno;
        }
        // Refused only where the C library needs more; then its own size stays.
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK);
        let errno = libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), main, work);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        errno
    }
}

extern "C" fn main(work: *mut c_void) -> *mut c_void {
    // SAFETY: a string that ends with a zero byte.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, c"livepatch".as_ptr()) };
    // SAFETY: `Worker::start` made it out of a box and left it to this thread.
    let work = unsafe { Box::from_raw(work.cast::<Work>()) };
    work();
    ptr::null_mut()
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The C library measures this limit by the wall clock. Before 1970 it has passed at once.
        let left = self.until.saturating_duration_since(Instant::now());
        let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + left;
        let until = libc::timespec {
            tv_sec: until.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: until.subsec_nanos().into(),
        };
        // SAFETY: this value alone stands for the thread, which was neither joined nor detached.
        if unsafe { libc::pthread_timedjoin_np(self.thread, ptr::null_mut(), &raw const until) } != 0 {
            // SAFETY: as above; it was not joined.
            unsafe { libc::pthread_detach(self.thread) };
        }
    }
}
