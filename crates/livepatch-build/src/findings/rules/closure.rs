//! A closure captures something else.

use super::{Code, Rule, Severity};

/// LP0003.
pub static RULE: Rule = Rule {
    code: Code(3),
    severity: Severity::Refusal,
    title: "captures of closure {} changed",
    reason: "closures made by the running program hold the old captures and would be called by code that expects the new ones",
    help: "keep what the closure captures (pass new data through a static or an argument), or inline the closure into the function",
    explanation: r##"A closure captures other variables, or captures them in another way, and a value of it can cross from old code to new.

    let limit = 10;
    spawn(move || work(limit));              // running program
    spawn(move || work(limit, deadline));    // fixed source

The running program may keep the first closure in a thread, a queue or a callback table; the patched body reads captures
that are not there.

It is allowed where no old value can exist when the switch is made: the closure lives in the frame of the patched function
only, is inlined there altogether, and appears in the signature of no function that exists out of line, in no static and
in no vtable, in both builds. Iterator chains in optimised builds are the usual case.

What to do: keep the captures as they are in the patch.
"##,
};
