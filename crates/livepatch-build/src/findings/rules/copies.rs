//! Several copies of a function, none of which continues in a certain new one.

use super::{Code, Rule, Severity};

/// LP0020.
pub static RULE: Rule = Rule {
    code: Code(20),
    severity: Severity::Refusal,
    title: "the copies of {} cannot be told apart",
    reason: "the program has several copies of it, and the new build distributes them over its code units in another way",
    help: "make the change smaller, so that the code units stay as they are; in the next build that is shipped, \
           `codegen-units = 1` or `lto` leaves one copy of each function",
    explanation: r##"The compiler makes a copy of a generic or inlinable function in every code unit that uses it. When a change moves the
borders between code units, an old copy may have no counterpart of its own, and if the new copies differ among
themselves (the optimiser may have adapted each to its callers) nothing tells which of them may replace it.

What to do: make the change smaller, so that the borders stay; often it is enough to put new code into another module or
function. A build with `codegen-units = 1` or with link-time optimisation has one copy of each function, but that is another
build, which has to be shipped first.
"##,
};
