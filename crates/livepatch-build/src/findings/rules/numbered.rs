//! Items of one name in one function.

use super::{Code, Rule, Severity};

/// LP0024.
pub static RULE: Rule = Rule {
    code: Code(24),
    severity: Severity::Refusal,
    title: "it is not clear which of several items continues the running {}",
    reason: "the function has several of that name, told apart only by their order, and a change in it may have altered the order",
    help: "make the fix without adding, removing or moving macro calls and items in that function, or in a function of its own",
    explanation: r##"A macro with a `static` (or a `thread_local!`, or a `fn`) inside makes an item of the same name each time that it is used. If
that happens several times in one function, the compiler numbers the items in their order:

    fn handle(&self) {
        count!();              // static N, number 0
        …
        count!();              // static N, number 1
    }

One more `count!()` in front makes the old number 0 the new number 1. Nothing in either build tells that, so the running value of the
one would go on as that of the other; an address of a function that was stored would lead to the other one.

The change touches macro calls or items in such a function. It may well leave the order as it is, but that cannot be told.
Call sites of the crate `tracing` are no problem: they come anew with the patch.

Anonymous constants of a module (`const _: () = { … };`, to which many derives expand) are numbered in the same way. A type with
`#[derive(Deserialize)]` that comes before others gives the numbers of their constants to other ones, and with them the symbols of what is
declared inside. That is refused if something of it would be replaced or shared. Put the new type behind the others, or into a module
of its own.

What to do: change only what is not a macro call or an item there, or put what is new into a function of its own (an `#[inline]` one
costs nothing), where it has numbers of its own.
"##,
};
