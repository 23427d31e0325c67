//! One function of a shared object uses new thread-locals and those of the image.

use super::{Code, Rule, Severity};

/// LP0031.
pub static RULE: Rule = Rule {
    code: Code(31),
    severity: Severity::Refusal,
    title: "{} uses new and existing thread-locals of a shared object together",
    reason: "in a shared object a function asks once for the place of all its thread-locals, and the new ones are in another place than those of the running library",
    help: "use the new thread-local in a function of its own that uses no other, marked `#[inline(never)]`",
    explanation: r##"In a shared object (`cdylib`, `dylib`) the compiler asks the dynamic loader once for the start of the library's thread-locals,
and reaches each of them at a fixed distance from there. New thread-locals of a patch are in a module of their own, so no
distance leads to them from there:

    thread_local! {
        static CALLS: Cell<u32> = const { Cell::new(0) };
        static LAST: Cell<u64> = const { Cell::new(0) };    // added
    }
    pub fn quote(n: u64) -> u64 {
        CALLS.set(CALLS.get() + 1);
        LAST.set(n);                                        // added
        n * 19 / 100
    }

What to do: give the new one a function of its own, which the compiler does not put into others. Code that several functions
share, such as a generic accessor, must not be inlined either:

    #[inline(never)]
    fn remember(n: u64) { LAST.set(n) }

In executables this does not occur: there each thread-local has a fixed distance from the thread pointer.
"##,
};
