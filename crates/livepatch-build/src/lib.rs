//! Build side of livepatch: records what a linker was given (the baseline), rebuilds a changed source the same way, and
//! finds out what changed.
#![forbid(unsafe_code)]

mod archive;
pub mod baseline;
mod build;
pub mod cargo;
mod config;
pub mod create;
pub mod diff;
pub mod emit;
pub mod error;
pub mod findings;
pub mod guard;
pub mod image;
pub mod linker;
pub mod linkmap;
pub mod objects;
mod raw;
pub mod rebuild;
pub mod source;
pub mod store;
mod timing;
mod units;

pub use units::Unit;

pub use build::{Build, Input};
pub use error::{Error, Result};
