//! A named constant changed, and the program may keep references to the old one.

use super::{Code, Rule, Severity};

/// LP0113.
pub static RULE: Rule = Rule {
    code: Code(113),
    severity: Severity::Note,
    title: "{} has a new value; references that the program keeps lead to the old one",
    reason: "the patch brings the new value, and every function that reads the constant by its name comes along; the old one stays where it is",
    help: "if such references are kept and compared, store what has to change in a variable, or let the fix look the value up anew",
    explanation: r##"A `static` that nothing writes to is a constant with an address. Where its value changes, the patch brings the new one:

    static PRO: Plan = Plan { name: "pro", price: 100 };    // running program
    static PRO: Plan = Plan { name: "pro", price: 120 };    // fixed source

All functions that name `PRO` read the new value. A `&'static Plan` that the program stored before the patch goes on to
lead to the old one: its `price` is 100, and `std::ptr::eq(kept, &PRO)` is false. This is not an obstacle where references are
not kept, or not compared. After a rollback the same holds for references that were stored meanwhile.
"##,
};
