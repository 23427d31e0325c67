//! End-to-end harness: programs are built with `cargo livepatch build`, run as their stripped copy, patched and rolled
//! back, and every line that they print is compared.
//!
//! | file | what it holds |
//! |---|---|
//! | `fixture.rs` | a case: its directives, and the old and the new source from one marked text |
//! | `profile.rs` | the ways to build a case |
//! | `project.rs` | a case on disk: build it, edit it, create a patch |
//! | `example.rs` | a program of `examples/` on disk |
//! | `http.rs` | as much HTTP as the example service needs |
//! | `browser.rs` | a browser without a window |
//! | `child.rs` | the running program and its line protocol |
//! | `measure.rs` | what the benchmarks have in common |
//! | `scenario.rs` | old lines, apply, new lines, rollback, old lines |
//! | `self_patching.rs` | a program that patches itself, and its commands |
//! | `tools.rs` | the tools under test and their exit codes |
#![forbid(unsafe_code)]

pub mod browser;
pub mod case;
pub mod child;
pub mod example;
pub mod fixture;
pub mod http;
pub mod measure;
pub mod profile;
pub mod project;
pub mod scenario;
pub mod scratch;
pub mod self_patching;
pub mod tools;

/// What a check found wrong.
pub type Failed = Box<dyn std::error::Error>;

/// Ends a check with a message.
///
/// # Errors
/// Always.
pub fn fail<T>(message: impl Into<String>) -> Result<T, Failed> {
    Err(message.into().into())
}
