//! A type reachable from a patched function has another layout.

use super::{Code, Rule, Severity};

/// LP0001.
pub static RULE: Rule = Rule {
    code: Code(1),
    severity: Severity::Refusal,
    title: "layout of {} changed",
    reason: "values made by the running program have the old layout and would meet code compiled for the new one",
    help: "keep the layout in the patch (for example put the new data into a new static or a side table) and change the type with the next \
           restart; a type of which no value outlives a call can be given another name instead: a new type has no old values",
    explanation: r##"A type that a patched function can reach has another layout in the rebuilt program.

Reachable means: through the types of the function's parameters, return value, local variables and inlined calls, and
from there through fields, references, arrays, generic arguments and enum variants. Compared are size, alignment, the
name, type and offset of each field, and the discriminant of each variant.

    struct Order { net: u64 }              // running program
    struct Order { net: u64, tax: u64 }    // fixed source

A running process holds `Order` values of 8 bytes. Patched code would read 16 bytes of each of them.

The compiler chooses the order of fields, so a change of one field's type may move others. Reordering fields in the
source is harmless when the compiled layout stays the same.

What to do: leave the type as it is in the patch. New state can live in a new `static` or in a map beside the old
values; the type changes with the next restart.
"##,
};
