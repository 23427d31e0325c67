//! Everything that touches a Linux x86-64 process: `/proc`, memory, ptrace, remote system calls and remote calls.
//!
//! This is the only crate on the tool's side with `unsafe`. It knows nothing of patches: it offers stopped threads,
//! registers, bytes and holes in the memory map, and promises that a process which is left alone again goes on as if nothing had
//! happened, but for what the caller wrote.
//!
//! ```text
//! Process::open ──seize_all──▶ Seized ──interrupt_all──▶ Stopped
//!                               │  ▲                       │  │
//!                 interrupt_one │  └──── resume_all ───────┘  │ thread(tid)
//!                               ▼                             ▼
//!                         StoppedThread: registers, remote_syscall, remote_call
//! ```
//!
//! - **Seized**: every thread is traced and runs. Nothing has been stopped; signals and new threads pass through this
//!   tool, so [`Seized::pump`] must be called while waiting.
//! - **Stopped**: every thread is at an interrupt stop with no signal in flight. A signal that arrived on the way was delivered
//!   (its handler's frame lies on the stack) or is pending in the kernel; none is kept here, so none can be lost.
//! - Dropping any of them resumes and detaches every thread. So does the kernel if the tool dies, and, without interrupting
//!   any, when the OS thread ends that attached ([`on_tracer_thread`], [`Seized::leave`]).
//!
//! ptrace requests work only from the OS thread that attached, so these types are not `Send`.
//!
//! # What the program can notice
//!
//! `epoll_wait`, `recv` with a timeout, `sigtimedwait` and `semtimedop` return `EINTR` once when interrupted (signal(7) lists them:
//! the calls that fail with `EINTR` after SIGCONT as well). All other calls go on. `/proc/self/status` shows the tracer.

mod asleep;
mod callsite;
mod collect;
mod counters;
mod drive;
pub mod error;
mod event;
mod fault;
mod fork;
pub mod gap;
mod ids;
mod letgo;
mod loan;
pub mod log;
mod mapped;
pub mod maps;
pub mod memory;
mod met;
mod nested;
pub mod numbered;
mod passing;
mod pause;
mod perfmap;
mod process;
mod procfs;
mod ready;
mod regs;
mod remote;
mod remote_memory;
mod rseq;
mod seccomp;
mod seize;
mod sharer;
mod sharing;
mod sigframe;
mod stuck;
mod sys;
mod tasks;
mod thread;
mod trace;
mod tracer;
mod traps;
mod visit;
mod watch;
mod wayback;
mod world;

pub use asleep::Asleep;
pub use callsite::{CallProgress, CallSite};
pub use error::{InterruptError, Loss, ProcessError, RemoteError, StuckThread, Tracer};
pub use event::Event;
pub use fork::ForkedMemory;
pub use gap::{mmap_min_addr, near_gap};
pub use ids::{Pid, Tid};
pub use loan::{Loan, processors};
pub use maps::{Backing, Mapping, Perms};
pub use memory::{PAGE_SIZE, PageCache};
pub use passing::Breakpoints;
pub use pause::Pause;
pub use perfmap::PerfMapError;
pub use process::Process;
pub use procfs::{Status, ThreadState, process_ids};
pub use regs::{Regs, XState};
pub use remote::RemoteCall;
pub use remote_memory::Protection;
pub use sharer::{HeldSharer, Sharers};
pub use thread::StoppedThread;
pub use tracer::{be_prompt, come_first, on_tracer_thread};
pub use visit::Visitors;
pub use world::{Seized, Stopped};
