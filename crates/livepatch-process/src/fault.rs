//! Fault injection, for tests: the n-th operation on a process fails, or this program or the process is killed there.
//!
//! Only with the feature `fault-injection`. `LIVEPATCH_FAULT` then holds one of
//!
//! | value | what happens |
//! |---|---|
//! | `fail:N` | the N-th operation is not made and fails with `EIO` |
//! | `kill-before:N` | SIGKILL to this program instead of the N-th operation that writes, or lets threads run or stop |
//! | `kill-after:N` | SIGKILL right behind the N-th operation that lets threads run or stop |
//! | `kill-target:N:PID` | SIGKILL to process PID right before the N-th operation |
//!
//! N counts from 1. Operations are ptrace requests, `process_vm_readv`, and writes to memory and descriptors of the process and
//! its children, not reads of `/proc/PID/mem`. For `fail` they count from the first on that is more than a look, for
//! `kill-target` from the start. A kill behind a write is one before what follows. A line on standard error says that it happened.

#[cfg(not(feature = "fault-injection"))]
use nix::errno::Errno;

/// What an operation does to the process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// None.
    Look,
    /// Registers or memory change.
    Write,
    /// Threads run or stop.
    Run,
}

#[cfg(not(feature = "fault-injection"))]
#[inline]
pub(crate) fn operation<T, E: From<Errno>>(
    _effect: Effect,
    _name: &'static str,
    act: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    act()
}

#[cfg(feature = "fault-injection")]
pub(crate) use injected::operation;

#[cfg(feature = "fault-injection")]
mod injected {
    use super::Effect;
    use nix::errno::Errno;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Mode {
        Fail,
        KillBefore,
        KillAfter,
        KillTarget(Pid),
    }

    static ORDER: OnceLock<Option<(Mode, u64)>> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);

    fn order() -> Option<(Mode, u64)> {
        let text = std::env::var("LIVEPATCH_FAULT").ok()?;
        let (mode, number) = text.split_once(':')?;
        let (number, target) = number.split_once(':').unwrap_or((number, ""));
        let mode = match mode {
            "kill-target" => Mode::KillTarget(Pid::from_raw(target.parse().ok()?)),
            "fail" => Mode::Fail,
            "kill-before" => Mode::KillBefore,
            "kill-after" => Mode::KillAfter,
            _ => return None,
        };
        Some((mode, number.parse().ok()?))
    }

    pub(crate) fn operation<T, E: From<Errno>>(
        effect: Effect,
        name: &'static str,
        act: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let Some((mode, number)) = *ORDER.get_or_init(order) else { return act() };
        let counts = match mode {
            Mode::Fail => effect != Effect::Look || COUNT.load(SeqCst) > 0,
            Mode::KillBefore => effect != Effect::Look,
            Mode::KillAfter => effect == Effect::Run,
            Mode::KillTarget(_) => true,
        };
        if !counts {
            return act();
        }
        let reached = COUNT.fetch_add(1, SeqCst) + 1 == number;
        match mode {
            Mode::Fail if reached => {
                eprintln!("fault injection: fail:{number} ({name})");
                Err(Errno::EIO.into())
            }
            Mode::KillBefore if reached => die("kill-before", number, name),
            Mode::KillAfter if reached => {
                let _ = act();
                die("kill-after", number, name)
            }
            Mode::KillTarget(pid) if reached => {
                eprintln!("fault injection: kill-target:{number} ({name})");
                let _ = kill(pid, Signal::SIGKILL);
                act()
            }
            _ => act(),
        }
    }

    fn die(mode: &str, number: u64, name: &str) -> ! {
        eprintln!("fault injection: {mode}:{number} ({name})");
        loop {
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }
}
