//! The optimiser altered how a function is called.

use super::{Code, Rule, Severity};

/// LP0006.
pub static RULE: Rule = Rule {
    code: Code(6),
    severity: Severity::Refusal,
    title: "calling convention of {} was altered by the optimiser",
    reason: "the optimiser passes its arguments or its result otherwise than before (it leaves out what is never used or always the same), and \
             callers that the patch cannot replace do not know",
    help: "give the function another name: it is new in the patch then, and its callers call that; or leave its use of parameters and \
           result as it was",
    explanation: r##"The optimiser may change how a private function is called: it removes an argument or a result that nobody uses, or passes
a value instead of a reference. The compiler records that, but not for methods: there it is enough that one of the builds takes the
function's address, or calls it from another code unit, and the other does not. Here the old and the new build differ in it, or it
cannot be shown that they agree.

    fn level(_verbose: bool, n: u32) -> u32 { n }          // running program: `n` comes in the first register
    fn level(verbose: bool, n: u32) -> u32 { ... verbose } // fixed source: `n` comes in the second one

What to do: give the function another name, so that it is new and its callers, who call that, are in the patch; or leave its use of
the parameters and its result as they were (a function that returned one value only may have lost its result).
"##,
};
