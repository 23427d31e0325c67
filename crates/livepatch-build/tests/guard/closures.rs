//! Closures: their captures, and their numbers.

use super::support::{FAST, Pair, Symbol, assert_found, assert_safe, codes};
use livepatch_build::guard::ChangedFunction;

#[test]
fn captures_may_change_where_the_closure_never_leaves_the_frame() {
    let source = "
        #[inline(never)]
        fn sum(values: &[u32], by: u32, and: u32) -> u32 { values.iter().map(|v| $BODY).filter(|v| $TEST).sum() }
        fn main() { let n = std::process::id(); println!(\"{}\", sum(&[n, 2, 3], n, n + 1)); }";
    let variants = [("$BODY", "v * by", "v * by + and"), ("$TEST", "*v > 1", "*v > and")];
    // Without optimisation `map` and `fold` are functions that take the captures.
    for flags in [FAST, &["-Copt-level=0"]] {
        assert_safe(&Pair::varied(flags, source, &variants).check(&["app::sum"], &[]));
    }
    let own = source.replace("values.iter().map(|v| $BODY)", "each(values.iter(), |v| $BODY)");
    let own = format!(
        "fn each<T, U, F: Fn(T) -> U>(all: impl Iterator<Item = T>, f: F) -> impl Iterator<Item = U> {{ all.map(f) }} {own}"
    );
    assert_safe(&Pair::varied(&["-Copt-level=0"], &own, &variants).check(&["app::sum"], &[]));
}

#[test]
fn captures_may_change_where_functions_of_the_program_only_call_the_closure() {
    let source = "
        #[inline(never)]
        fn with<R>(values: &mut Vec<u32>, f: impl FnOnce(&mut Vec<u32>) -> R) -> R { values.push(1); f(values) }
        #[inline(never)]
        fn sum(values: &mut Vec<u32>, by: u32, and: u32) -> u32 {
            std::hint::black_box(and);
            with(values, |v: &mut Vec<u32>| v.len() as u32 * $BODY) + 1
        }
        fn main() { let n = std::process::id(); println!(\"{}\", sum(&mut vec![n], n, n + 1)); }";
    let body = ("$BODY", "by", "(by + and)");
    assert_safe(&Pair::varied(FAST, source, &[body]).check(&["app::sum"], &[]));
    // Where its address is taken it may be called at another time.
    let source =
        source.replace("with(values,", "std::hint::black_box(with as fn(&mut Vec<u32>, _) -> u32)(values,");
    let report = Pair::varied(FAST, &source, &[body]).check(&["app::sum"], &[]);
    let text = assert_found(&report, 3, "app::sum::{closure_env#0}");
    assert!(text.contains("may hold it"), "{text}");
}

/// Sorting goes on in functions of its own, which take the closure.
const SORTED: &str = "
    #[inline(never)]
    fn sort(values: &mut [u32], by: u32, and: u32) { $KEEP values.sort_by(|a, b| ($KEY).cmp(&(b % by))); }
    fn main() {
        let n = std::process::id();
        let mut values = [n, 2, 3];
        std::hint::black_box(sort as fn(&mut [u32], u32, u32))(&mut values, n, n + 1);
        println!(\"{values:?}\");
    }";

#[test]
fn captures_may_change_where_the_standard_library_hands_the_closure_on() {
    let key = ("$KEY", "a % by", "(a + and) % by");
    for flags in [FAST, &["-O"], &["-O", "-Clto=fat"]] {
        let pair = Pair::varied(flags, SORTED, &[("$KEEP", "", ""), key]);
        let taken = |symbols: &[Symbol]| symbols.iter().any(|s| s.path.contains("driftsort_main"));
        assert!(taken(&pair.old_symbols) && taken(&pair.new_symbols));
        assert_safe(&pair.check(&["app::sort"], &[]));
    }
    // These symbols do not tell the captures: both builds have functions of the same names.
    let pair = Pair::varied(&["-O", "-Csymbol-mangling-version=v0"], SORTED, &[("$KEEP", "", ""), key]);
    let report = pair.check(&["app::sort"], &[]);
    let text = assert_found(&report, 3, "app::sort::{closure_env#0}");
    assert!(text.contains("takes it in both builds"), "{text}");
    assert!(text.contains("  --> main.rs:3\n"), "{text}");
}

#[test]
fn captures_may_change_in_a_chain_that_ends_early() {
    let source = "
        use std::collections::BTreeMap;
        #[inline(never)]
        fn parse(text: &str) -> Result<BTreeMap<String, u32>, String> {
            text.split(',')
                .map(|part| {
                    let (name, count) = part.split_once(':').ok_or_else(|| $ERROR)?;
                    Ok((name.to_string(), count.parse().map_err(|error| format!(\"{count}: {error}\"))?))
                })
                .collect()
        }
        fn main() { println!(\"{:?}\", parse(&std::env::args().nth(1).unwrap_or_default())); }";
    let error =
        ("$ERROR", "format!(\"no colon in {part:?}\")", "format!(\"no colon in {part:?} of {text:?}\")");
    for flags in [FAST, &["-O"], &["-Copt-level=0"]] {
        assert_safe(&Pair::varied(flags, source, &[error]).check(&["app::parse"], &[]));
    }
}

#[test]
fn a_box_may_keep_what_the_standard_library_hands_on() {
    let source = SORTED.replace(
        "values.sort_by(|a, b| ($KEY).cmp(&(b % by)))",
        "{
        let compare = move |a: &u32, b: &u32| ($KEY).cmp(&(b % by));
        values.sort_by(&*std::hint::black_box(Box::leak(Box::new(compare))));
    }",
    );
    let variants = [("$KEEP", "", ""), ("$KEY", "a % by", "(a + and) % by")];
    let report = Pair::varied(FAST, &source, &variants).check(&["app::sort"], &[]);
    let text = assert_found(&report, 3, "app::sort::{closure_env#0}");
    assert!(text.contains("may be alive"), "{text}");
    assert_eq!(codes(&report), [3]);
}

#[test]
fn a_finding_is_about_the_programs_closure_not_about_what_is_made_of_it() {
    let source = "
        #[inline(never)] fn all<I: Iterator<Item = u32>>(values: I) -> u32 { values.sum() }
        #[inline(never)]
        fn run(values: &[u32], by: u32, and: u32) -> u32 {
            let all: fn(_) -> u32 = std::hint::black_box(all);
            all(values.iter().map(|v| $BODY))
        }
        fn main() { let n = std::process::id(); println!(\"{}\", run(&[n, 2, 3], n, n + 1)); }";
    let pair = Pair::varied(FAST, source, &[("$BODY", "v * by", "v * by + and")]);
    let report = pair.check(&["app::run"], &[]);
    let text = assert_found(&report, 3, "app::run::{closure_env#0}");
    assert!(text.contains("may hold it"), "{text}");
    assert_eq!(report.findings.len(), 1);
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

#[test]
fn a_renumbered_closure_is_the_finding_also_where_its_old_code_has_another_name() {
    let source = "
        type Hook = Box<dyn Fn(u32) -> u32>;
        #[inline(never)] fn twice(x: u32) -> u32 { x * 2 }
        #[inline(never)]
        fn hooks() -> Vec<Hook> { vec![$HOOKS] }
        fn main() { for hook in hooks() { println!(\"{} {}\", hook(std::process::id()), twice(3)); } }";
    let hooks = ("$HOOKS", "Box::new(|x| x + 1)", "Box::new(|x| x * 7), Box::new(|x| x + 1)");
    let pair = Pair::varied(&["-Copt-level=0"], source, &[hooks]);
    let mut functions = pair.changed("app::hooks");
    let (merged, closure) = (pair.changed("app::twice"), pair.changed("app::hooks::{{closure}}"));
    let closure = closure.into_iter().next().expect("a closure");
    functions.extend(merged.into_iter().map(|old| ChangedFunction {
        symbol: old.symbol,
        old: old.old,
        old_size: old.old_size,
        ..closure.clone()
    }));
    let report = pair.run(&functions, &[], &[], &[]);
    assert_found(&report, 4, "app::hooks");
    assert_eq!(codes(&report), [4]);
}
