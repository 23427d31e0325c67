//! Closures: their captures, and their numbers.

use super::support::{FAST, Pair, assert_found, assert_safe};

#[test]
fn captures_may_change_where_the_closure_never_leaves_the_frame() {
    let source = "
        #[inline(never)]
        fn sum(values: &[u32], by: u32, and: u32) -> u32 { values.iter().map(|v| $BODY).filter(|v| $TEST).sum() }
        fn main() { let n = std::process::id(); println!(\"{}\", sum(&[n, 2, 3], n, n + 1)); }";
    let variants = [("$BODY", "v * by", "v * by + and"), ("$TEST", "*v > 1", "*v > and")];
    let pair = Pair::varied(FAST, source, &variants);
    assert_safe(&pair.check(&["app::sum"], &[]));
    // The lookalike: without optimisation `map` and the closures are functions that take the captures.
    let pair = Pair::varied(&["-Copt-level=0"], source, &variants);
    let text = assert_found(&pair.check(&["app::sum"], &[]), 3, "app::sum::{closure_env#0}");
    assert!(text.contains("size: 8 -> 16"), "{text}");
}

#[test]
fn captures_may_not_change_where_a_closure_is_kept() {
    let boxed = "
        use std::sync::Mutex;
        type Hook = Box<dyn Fn(u32) -> u32 + Send>;
        static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());
        #[inline(never)] fn add(a: u32, b: u32) { HOOKS.lock().unwrap().push(Box::new(move |x| $BODY)); }
        fn main() {
            add(std::process::id(), 3);
            println!(\"{}\", HOOKS.lock().unwrap()[0](4));
        }";
    for flags in [FAST, &["-Copt-level=0"], &["-O", "-Clto=fat"], &["-O", "-Csymbol-mangling-version=v0"]] {
        let pair = Pair::varied(flags, boxed, &[("$BODY", "x + a", "x + a + b")]);
        let report = pair.check(&["app::add"], &[]);
        assert_found(&report, 3, "app::add::{closure_env#0}");
        let pair = Pair::varied(flags, boxed, &[("$BODY", "x + a", "x * a")]);
        assert_safe(&pair.check(&["app::add"], &[]));
    }
    let stored = "
        struct Held<F> { f: F, calls: u32 }
        impl<F: Fn(u32) -> u32> Held<F> { #[inline(never)] fn call(&mut self) -> u32 { self.calls += 1; (self.f)(self.calls) } }
        #[inline(never)]
        fn run(a: u32, b: u32) -> u32 { let mut held = Held { f: move |x| $BODY, calls: 0 }; held.call() + held.call() }
        fn main() { println!(\"{}\", run(std::process::id(), 7)); }";
    let pair = Pair::varied(FAST, stored, &[("$BODY", "x + a", "x + a + b")]);
    let report = pair.check(&["app::run"], &[]);
    assert_found(&report, 3, "app::run::{closure_env#0}");
    assert_found(&report, 1, "app::Held<app::run::{closure_env#0}>");
}

#[test]
fn a_closure_that_may_be_another_one_is_refused() {
    let source = "
        type Hook = Box<dyn Fn(u32) -> u32>;
        #[inline(never)]
        fn hooks() -> Vec<Hook> { vec![$HOOKS] }
        fn main() { for hook in hooks() { println!(\"{}\", hook(std::process::id())); } }";
    for (flags, closure) in [
        (FAST, "app::hooks::{{closure}}"),
        (&["-Copt-level=0"], "app::hooks::{{closure}}"),
        (&["-O", "-Csymbol-mangling-version=v0"], "app::hooks::{closure#0}"),
    ] {
        let old = "Box::new(|x| x + 1)";
        let pair =
            Pair::varied(flags, source, &[("$HOOKS", old, "Box::new(|x| x * 7), Box::new(|x| x + 1)")]);
        let text = assert_found(&pair.check(&[closure], &[]), 4, "app::hooks");
        assert!(text.contains("closures: {closure#0} -> {closure#0}, {closure#1}"), "{text}");
        let pair = Pair::varied(flags, source, &[("$HOOKS", old, "Box::new(|x| x + 2)")]);
        assert_safe(&pair.check(&[closure], &[]));
        // Closures of other functions do not count.
        let more = "Box::new(|x| x + 2)] } fn other() -> Vec<Hook> { vec![Box::new(|x| x * 2)";
        let pair = Pair::varied(flags, source, &[("$HOOKS", old, more)]);
        assert_safe(&pair.check(&[closure], &[]));
    }
}
