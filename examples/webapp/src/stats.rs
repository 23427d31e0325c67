//! Counters: one for the process, one for each thread.

use crate::orders::Prices;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

static REQUESTS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static REQUESTS_OF_THREAD: Cell<u64> = const { Cell::new(0) };
}

/// What `GET /stats` answers.
#[derive(Serialize)]
pub struct Stats {
    requests: u64,
    requests_of_thread: u64,
    articles: usize,
}

/// Called once by each order.
pub fn count_request() {
    REQUESTS.fetch_add(1, Ordering::Relaxed);
    REQUESTS_OF_THREAD.set(REQUESTS_OF_THREAD.get() + 1);
}

/// Orders so far.
#[cfg(feature = "admin")]
pub fn requests() -> u64 {
    REQUESTS.load(Ordering::Relaxed)
}

/// Handler of `GET /stats`.
pub async fn show(State(prices): State<Prices>) -> Json<Stats> {
    Json(Stats {
        requests: REQUESTS.load(Ordering::Relaxed),
        requests_of_thread: REQUESTS_OF_THREAD.get(),
        articles: prices.len(),
    })
}
