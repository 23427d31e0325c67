//! A variable is not kept as it is declared.

use super::{Code, Rule, Severity};

/// LP0032.
pub static RULE: Rule = Rule {
    code: Code(32),
    severity: Severity::Refusal,
    title: "static {} is not in both builds as it is declared",
    reason: "the compiler found out that it is only read, only written, or has few values, and left it out, divided it or made it smaller \
             in one of them: the running value is not where the new code looks for it",
    help: "give the new code a static of another name, and let old uses of this one go on as they are",
    explanation: r##"A private `static` or `thread_local!` that the fixed code reads or writes is not kept by the compiler as it is declared, in the
running program or in the fixed one. The compiler sees all uses of it. Of one that is never written it keeps the first value in its
place, one that is never read it removes, an array it may divide, and one that is `false` or something else becomes a flag.

    static VERBOSE: AtomicBool = AtomicBool::new(false);   // running program: only ever read, so it is `false` everywhere
    VERBOSE.store(true, Relaxed);                          // fixed source: now it has to be a variable

The other functions of the running program do not look at it, or what they wrote is not there.

What to do: use a new static under another name in the code that changes. Functions that are to look at it change with that, and are in
the patch.
"##,
};
