//! `GET /ticks`: a stream of server-sent events that never ends.

use axum::response::sse::{Event, Sse};
use futures_util::stream::{self, Stream};
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Interval, interval};

async fn tick(mut clock: Interval, number: u64) -> (Event, Interval) {
    clock.tick().await;
    (Event::default().event("tick").data(number.to_string()), clock)
}

/// Handler of `GET /ticks`: ten events a second, numbered from 0.
pub async fn stream() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let start = (interval(Duration::from_millis(100)), 0u64);
    Sse::new(stream::unfold(start, |(clock, number)| async move {
        let (event, clock) = tick(clock, number).await;
        Some((Ok(event), (clock, number + 1)))
    }))
}
