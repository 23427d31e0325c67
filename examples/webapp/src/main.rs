//! A small order service with what real services have: shared state, per-thread state, a cache, a stream.
//!
//! `webapp [--port N] [--workers N] [--patches DIR]` listens on the loopback address and prints `listening on ADDRESS`. Port 0
//! (the default) lets the system choose. It serves until SIGTERM or SIGINT. With the feature `admin` (on by default) `/admin` is a
//! page from which the service patches itself with the files in DIR.

#[cfg(feature = "admin")]
mod admin;
mod args;
mod orders;
mod stats;
mod ticks;

use args::Args;
use axum::Router;
use axum::routing::{get, post};
use std::io::Write;
use std::net::Ipv4Addr;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

type Error = Box<dyn std::error::Error>;

fn router(args: &Args) -> Router {
    let router = Router::new()
        .route("/order", post(orders::create))
        .route("/stats", get(stats::show))
        .route("/ticks", get(ticks::stream))
        .route("/health", get(|| async { "ok" }))
        .with_state(orders::Prices::default());
    #[cfg(feature = "admin")]
    let router = router.nest("/admin", admin::router(args.patches.clone()));
    #[cfg(not(feature = "admin"))]
    if args.patches.is_some() {
        eprintln!("this build has no admin page; --patches has no effect");
    }
    router
}

async fn stop_signal() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

async fn serve(args: &Args) -> Result<(), Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await?;
    println!("listening on {}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let server = axum::serve(listener, router(args));
    tokio::select! {
        result = server => Ok(result?),
        () = stop_signal() => Ok(()),
    }
}

fn main() -> Result<(), Error> {
    let args = args::parse(std::env::args().skip(1))?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(args.workers).enable_all().build()?;
    runtime.block_on(serve(&args))
}
