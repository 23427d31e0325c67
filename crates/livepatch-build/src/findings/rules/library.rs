//! The patch brings a library into the process.

use super::{Code, Rule, Severity};

/// LP0110.
pub static RULE: Rule = Rule {
    code: Code(110),
    severity: Severity::Note,
    title: "the patch brings the library {} into the process",
    reason: "the fix uses it, and the running program did not need it",
    help: "make sure that it is installed on the production host; `apply` refuses the patch if it is not",
    explanation: r##"The fix uses functions of a shared library that the running program did not need, so that it may not be loaded:

    fn growth(rate: f64, years: f64) -> f64 { rate * years }        // running program
    fn growth(rate: f64, years: f64) -> f64 { rate.powf(years) }    // fixed source: `pow` is in libm.so.6

This is not an obstacle. `apply` has the program's own loader load the library, by its soname and from where the loader
finds it, before anything is switched; a library that is there already is used. It stays loaded after a rollback.
Its initialisers, if it has any, run at that time, on a thread of the program.

If the library is not installed on the production host, or does not have the function, `apply` refuses the patch and the
program runs on unchanged. So it does in a statically linked program, which has no loader.
"##,
};
