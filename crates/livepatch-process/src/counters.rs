//! The run counters of threads, kept open: each look at them is one system call then, and cannot be about another thread that got
//! the same id.

use crate::sys;
use std::fs::File;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many are kept at most.
const MOST: u64 = 8192;
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// `schedstat` of one thread, unless so many are open already that the tool would run out of descriptors.
#[derive(Debug)]
pub(crate) struct Counters(Option<File>);

impl Counters {
    pub fn keep(file: File) -> Self {
        static LIMIT: OnceLock<usize> = OnceLock::new();
        // The other half is for everything else.
        let limit = *LIMIT.get_or_init(|| (sys::raise_descriptor_limit(MOST * 2) / 2) as usize);
        if KEPT.fetch_add(1, Relaxed) < limit {
            return Self(Some(file));
        }
        KEPT.fetch_sub(1, Relaxed);
        Self(None)
    }

    pub fn file(&self) -> Option<&File> {
        self.0.as_ref()
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        if self.0.is_some() {
            KEPT.fetch_sub(1, Relaxed);
        }
    }
}
