//! Each rule with a lookalike that must not trigger it.

use super::{Change, ItemKind, Side, SourceDiff, SourceFile, SourceSet, Suspect};
use proptest::prelude::*;
use std::path::Path;

pub(super) fn set(files: &[(&str, &str)]) -> SourceSet {
    SourceSet::new(files.iter().map(|(path, text)| SourceFile::new(*path, text.as_bytes())))
}

pub(super) fn diff(old: &str, new: &str) -> SourceDiff {
    SourceDiff::between(&set(&[("src/main.rs", old)]), &set(&[("src/main.rs", new)]))
}

/// The changed names, `nothing`, or `everything`.
pub(super) fn answer(diff: &SourceDiff) -> String {
    match diff.change() {
        Change::Nothing => "nothing".into(),
        Change::Everything { .. } => "everything".into(),
        Change::Items(items) => {
            let mut names: Vec<_> = items.iter().map(|item| item.path.as_str()).collect();
            names.sort_unstable();
            names.join(" ")
        }
    }
}

#[track_caller]
fn check(cases: &[(&str, &str, &str)]) {
    for (old, new, expected) in cases {
        let diff = diff(old, new);
        assert_eq!(answer(&diff), *expected, "{old:?} -> {new:?}: {:?}", diff.change());
    }
}

#[test]
fn what_no_program_can_see_is_nothing() {
    check(&[
        ("fn a() { b() }", "// new\nfn a()\n{\n    b()\n}\n", "nothing"),
        ("fn a() {} fn b() {}", "fn b() {} fn a() {}", "nothing"),
        ("/// one\nfn a() {}", "/// two\n/// three\nfn a() {}", "nothing"),
        ("fn a(x: &u8) { let y=&x; }", "fn a(x: &u8) { let y = &x; }", "nothing"),
        ("fn a() {}\n#[cfg(test)]\nmod tests { #[test] fn x() {} }", "fn a() {}", "nothing"),
        ("fn a() {}", "#!/usr/bin/env run\nfn a() {}", "nothing"),
        // Lookalikes.
        ("fn a() { s!(b+c) }", "fn a() { s!(b + c) }", "a"),
        ("#[derive(Parser)]\n/// one\nstruct A;", "#[derive(Parser)]\n/// two\nstruct A;", "everything"),
        ("#[command]\n/// one\nfn a() {}", "#[command]\n/// two\nfn a() {}", "everything"),
        ("#[cfg(not(test))]\nmod tests { fn x() {} }", "", "everything"),
        ("macro_rules! m { () => {} } fn a() {}", "fn a() {} macro_rules! m { () => {} }", "a a"),
    ]);
}

#[test]
fn a_keyword_is_no_mention_of_a_raw_identifier() {
    let source = |value: u8| {
        format!(
            "struct B;\nimpl B {{ const fn r#fn(&self) -> u8 {{ {value} }} }}\nfn other() -> u8 {{ 3 }}\n\
             fn caller(b: &B) -> u8 {{ b.r#fn() }}\nfn defined() {{ items! {{ fn f() {{}} }} }}\n"
        )
    };
    let diff = diff(&source(1), &source(2));
    assert_eq!(answer(&diff), "B::fn");
    let tainted = |line| diff.tainted().is_function_tainted("src/main.rs", line, Side::New).unwrap();
    assert_eq!([2, 3, 4, 5].map(tainted), [true, false, true, false]);
}

#[test]
fn items_in_a_body_may_have_other_numbers() {
    let cases = [
        ("fn a() { n!(); n!(); b() }", "fn a() { n!(); n!(); c() }", false),
        ("fn a() { n!(); b(1) }", "fn a() { n!(); println!(\"{}\", 1); b(2) }", false),
        ("fn a() { println!(\"a\") }", "fn a() { println!(\"b\") }", false),
        ("fn a() { n!(); b() }", "fn a() { n!(); n!(); b() }", true),
        ("fn a() { n!(); m!(); b() }", "fn a() { n!(); b() }", true),
        ("fn a() { n!(1); n!(2) }", "fn a() { n!(2); n!(1) }", true),
        ("fn a() { println!(\"{}\", 1) }", "fn a() { println!(\"{}\", n!()) }", true),
        ("fn a() { b() }", "fn a() { static N: u8 = 1; b() }", true),
        ("fn a() { b() }", "fn a() { mine::n! { 1 } b() }", true),
    ];
    for (old, new, expected) in cases {
        assert_eq!(diff(old, new).may_renumber(), expected, "{old} -> {new}");
    }
    // What it reaches is not known, but which items changed is.
    let with = |text: &str, body: &str| {
        format!("impl core::fmt::Display for E {{ fn fmt(&self) {{ f({text}) }} }} fn a() {{ {body} }}")
    };
    let changed = diff(&with("1", "n!()"), &with("2", "n!(); n!()"));
    assert_eq!(answer(&changed), "everything");
    assert!(
        changed.may_renumber_in("app::a::N") && !changed.may_renumber_in("<&T as core::fmt::Debug>::fmt")
    );
    assert!(!diff(&with("1", "n!()"), &with("2", "n!()")).may_renumber());
    assert!(diff("macro_rules! n { () => {} }", "macro_rules! n { () => { 1 } }").may_renumber());
}

#[test]
fn bodies_and_values_are_items() {
    check(&[
        ("fn a() { b() }", "fn a() { c() }", "a"),
        ("mod m { fn a() { b() } }", "mod m { fn a() { c() } }", "m::a"),
        ("impl A { fn a(&self) { 1; } }", "impl A { fn a(&self) { 2; } }", "A::a"),
        ("trait T { fn a(&self) { 1; } }", "trait T { fn a(&self) { 2; } }", "T::a"),
        (
            "trait T { fn a(&self); } impl T for u8 { fn a(&self) { 1; } }",
            "trait T { fn a(&self); } impl T for u8 { fn a(&self) { 2; } }",
            "u8::a",
        ),
        ("const A: u8 = 1;", "const A: u8 = 2;", "A"),
        ("static A: u8 = 1;", "static A: u8 = 2;", "A"),
        ("async fn a() { b().await }", "async fn a() { c().await }", "a"),
        ("fn a() { let x = |y| y + 1; }", "fn a() { let x = |y| y + 2; }", "a"),
        ("fn a() { fn b() { 1; } b() }", "fn a() { fn b() { 2; } b() }", "a a::b"),
        ("fn a() { fn b() { 1; } b() }", "fn a() { fn b() { 1; } b(); b() }", "a"),
        ("fn a() {}", "fn a() {} fn b() {}", "b"),
        ("fn a() {} fn b() {}", "fn a() {}", "b"),
        ("impl A { fn a() {} }", "impl A { fn a() {} fn b() {} }", "A::b"),
        ("fn a() {}", "fn a() {} static N: u8 = 0;", "N"),
        (
            "#[cfg(x)] fn a() { 1; } #[cfg(not(x))] fn a() { 2; }",
            "#[cfg(x)] fn a() { 1; } #[cfg(not(x))] fn a() { 3; }",
            "a",
        ),
        ("#[tokio::main] async fn main() { 1; }", "#[tokio::main] async fn main() { 2; }", "main"),
    ]);
}

#[test]
fn what_reaches_further_is_everything() {
    let pairs = [
        ("struct A { x: u8 }", "struct A { x: u16 }"),
        ("enum A { X }", "enum A { X, Y }"),
        ("union A { x: u8 }", "union A { x: i8 }"),
        ("type A = u8;", "type A = u16;"),
        ("use a::b;", "use c::b;"),
        ("extern crate a;", "extern crate b;"),
        ("mod a;", "mod a; mod b;"),
        ("trait T { fn a(); }", "trait T { fn a(); fn b(); }"),
        ("trait T { fn a() {} }", "trait T { fn a(); }"),
        ("impl A {}", "impl B {}"),
        ("impl T for A {}", "impl T for B {}"),
        ("#[derive(Clone)] struct A;", "#[derive(Copy)] struct A;"),
        ("#![no_std]", "#![no_core]"),
        ("fn a() {}", "#[inline] fn a() {}"),
        ("fn a() {}", "pub fn a() {}"),
        ("fn a(x: u8) {}", "fn a(x: u16) {}"),
        ("fn a() {}", "fn a<const N: usize>() {}"),
        ("fn a() {}", "const fn a() {}"),
        ("const A: u8 = 1;", "const A: u16 = 1;"),
        ("macro_rules! m { () => { 1 } }", "macro_rules! m { () => { 2 } }"),
        ("m! { 1 }", "m! { 2 }"),
        ("impl A { m!(1); }", "impl A { m!(2); }"),
        ("extern \"C\" { fn a(); }", "extern \"C\" { fn b(); }"),
        ("impl Drop for A { fn drop(&mut self) { 1; } }", "impl Drop for A { fn drop(&mut self) { 2; } }"),
        (
            "impl std::ops::Add for A { fn add(self) { 1; } }",
            "impl std::ops::Add for A { fn add(self) { 2; } }",
        ),
        (
            "impl fmt::Display for A { fn fmt(&self) { 1; } }",
            "impl fmt::Display for A { fn fmt(&self) { 2; } }",
        ),
        ("impl Handler for A { const K: u8 = 1; }", "impl Handler for A { const K: u8 = 2; }"),
        ("trait T {} impl T for A { fn a() {} }", "trait T {} impl T for A { fn a() {} fn b() {} }"),
        ("#[no_mangle] extern \"C\" fn a() {}", ""),
        ("#[test_case] fn a() {} #[test_case] fn a() {}", "#[test_case] fn a() { 1; }"),
        ("fn a() { impl Drop for A {} }", "fn a() { impl Drop for B {} }"),
        ("fn a() { use b::c; }", "fn a() { use d::c; }"),
        ("fn a() { struct S(u8); }", "fn a() { struct S(u16); }"),
        ("fn a() { 1; impl Drop for A {} }", "fn a() { 2; impl Drop for A {} }"),
        ("fn a() {} fn a(x: u8) {}", "fn a() {}"),
        ("const N: usize = 1; struct A([u8; N]);", "const N: usize = 2; struct A([u8; N]);"),
        (
            "const fn n() -> usize { 1 } type A = [u8; n()];",
            "const fn n() -> usize { 2 } type A = [u8; n()];",
        ),
        (
            "fn d() { 1; } #[derive(D)] struct A { #[serde(default = \"d\")] x: u8 }",
            "fn d() { 2; } #[derive(D)] struct A { #[serde(default = \"d\")] x: u8 }",
        ),
        (
            "fn d() { 1; } impl Display for A { fn fmt() { d() } }",
            "fn d() { 2; } impl Display for A { fn fmt() { d() } }",
        ),
        ("fn d() { 1; } other! { d }", "fn d() { 2; } other! { d }"),
        ("#[proc_macro] pub fn p() {} fn a() { 1; }", "#[proc_macro] pub fn p() {} fn a() { 2; }"),
        (
            "const S: &str = include_str!(\"main.rs\"); // a",
            "const S: &str = include_str!(\"main.rs\"); // b",
        ),
        (
            "use std::io::Read; mod x { trait Read {} } impl Read for A { fn read() { 1; } }",
            "use std::io::Read; mod x { trait Read {} } impl Read for A { fn read() { 2; } }",
        ),
        ("fn a( {", "fn a() {}"),
    ];
    for (old, new) in pairs {
        for (old, new) in [(old, new), (new, old)] {
            let diff = diff(old, new);
            assert_eq!(answer(&diff), "everything", "{old:?} -> {new:?}: {:?}", diff.change());
            assert_eq!(diff.tainted().is_function_tainted("nowhere.rs", 1, Side::Old), Some(true));
            assert!(diff.tainted().mentions_path("core::fmt", &crates()));
        }
    }
}

#[test]
fn lookalikes_of_what_reaches_further() {
    check(&[
        ("const N: usize = 1; struct A { n: [u8; 2] }", "const N: usize = 2; struct A { n: [u8; 2] }", "N"),
        ("fn n() { 1; } struct A { n: u8 }", "fn n() { 2; } struct A { n: u8 }", "n"),
        ("fn n() { 1; } fn f(n: n::B) {}", "fn n() { 2; } fn f(n: n::B) {}", "n"),
        (
            "fn d() { 1; } #[derive(D)] struct A { #[serde(rename = \"d\")] x: u8 }",
            "fn d() { 2; } #[derive(D)] struct A { #[serde(rename = \"d\")] x: u8 }",
            "d",
        ),
        ("fn d() { 1; } /// d\nstruct A;", "fn d() { 2; } /// d\nstruct A;", "d"),
        (
            "const S: &str = include_str!(\"a.txt\"); // a",
            "const S: &str = include_str!(\"a.txt\"); // b",
            "nothing",
        ),
        (
            "fn d() { 1; } impl Display for A { fn fmt() { e.d } }",
            "fn d() { 2; } impl Display for A { fn fmt() { e.d } }",
            "d",
        ),
    ]);
}

#[test]
fn files() {
    let base = [("src/main.rs", "fn main() {}"), ("src/a.txt", "x")];
    let against = |files: &[(&str, &str)]| answer(&SourceDiff::between(&set(&base), &set(files)));
    assert_eq!(against(&base), "nothing");
    assert_eq!(against(&[("src/a.txt", "x"), ("src/main.rs", "fn main() { }")]), "nothing");
    assert_eq!(against(&[("src/main.rs", "fn main() {}"), ("src/a.txt", "y")]), "everything");
    assert_eq!(against(&base[..1]), "everything");
    assert_eq!(against(&[base[0], base[1], ("src/new.rs", "")]), "everything");
    assert_eq!(against(&[("src/other.rs", "fn main() {}"), ("src/a.txt", "x")]), "everything");
    let script = |body: &str| set(&[("build.rs", body), base[0]]);
    assert_eq!(
        answer(&SourceDiff::between(&script("fn main() {}"), &script("fn main() { a() }"))),
        "everything"
    );
    assert_eq!(
        answer(&SourceDiff::between(&script("fn main() {}"), &script("fn main() { } // a"))),
        "nothing"
    );
}

#[test]
fn surroundings_and_tests() {
    let one = |text: &str| set(&[("src/main.rs", text)]);
    let digest = |text: &str| livepatch_patch::Digest::of(text.as_bytes());
    let compare = |old, new| answer(&SourceDiff::between(&old, &new));
    assert_eq!(compare(one("").within(digest("a")), one("").within(digest("a"))), "nothing");
    assert_eq!(compare(one("").within(digest("a")), one("").within(digest("b"))), "everything");
    assert_eq!(compare(one("").within(digest("a")), one("")), "everything");
    let test = |text: &str| one(text).for_tests(true);
    assert_eq!(
        compare(test("#[cfg(test)] mod t { fn a() { 1; } }"), test("#[cfg(test)] mod t { fn a() { 2; } }")),
        "t::a"
    );
}

const PROGRAM: &str = "\
fn rate() -> u64 { 5 }
fn total() -> u64 { rate() * 2 }
fn other() -> u64 {
    fn inner() -> u64 { 1 }
    inner()
}
fn printed() { println!(\"{LIMIT:>3}\") }
const LIMIT: u64 = 7;
use crate::rate as speed;
fn renamed() { speed(); }
macro_rules! fast { () => { rate() } }
fn expanded() { fast!() }
thread_local! { static PER: u64 = rate(); }
fn per() { PER.with(|_| ()) }
#[derive(Clone, Debug)]
struct Point { rate: u8 }
#[derive(Serialize)]
struct Wire { x: u8 }
fn field(p: Point) -> u8 { p.rate }
fn head() { rate::other() }
";

fn tainted_functions(change: (&str, &str)) -> Vec<u32> {
    let diff = diff(PROGRAM, &PROGRAM.replace(change.0, change.1));
    assert!(matches!(diff.change(), Change::Items(_)), "{:?}", diff.change());
    (1..=PROGRAM.lines().count() as u32)
        .filter(|line| {
            let sides = [Side::Old, Side::New];
            let both =
                sides.map(|side| diff.tainted().is_function_tainted("src/main.rs", *line, side).unwrap());
            assert_eq!(both[0], both[1]);
            both[0]
        })
        .collect()
}

#[test]
fn the_closure_follows_names() {
    // Macro definitions and calls (11, 13), imports (9) and foreign derives (17, 18) belong to no function.
    let unattributed = [9, 11, 13, 17, 18];
    let with = |more: &[u32]| {
        let mut all = [&unattributed, more].concat();
        all.sort_unstable();
        all
    };
    assert_eq!(tainted_functions(("{ 5 }", "{ 6 }")), with(&[1, 2, 10, 12, 14]));
    assert_eq!(tainted_functions(("= 7", "= 8")), with(&[7, 8]));
    assert_eq!(tainted_functions(("{ 1 }", "{ 2 }")), with(&[3, 4, 5, 6, 20]));
    assert_eq!(tainted_functions(("    inner()", "    inner() + 1")), with(&[3, 5, 6, 20]));
}

#[test]
fn paths_of_debug_information() {
    let diff = SourceDiff::between(
        &set(&[
            ("a/src/lib.rs", "fn x() { 1; }"),
            ("b/src/lib.rs", "fn y() {}"),
            ("c/src/m.rs", "fn z() {}"),
        ]),
        &set(&[
            ("a/src/lib.rs", "fn x() { 2; }"),
            ("b/src/lib.rs", "fn y() {}"),
            ("c/src/m.rs", "fn z() {}"),
        ]),
    );
    let at = |file| diff.tainted().is_function_tainted(file, 1, Side::New);
    assert_eq!(at("a/src/lib.rs"), Some(true));
    assert_eq!(at("b/src/lib.rs"), Some(false));
    assert_eq!(at("/home/me/p/b/src/lib.rs"), Some(false));
    assert_eq!(at("src/lib.rs"), Some(true), "ambiguous");
    assert_eq!(at("src/m.rs"), Some(false));
    assert_eq!(at("./src/m.rs"), Some(false));
    assert_eq!(at("rc/m.rs"), None);
    assert_eq!(at("/home/me/.cargo/registry/src/index-0/b/src/lib.rs"), None);
    assert_eq!(at("/rustc/0123/library/core/src/lib.rs"), None);
    assert!(diff.tainted().mentions_path("core::iter::fold<app::x, u8>", &crates()));
    assert!(diff.tainted().mentions_path("app::x::{closure_env#0}", &crates()));
    assert!(!diff.tainted().mentions_path("app::xx::y<z>", &crates()));
    assert!(!diff.tainted().mentions_path("axum::x::y<app::z>", &crates()), "another crate's x");
}

#[test]
fn places_of_items() {
    let diff =
        diff("fn a() {}\n\n#[inline]\nfn b() {\n    1;\n}", "#[inline]\nfn b() {\n    2;\n}\nfn a() {}");
    let Change::Items(items) = diff.change() else { panic!("{:?}", diff.change()) };
    let lines = |span: &Option<super::Span>| span.as_ref().map(|span| (span.first_line, span.last_line));
    assert_eq!((lines(&items[0].old), lines(&items[0].new)), (Some((3, 6)), Some((1, 4))));
    assert_eq!(items[0].kind, ItemKind::Fn);
}

/// Every Rust file of this repository.
fn repository() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    let mut folders = vec![root.join("crates"), root.join("tests/src"), root.join("examples")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() && !entry.ends_with("target") {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                files.push((entry.display().to_string(), std::fs::read_to_string(&entry).unwrap()));
            }
        }
    }
    assert!(files.len() > 50);
    files
}

#[test]
fn this_repository_against_itself() {
    for (path, text) in repository() {
        let shifted = format!("// One line more.\n\n{}", text.replace("{\n", "{\n // A comment.\n"));
        let text = text.strip_prefix("#!").map_or(text.as_str(), |_| "");
        let diff = diff(text, if text.is_empty() { "" } else { &shifted });
        // Comments in macro definitions are none in string literals, which may hold `{` and a line's end.
        let in_string =
            text.contains("\\\n") || text.contains("r#\"") || text.contains("r\"") || text.contains("\"\n");
        if !in_string {
            assert!(
                matches!(diff.change(), Change::Nothing) || may_be_text(&diff),
                "{path}: {:?}",
                diff.change()
            );
        }
        assert!(matches!(super::tests::diff(text, text).change(), Change::Nothing), "{path}");
    }
}

/// A file that has `include_str!` of a name that is not clear has a meaning by its bytes.
fn may_be_text(diff: &SourceDiff) -> bool {
    matches!(diff.change(), Change::Everything { reason } if reason.contains("may include it as text"))
}

fn gap() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![" ", "\n", "\t", " // note: rate(1)\n", " /* a /* b */ c */ ", "\r\n"])
}

proptest! {
    /// Gaps between tokens of [`PROGRAM`] can be anything.
    #[test]
    fn gaps_are_nothing(gaps in prop::collection::vec(gap(), 256)) {
        let mut gaps = gaps.into_iter().cycle();
        let mut text = String::new();
        let mut quoted = false;
        for c in PROGRAM.chars() {
            quoted ^= c == '"';
            if c.is_whitespace() && !quoted {
                text.push_str(gaps.next().unwrap());
            } else {
                text.push(c);
            }
        }
        let diff = diff(PROGRAM, &text);
        prop_assert!(matches!(diff.change(), Change::Nothing), "{:?}\n{text}", diff.change());
    }
}

fn crates() -> std::collections::HashSet<String> {
    ["app".to_owned()].into()
}

/// What raw code may not show of a change, told by whether it shows a change of `f` itself.
#[test]
fn what_raw_code_may_hide() {
    let cases = [
        ("fn f() { a(1) }", "fn f() { a(2) }", [false, false]),
        ("fn f() { a.load(Relaxed) }", "fn f() { a.load(Acquire) }", [true, false]),
        ("fn f() { g() }", "static N: N = N; fn f() { N.add(1, Relaxed); g() }", [true, false]),
        ("const O: O = Relaxed; fn f() { a(1) }", "const O: O = Acquire; fn f() { a(2) }", [true, true]),
        (
            "const O: O = Relaxed; fn f() { Acquire }",
            "const O: O = Acquire; fn f() { Relaxed }",
            [true, true],
        ),
        // Whatever else changed.
        (
            "struct S; fn f() { g() }",
            "#[repr(C)] struct S; impl Drop for S { fn drop(&mut self) {} } fn f() { N.add(1, Relaxed) }",
            [true, false],
        ),
        // One of these says nothing of the other.
        ("impl A { fn f() { a } }", "impl A { fn f() { Relaxed } }", [true, true]),
        (
            "mod a { fn f() { 1 } } mod b { mod a { fn f() { 1 } } }",
            "mod a { fn f() { Relaxed } } mod b { mod a { fn f() { 2 } } }",
            [true, true],
        ),
        ("fn f() { static X: X = Relaxed; }", "fn f() { static X: X = Acquire; }", [true, true]),
        (
            "#[cfg(a)] fn f() { 1 } #[cfg(b)] fn f() { 1 }",
            "#[cfg(a)] fn f() { Acquire } #[cfg(b)] fn f() { 2 }",
            [true, true],
        ),
        // A new function is part of those that name it.
        ("fn f() { 1 }", "fn f() { g() } fn g() { N.add(1, Relaxed) }", [true, false]),
        ("fn f() { 1 }", "fn f() { h() } fn h() { g() } fn g() { N.add(1, Relaxed) }", [true, false]),
        ("fn f() { 1 }", "fn f() { h() } fn h() { g() } fn g() { h(); N.add(1, Relaxed) }", [true, false]),
        ("fn f() { 1 }", "fn f() { 2 } fn g() { N.add(1, Relaxed) }", [false, false]),
        ("fn f() { 1 } fn h() { 1 }", "fn f() { g() } fn h() { g() } fn g() { Relaxed }", [true, true]),
        ("fn f() { x.g() }", "fn f() { x.g(); g() } fn g() { Relaxed }", [true, true]),
        ("fn f() { 1 }", "fn f() { g() } const C: C = g; fn g() { Relaxed }", [true, true]),
        (
            "impl A for B {} fn f() { 1 }",
            "impl A for B { fn g() { Relaxed } } fn f() { B::g() }",
            [true, true],
        ),
        // A closure is a function of its own.
        ("fn f() { g(|| a.load(Relaxed)) }", "fn f() { g(|| a.load(Acquire)) }", [true, true]),
        ("fn f() { m!(Relaxed) }", "fn f() { m!(Acquire) }", [true, false]),
        ("macro_rules! m { () => { Relaxed } }", "macro_rules! m { () => { Acquire } }", [true, true]),
        ("fn g() { Relaxed }", "macro_rules! m { () => { 1 } } fn g() { Relaxed }", [false, false]),
        (
            "macro_rules! m { () => { Relaxed } } fn f() { m!(); Relaxed } macro_rules! m { () => { Acquire } }",
            "macro_rules! m { () => { Relaxed } } macro_rules! m { () => { Acquire } } fn f() { m!(); Relaxed }",
            [true, true],
        ),
    ];
    for (old, new, expected) in cases {
        let diff = diff(old, new);
        let shows_f =
            |suspect: &Suspect| (&*suspect.name, &*suspect.parent, suspect.in_closure) == ("f", "", false);
        assert_eq!([diff.hides(|_| false), diff.hides(shows_f)], expected, "{old} -> {new}");
    }
}

#[test]
fn the_body_of_an_async_function_is_told_from_closures_in_it() {
    let cases = [
        ("async fn f() { Relaxed }", "async fn f() { Acquire }", (true, false)),
        ("async fn f() { g(|| Relaxed) }", "async fn f() { g(|| Acquire) }", (true, true)),
        ("fn f() { Relaxed }", "fn f() { Acquire }", (false, false)),
    ];
    for (old, new, expected) in cases {
        let shows = |suspect: &Suspect| (suspect.is_async, suspect.in_closure) == expected;
        assert!(!diff(old, new).hides(shows), "{old} -> {new}");
    }
}
