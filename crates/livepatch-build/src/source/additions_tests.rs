//! Added items, each rule with lookalikes that are more than that.

use super::tests::{answer, diff, set};
use super::{Change, Side, SourceDiff};

/// What the additions are made to.
const OLD: &str = "\
use std::fmt::Debug;
trait Old { fn go(&self); }
#[derive(Debug)]
struct Kept { x: u8 }
impl Old for Kept { fn go(&self) { helper(self.x); } }
fn helper(x: u8) -> u8 { x }
fn main() { helper(1); }
";

/// The new names that an addition taints, sorted; `everything` if it can reach further.
fn added(text: &str) -> String {
    let diff = diff(OLD, &format!("{OLD}{text}"));
    // An addition means the same wherever it stands.
    assert_eq!(answer(&self::diff(OLD, &format!("{text}\n{OLD}"))), answer(&diff), "{text}");
    if !matches!(diff.change(), Change::Items(_)) {
        return answer(&diff);
    }
    let kept = (1..=OLD.lines().count() as u32)
        .filter(|line| (5..=7).contains(line))
        .all(|line| diff.tainted().is_function_tainted("src/main.rs", line, Side::New) == Some(false));
    assert!(kept, "{text} taints a function that does not name it");
    let mut names: Vec<_> = diff.tainted().names().collect();
    names.sort_unstable();
    names.join(" ")
}

#[test]
fn what_only_who_names_it_can_see() {
    let cases = [
        ("struct New { x: u8 }", "New"),
        ("#[derive(Clone, Debug)] struct New;", "New"),
        ("#[derive(Serialize)] #[serde(rename_all = \"x\")] struct New { #[serde(skip)] x: u8 }", "New"),
        ("enum New { One, Two(u8) }", "New One Two"),
        ("union New { x: u8 }", "New"),
        ("type New = u8;", "New"),
        ("trait New { const K: u8; fn run(&self) { helper(2); } }", "K New run"),
        ("struct New; impl New { const K: u8 = 1; fn make() -> Self { New } }", "K New make"),
        ("struct New; impl Old for New { fn go(&self) { helper(3); } }", "New"),
        ("struct New; impl std::fmt::Display for New { fn fmt(&self) { helper(3); } }", "New"),
        ("struct New; impl Drop for New { fn drop(&mut self) { helper(3); } }", "New"),
        ("struct New<T>(T); impl<T: Debug> Iterator for New<T> { type Item = T; }", "New"),
        ("trait New { fn run(&self); } impl New for Kept { fn run(&self) { helper(3); } }", "New run"),
        ("trait New { fn run(&self); } impl New for u8 { fn run(&self) {} }", "New run"),
        ("struct New; fn make(n: New) -> New { n }", "New make"),
        ("use std::collections::HashMap;", ""),
        ("use std::{sync::{Arc, Mutex}, time::Duration};", ""),
    ];
    for (text, expected) in cases {
        assert_eq!(added(text), expected, "{text}");
    }
}

#[test]
fn what_may_be_seen_without_its_name() {
    let cases = [
        // Impls for types that were there.
        "impl std::fmt::Display for Kept { fn fmt(&self) {} }",
        "impl Drop for Kept { fn drop(&mut self) {} }",
        "impl Old for u8 { fn go(&self) {} }",
        "struct New; impl From<New> for Kept { fn from(_: New) -> Self { Kept { x: 1 } } }",
        "struct New; impl Old for Box<New> { fn go(&self) {} }",
        "struct New; impl Old for &New { fn go(&self) {} }",
        "impl Kept {}",
        "type New = Kept; impl Old for New { fn go(&self) {} }",
        "struct New; impl<New> Old for New { fn go(&self) {} }",
        "struct New; impl Old for other::New { fn go(&self) {} }",
        "struct New; impl Kept { fn make(&self) -> New { New } }",
        "mod inner {}",
        "trait New { fn run(&self) {} } impl<T> New for T {}",
        "trait New {} impl other::New for Kept {}",
        // Names that old code has, or that macros of others may use.
        "struct helper;",
        "struct Debug;",
        "struct Vec;",
        "type Result<T> = std::result::Result<T, u8>;",
        "trait Iterator {}",
        "type u64 = u8;",
        // Macros and registrations.
        "macro_rules! new { () => {} }",
        "thread_local! { static N: u8 = 1; }",
        "new! {}",
        "#[register] struct New;",
        "#[derive(Debug)] #[other::register] struct New;",
        "#[derive(Debug)] #[cfg_attr(all(), register)] struct New;",
        "#[async_trait] trait New { fn run(&self); }",
        "struct New; #[register] impl New {}",
        "struct New; impl New { new!(); }",
        "trait New { new!(); }",
        "struct New; impl New { #[no_mangle] extern \"C\" fn run() {} }",
        "struct New; impl New { fn run() { impl Drop for Kept {} } }",
        "struct New([u8; { impl Drop for Kept { fn drop(&mut self) {} } 1 }]);",
        "auto trait New {}",
        // Imports.
        "use std::collections::*;",
        "use std::io::Read;",
        "use std::fmt::Write as _;",
        "use std::collections::HashMap as Map;",
        "use std::fmt;",
        "use other::New;",
        "use ::std::sync::Arc;",
        "pub use std::sync::Arc;",
        "#[macro_use] use std::sync::Arc;",
        "struct New; use other::New as Other;",
        "use crate::helper as other;",
        "use crate::Kept;",
        "extern crate other;",
        "mod other;",
        "extern \"C\" { fn other(); }",
    ];
    for text in cases {
        assert_eq!(added(text), "everything", "{text}");
    }
}

#[test]
fn what_was_there_stays_as_it_was() {
    let cases = [
        ("struct A { x: u8 }", "struct A { x: u8, y: u8 } struct New;"),
        ("enum A { X }", "enum A { X, Y }"),
        ("trait T { fn a(); }", "trait T { fn a(); fn b(); }"),
        ("impl T for A { fn a() {} }", "impl T for A { fn a() {} fn b() {} }"),
        ("struct A; struct B;", "struct B; struct A;"),
        ("struct A;", ""),
        ("struct A;", "struct B;"),
        ("mod m { struct A; }", "struct A; mod m {}"),
        ("use std::sync::Arc;", ""),
        ("use std::sync::Arc;", "use std::sync::{Mutex};"),
        ("use std::sync::Arc;", "pub use std::sync::Arc;"),
        (
            "fn f() { Arc::new(1); } use other::*;",
            "use std::sync::Arc; fn f() { Arc::new(1); } use other::*;",
        ),
        (
            "macro_rules! m { () => { Arc::new(1) } }",
            "macro_rules! m { () => { Arc::new(1) } } use std::sync::Arc;",
        ),
        (
            "#[derive(D)] struct A { #[d(with = \"New\")] x: u8 }",
            "#[derive(D)] struct A { #[d(with = \"New\")] x: u8 } struct New;",
        ),
        ("fn f() { a.fmt(x); }", "use std::fmt::Debug; fn f() { a.fmt(x); }"),
        ("fn f() { map(T::fmt); }", "use std::fmt::Debug; fn f() { map(T::fmt); }"),
        ("fn f() { let x = T::fmt; }", "use std::fmt::Debug; fn f() { let x = T::fmt; }"),
        ("fn f() { T::fmt::<u8>(); }", "use std::fmt::Debug; fn f() { T::fmt::<u8>(); }"),
        ("#[derive(Debug)] struct A;", "#[derive(Debug)] struct A; use std::fmt::Debug;"),
        // A tainted name of an item that is reached without it.
        ("impl Display for A { fn fmt() {} }", "impl Display for A { fn fmt() {} } trait New { fn fmt(); }"),
        ("#[m] mod x { }", "#[m] mod x { struct New; }"),
        ("#![m]", "#![m] struct New;"),
        ("pub use other::*; mod m {}", "pub use other::*; mod m { use crate::New; } struct New;"),
    ];
    for (old, new) in cases {
        let diff = diff(old, new);
        assert_eq!(answer(&diff), "everything", "{old} -> {new}: {:?}", diff.change());
    }
}

#[test]
fn additions_among_what_was_there() {
    let cases = [
        ("use std::sync::Arc;", "use std::sync::{Arc, Mutex};", "Mutex"),
        (
            "use std::fmt::{self}; fn f(_: fmt::Error) {}",
            "use std::fmt::{self, Display}; fn f(_: fmt::Error) {}",
            "Display",
        ),
        ("impl A { fn fmt() {} }", "impl A { fn fmt() {} } use std::fmt::Debug;", "Debug"),
        ("use std::{a, b};", "use std::a; use std::b;", "nothing"),
        ("struct A; struct B;", "struct A; struct New; struct B;", "New"),
        ("mod m { struct A; }", "mod m { struct A; struct New; }", "m::New"),
        ("mod m { fn a() {} }", "struct New; mod m { use super::New; fn a() { New; } }", "New m::New m::a"),
        ("fn a() { 1; }", "struct New; fn a() { New; }", "New a"),
        ("impl A { fn a() {} }", "struct New; impl A { fn a() {} fn b(n: New) {} }", "A::b New"),
    ];
    for (old, new, expected) in cases {
        let diff = diff(old, new);
        assert_eq!(answer(&diff), expected, "{old} -> {new}: {:?}", diff.change());
    }
}

#[test]
fn methods_of_an_added_trait_taint_calls_of_their_name() {
    let old = "struct A;\nfn a(x: A) { x.run(); }\nfn b() {}\n";
    let diff =
        diff(old, &format!("{old}trait New {{ fn run(&self); }}\nimpl New for A {{ fn run(&self) {{}} }}\n"));
    let at = |line| diff.tainted().is_function_tainted("src/main.rs", line, Side::New);
    assert_eq!(answer(&diff), "A New");
    assert_eq!([at(2), at(3), at(5)], [Some(true), Some(false), Some(true)]);
}

#[test]
fn names_of_other_files_count() {
    let with = |other: &str, main: &str| set(&[("src/main.rs", main), ("src/other.rs", other)]);
    let compare = |other: &str, new: &str| {
        answer(&SourceDiff::between(&with(other, "mod other;"), &with(other, &format!("mod other; {new}"))))
    };
    assert_eq!(compare("fn f() { New::x(); }", "struct New;"), "everything");
    assert_eq!(compare("fn f() { Other::x(); }", "struct New;"), "New");
    assert_eq!(compare("fn f() { Arc::new(1); }", "use std::sync::Arc;"), "Arc");
    assert_eq!(compare("struct New2;", "struct New; impl Drop for New2 {}"), "everything");
}
