//! Async bodies: what they save and where they wait.

use super::support::{FAST, Pair, assert_found, assert_safe};

const HANDLER: &str = r#"
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
$PREFIX
struct Yield(bool);
impl Future for Yield {
    type Output = u64;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        if self.0 { return Poll::Ready(3); }
        self.0 = true;
        Poll::Pending
    }
}
struct Later(bool);
impl Future for Later {
    type Output = u64;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        if self.0 { return Poll::Ready(4); }
        self.0 = true;
        Poll::Pending
    }
}
async fn read(x: u64) -> u64 { Yield(false).await + x }
async fn handler(name: String, limit: u64) -> u64 {
$BODY
}
#[inline(never)]
fn drive(mut future: Pin<Box<dyn Future<Output = u64>>>) -> u64 {
    let mut context = Context::from_waker(Waker::noop());
    loop { if let Poll::Ready(value) = future.as_mut().poll(&mut context) { return value; } }
}
fn main() {
    let n = std::env::args().count() as u64;
    println!("{}", drive(Box::pin(handler(format!("n{n}"), n))));
}
"#;

const BODY: &str = "let a = read(limit).await; let b = Later(false).await; a + b + name.len() as u64";

fn handler(flags: &[&str], prefix: &str, body: &str) -> Pair {
    Pair::varied(flags, HANDLER, &[("$PREFIX", "", prefix), ("$BODY", BODY, body)])
}

/// `poll` of an async fn is named like a closure of it.
const POLL: &str = "app::handler::{{closure}}";
const POLL_V0: &str = "app::handler::{closure#0}";

const BUILDS: [(&[&str], &str); 3] =
    [(FAST, POLL), (&["-Copt-level=0"], POLL), (&["-O", "-Csymbol-mangling-version=v0"], POLL_V0)];

#[test]
fn code_between_await_points_may_change() {
    let changed =
        "let a = read(limit).await;\n\n let b = Later(false).await;\n a * 2 + b + name.len() as u64";
    for (flags, poll) in BUILDS {
        assert_safe(&handler(flags, "\n\n\n", changed).check(&[poll], &[]));
    }
}

#[test]
fn await_points_and_saved_state_may_not() {
    for (flags, poll) in BUILDS {
        for (body, part) in [
            // One more await.
            (
                "let a = read(limit).await; let c = Later(false).await; let b = Later(false).await; a + b + c + name.len() as u64",
                "variant `Suspend2`: new",
            ),
            // One less.
            ("let a = read(limit).await; a + name.len() as u64", "variant `Suspend1`: "),
            // Another order.
            (
                "let b = Later(false).await; let a = read(limit).await; a + b + name.len() as u64",
                "field `__awaitee`",
            ),
            // Another variable is kept.
            (
                "let a = read(limit).await; let k = [a; 4]; let b = Later(false).await; a + b + k[1] + name.len() as u64",
                "field `k`",
            ),
            // Another future in the same place.
            (
                "let a = read(limit).await; let b = Yield(false).await; a + b + name.len() as u64",
                "`app::Later` at",
            ),
        ] {
            let report = handler(flags, "", body).check(&[poll], &[]);
            let text = assert_found(&report, 2, "app::handler::{async_fn_env#0}");
            assert!(text.contains(part), "{part} is missing in\n{text}");
            let line =
                1 + HANDLER.lines().position(|line| line.starts_with("async fn handler")).expect("one");
            assert!(text.contains(&format!("--> main.rs:{line}\n")), "{text}");
        }
    }
}

#[test]
fn an_inner_future_that_grew_is_found_in_the_outer_one() {
    let old = HANDLER.replace("$PREFIX", "").replace("$BODY", BODY);
    let new = old.replace(
        "async fn read(x: u64) -> u64 { Yield(false).await + x }",
        "async fn read(x: u64) -> u64 { let k = [x; 9]; Yield(false).await + k[x as usize % 9] }",
    );
    assert_ne!(old, new);
    let report = Pair::new(FAST, &old, &new).check(&[POLL], &[]);
    assert_found(&report, 2, "app::read::{async_fn_env#0}");
    assert_found(&report, 2, "app::handler::{async_fn_env#0}");
}
