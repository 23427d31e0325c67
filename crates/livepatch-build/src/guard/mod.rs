//! The conservative guard: a change is proven harmless to old frames and old data, or refused.
//!
//! It compares the debug information (DWARF as rustc writes it at `debug = 2`), symbols and vtables of two linked images,
//! as far as the changed functions can reach.

mod demangle;
mod input;
mod report;

pub use demangle::{crate_of, demangle, is_rust, strip_suffix};
pub use input::{ChangedFunction, GuardInput, NewFunction, NewStatic, SharedStatic, StaticPlace};
pub use report::{FunctionInfo, FunctionRef, GuardError, GuardReport, StaticInfo};
