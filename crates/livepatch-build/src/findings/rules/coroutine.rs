//! A coroutine saves or awaits something else.

use super::{Code, Rule, Severity};

/// LP0002.
pub static RULE: Rule = Rule {
    code: Code(2),
    severity: Severity::Refusal,
    title: "async body {} changed its saved state or its await points",
    reason: "suspended instances are on no stack: they would be resumed by code that keeps its state elsewhere or waits at another point",
    help: "keep the await points and what lives across them in the patch, or move the change into a function that the async body calls",
    explanation: r##"An `async fn`, `async` block or other coroutine has another layout, another number of states, or keeps or awaits other
things in one of its states.

    async fn handler(s: S) { let a = read(&s).await; write(&s, a).await; }             // running program
    async fn handler(s: S) { let a = read(&s).await; log(&s).await; write(&s, a).await; }  // fixed source

A suspended `handler` waits in state 4 for `write`. In the new code state 4 waits for `log`. The waker does not know, and
no stack shows it: patched `poll` would take up the old state as if it were its own.

Lines may shift freely. What counts is the set of states, and for each state the saved variables with their types and
offsets, among them the awaited future. Where one expression is awaited in several places, the conditions and patterns around
each count, too: a future that waits in one branch would go on in the other if these were exchanged. So do the places of futures
that a macro or function is given to await, as in `join!(a(), b())`, and of what is computed before an await in one expression, as in
`Reply { id: next(), total: total(), body: read().await }`: each is kept by its place, and would be taken for the other. Variables of one
name are kept under that name, so what they are given keeps its order, too.

What to do: change what happens between await points only, or move the change into a function (async or not) that is
called from the body and whose instances do not outlive the patch.
"##,
};
