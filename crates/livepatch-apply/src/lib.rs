//! The production side of livepatch: put a patch into a running process, take it out again, say what is there.
//!
//! The tool keeps no state of its own: what it knows it reads from the target. An operation goes through these stages, each in
//! a module of that name; everything that can be found out is found out while the process runs, and the first write
//! to code is the last thing that can fail.
//!
//! | stage | module |
//! |---|---|
//! | find the module and check its code | [`target`], [`elf`] |
//! | find everything that the patch refers to | [`bind`], [`scope`], [`dynsym`] |
//! | map, link, register | [`load`], [`carrier`], [`library`], [`safepoint`] |
//! | prove every stack | [`unwind`], [`stacks`], [`guard`] |
//! | reach quiescence, write the jumps | [`transition`], [`landing`], [`jump`], [`branches`] |
//! | record | [`registry`] |
//! | names for debuggers and profilers | [`symbols`] |
//!
//! # What is not guaranteed
//!
//! Stacks of coroutines that are suspended (not Rust's `async`, which has none) belong to no thread and are not seen. Code without
//! call frame information makes a thread unprovable, and the process busy.
#![forbid(unsafe_code)]

mod apply;
pub mod bind;
pub mod branches;
pub mod carrier;
pub mod dynsym;
pub mod elf;
pub mod error;
pub mod guard;
pub mod jump;
pub mod landing;
pub mod library;
pub mod load;
mod names;
mod options;
mod quietest;
pub mod registry;
mod repair;
pub mod report;
mod rollback;
pub mod safepoint;
pub mod scope;
mod session;
pub mod stacks;
mod status;
mod stops;
mod switch;
pub mod symbolise;
pub mod symbols;
pub mod target;
pub mod transition;
pub mod unwind;

pub use livepatch_process::{be_prompt, log};

pub use apply::{apply, check};
pub use error::{ApplyError, LeaveRunning, Mismatch, ThreadInside};
pub use livepatch_patch::select::{Missing, Part, SelectError, Selection, Unknown};
pub use options::ApplyOptions;
pub use report::{ApplyReport, FunctionReport, Holds, PatchReport, Policy, RollbackReport, Status};
pub use rollback::{RollbackOptions, Selector, rollback};
pub use status::{ps, status};
pub use symbols::{CodeSymbol, Named, PatchSymbols, Symbols};
