//! Code that computes what is kept changed.

use super::{Code, Rule, Severity};

/// LP0111.
pub static RULE: Rule = Rule {
    code: Code(111),
    severity: Severity::Note,
    title: "what {} computed already is kept",
    reason: "it is run once for each value, when that is first asked for; values that are there stay when a patch is applied",
    help: "where the running program needs the new value, give the variable that keeps it another name (a new one comes with the \
           patch and is computed anew), store the value from patched code, or restart",
    explanation: r##"A function or closure changed that computes a value which is kept from then on: the initialiser of a `LazyLock`, of a
`thread_local!` or a `lazy_static!`, what is given to `OnceLock::get_or_init` or `Once::call_once`, or a function that is called by such
ones alone.

    static RATES: LazyLock<Rates> = LazyLock::new(|| parse("vat=19"));    // running program
    static RATES: LazyLock<Rates> = LazyLock::new(|| parse("vat=20"));    // fixed source

This is not an obstacle. The patch is applied, and what is computed from then on is computed by the new code: in new threads, for new
objects, in a process that did not need the value yet. But where the value is there, nothing asks for it again, and the
change has no effect. `apply` says so; and if the patch changes nothing else, it says that, too.

What to do, if the running program needs the new value:

- give the static (or thread-local) another name: `RATES_2`. It is new then, comes with the patch, and is computed when it is first
  used; the functions that use it are patched. That also runs what is given to a `Once` again.
- or store the new value from patched code that is called, if it is kept in a `Mutex` or an atomic;
- or make the change with the next restart.
"##,
};
