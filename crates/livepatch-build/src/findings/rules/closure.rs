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

It is allowed where no old value can exist when the switch is made, as in most iterator chains, sorts and functions that take a closure
and call it: in both builds the closure lives in the frame of the patched function only, and

- is inlined there altogether, and appears in the signature of no function that exists out of line, or
- is handed to functions each of which exists in one build only and is called by nothing but patched functions and others of that
  kind; and what is made of the closure are adapters of `core` (`Map`, `Filter`), tuples, references and closures. With
  `-C symbol-mangling-version=v0` both builds have functions of the same names, and it is refused.

A closure in a static, a box, a collection, a thread, an async body, a struct of the program or a trait object, or one that is handed
to a function whose address is taken, is refused. The finding says which of these it is.

What to do: keep the captures as they are in the patch.
"##,
};
