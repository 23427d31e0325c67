//! Build side of livepatch: records what a linker was given (the baseline), rebuilds a changed source the same way, and
//! finds out what changed.
#![forbid(unsafe_code)]

pub mod baseline;
mod build;
pub mod error;
pub mod findings;
pub mod guard;
pub mod linkmap;

pub use build::{Build, Input};
pub use error::{Error, Result};
