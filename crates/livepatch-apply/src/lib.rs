//! The production side of livepatch: put a patch into a running process, take it out again, say what is there.
#![forbid(unsafe_code)]

pub mod bind;
pub mod carrier;
pub mod dynsym;
pub mod elf;
pub mod error;
pub mod jump;
pub mod registry;
pub mod report;
pub mod scope;
pub mod target;
pub mod unwind;
