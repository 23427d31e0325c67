//! Code that a program comes to only once changed.

use super::{Code, Rule, Severity};

/// LP0115.
pub static RULE: Rule = Rule {
    code: Code(115),
    severity: Severity::Note,
    title: "{} runs once",
    reason: "`main`, the loader or a thread that is started once calls it in no loop, or what only these call does, and nothing else refers \
             to it; a process that is past that call does not come to it again",
    help: "put the change where the running program comes by (into a handler, a check that each request goes through), or restart",
    explanation: r##"A function changed that a running program has no reason to call again: the one call of it is in `main`, in what a thread
begins with that is started once, or in a function of which that is true in turn, and in no loop; or the loader calls it (`.init_array`).

    fn routes() -> Router {
        Router::new().route("/orders", get(orders))
            .route("/health", get(health))             // fixed source
    }

    async fn main() {
        let app = routes();
        axum::serve(listener, app).await.unwrap();
    }

This is not an obstacle. The patch is applied, and the handlers in it take effect if the program reaches them; but the table of routes was
made when the program started, and nobody makes it again. So `/health` is not there until the program is started anew. `apply` says
so; and if the patch changes nothing else, it says that, too. What runs once at the end, such as the last lines of `main`, has its
effect then.

What to do, if the running program needs the change:

- put it where the program comes by: a fallback handler, middleware, a handler that exists;
- or make the change with the next restart.
"##,
};
