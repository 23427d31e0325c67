//! A running function that nothing continues.

use super::{Code, Rule, Severity};

/// LP0023.
pub static RULE: Rule = Rule {
    code: Code(23),
    severity: Severity::Refusal,
    title: "nothing in the fixed build continues the running {}",
    reason: "code or data that stays refers to it, so it would go on to run as it is although its meaning changed",
    help: "leave it a function of its own (the same generic arguments and captures, the same place among `impl` blocks and closures) and put the \
           change into what it calls; if other findings are about types, begin with those",
    explanation: r##"A function of the running program means something else in the fixed source, and something that is not replaced can
still call it: a function pointer or a vtable holds its address. The fixed build has no function that is certainly the same one:
the optimiser inlined it everywhere, or several functions of that path changed their symbols and cannot be told apart.

    impl<T: Score> Table<T> { fn best(&self) -> u64 { … } }     // its symbol depends on the impl blocks before it

Generic code of a dependency is lost where what it was compiled for is gone: a `.filter(…)` added to a parallel iterator makes
another type of the whole chain, and jobs of the old one may wait in the pool's queues.

Calls through the stored address would run the old code for ever, beside new code.

What to do: keep the function a function of its own in both builds (`#[inline(never)]`), or add new `impl` blocks behind the
existing ones of the module, so that symbols stay. Where it is generic code, keep the chain of adapters and closures as it is and
change what is in the closures.
"##,
};
