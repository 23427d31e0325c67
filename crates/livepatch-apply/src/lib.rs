//! The production side of livepatch: put a patch into a running process, take it out again, say what is there.
#![forbid(unsafe_code)]

pub mod jump;
pub mod registry;
pub mod unwind;
