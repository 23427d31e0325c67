//! The start-up hook: where a start of the executable turns out to be a helper's.
//!
//! glibc's loader calls the functions of an executable's `.preinit_array` after relocation and before the constructors of any
//! object, shared ones included. The C library is usable there: threads, allocation, panics (its own constructor only fills in
//! `environ` and the program's name). Shared objects have no such array.
//!
//! An ordinary start pays for half a dozen instructions. Only a start with exactly two words, the second of which is
//! [`MARK`], is a helper's: it never comes to the program's own code. It does a helper's work with the variable [`VARIABLE`] first in
//! the environment; never where it gains privileges by being started (`AT_SECURE`), because then somebody else would choose what it does.

use std::ffi::CStr;
use std::time::Duration;

/// Nobody gives a program this argument by accident.
pub(crate) const MARK: &CStr = c"livepatch-helper-8f3c5d1e9a7b42c6b0d4e85f17a26c93";
/// Holds the milliseconds after which the helper is killed.
const VARIABLE: &str = "LIVEPATCH_HELPER_8F3C5D1E_MS=";

#[cfg(all(feature = "helper", target_env = "gnu"))]
/// Whether the hook was called at this program's start, and so will be at its helper's.
static CALLED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// The helper's name in lists of processes.
pub(crate) fn name() -> Vec<u8> {
    format!("livepatch-helper for {}", livepatch_process::numbered::own_pid()).into_bytes()
}

/// The first entry of the helper's environment.
pub(crate) fn environment(limit: Duration) -> Vec<u8> {
    format!("{VARIABLE}{}", limit.as_millis()).into_bytes()
}

/// Why this executable cannot be its own helper, if it cannot.
pub(crate) fn unavailable() -> Option<&'static str> {
    if !cfg!(all(feature = "helper", target_env = "gnu")) {
        return Some(if cfg!(feature = "helper") {
            "that needs glibc"
        } else {
            "the crate's feature `helper` is off"
        });
    }
    (!hooked()).then_some("livepatch is not part of the main executable")
}

#[cfg(all(feature = "helper", target_env = "gnu"))]
use hook::hooked;

#[cfg(not(all(feature = "helper", target_env = "gnu")))]
fn hooked() -> bool {
    false
}

#[cfg(all(feature = "helper", target_env = "gnu"))]
mod hook {
    use super::{CALLED, MARK, VARIABLE};
    use crate::helper;
    use nix::libc::{self, c_char, c_int};
    use std::ffi::CStr;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    /// Said by a start that is no helper's although it looks like one.
    const UNFIT: &str = "the executable runs with other privileges than those of whoever starts it (set-user-id, for instance), so it \
                         cannot be its own helper; name the livepatch tool with `Options::tool`\n";

    type Words = *const *const c_char;

    // SAFETY: a section of pointers to functions that the loader calls with the arguments of `main`, which is `at_start`'s
    // signature (System V ABI, chapter 5; glibc's `_dl_init`).
    #[used]
    #[unsafe(link_section = ".preinit_array")]
    static HOOK: extern "C" fn(c_int, Words, Words) = at_start;

    /// Whether the hook was called at the start. Reading `HOOK` makes the linker take it out of the library.
    pub(super) fn hooked() -> bool {
        std::hint::black_box(&raw const HOOK);
        CALLED.load(Ordering::Relaxed)
    }

    extern "C" fn at_start(count: c_int, args: Words, env: Words) {
        CALLED.store(true, Ordering::Relaxed);
        if count == 2 {
            maybe_helper(args, env);
        }
    }

    #[cold]
    #[inline(never)]
    fn maybe_helper(args: Words, env: Words) {
        // SAFETY: the kernel passes lists of strings that end with a null pointer; there are two words, and the first entry of
        // the environment is read only if it is not that end.
        let (word, first) = unsafe {
            let first = *env;
            (CStr::from_ptr(*args.add(1)), (!first.is_null()).then(|| CStr::from_ptr(first)))
        };
        if word != MARK {
            return;
        }
        let limit = first.and_then(|first| first.to_str().ok()?.strip_prefix(VARIABLE)?.parse().ok());
        // SAFETY: getauxval only reads what the kernel passed.
        let secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
        let code = match (limit, secure) {
            (Some(limit), false) => helper::run(Duration::from_millis(limit)),
            _ => {
                // Whoever reads this asked for it, or is told why by the program. The standard library's way brings many addresses.
                // SAFETY: the kernel reads as many bytes as the text has.
                unsafe { libc::syscall(libc::SYS_write, libc::STDERR_FILENO, UNFIT.as_ptr(), UNFIT.len()) };
                helper::NO_REQUEST
            }
        };
        // SAFETY: ends the process without running anything of the program.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}
