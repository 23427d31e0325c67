//! Changed code cannot be separated from its neighbours.

use super::{Code, Rule, Severity};

/// LP0013.
pub static RULE: Rule = Rule {
    code: Code(13),
    severity: Severity::Refusal,
    title: "{} lies in a section with other functions",
    reason: "it cannot be told which bytes belong to which function, so a change of one cannot be separated from the others",
    help: "compile that object with `-ffunction-sections`",
    explanation: r##"Changed code lies in a section that holds several functions. Rust and most build scripts put each function into a section
of its own; hand-written assembly and some C builds do not.

    .text
    first:  ...
    second: ...      ; same section

Distances inside such a section are fixed by the assembler and carry no relocations, so one function cannot be moved
alone.

What to do: compile the object with `-ffunction-sections`, or leave it as it is in this patch.
"##,
};
