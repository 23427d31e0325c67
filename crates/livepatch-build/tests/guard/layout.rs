//! Layouts of types that patched functions can reach.

use super::support::{FAST, Pair, assert_found, assert_safe, codes};

/// A program whose `app::total` handles orders through most kinds of indirection.
const ORDERS: &str = r#"
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
$PREFIX
struct Line { $LINE }
struct Note { next: Option<Box<Note>>, text: String }
enum State { $STATES }
union Raw { $UNION }
struct Order<T> { lines: Vec<Line>, by_name: HashMap<String, Arc<Mutex<T>>>, note: Note, state: State, raw: Raw }
struct Unrelated { $UNRELATED }
trait Tax { fn tax(&self, net: u64) -> u64; }
struct Flat(u64);
impl Tax for Flat { fn tax(&self, net: u64) -> u64 { net * self.0 / 100 } }
struct Extra { $EXTRA }
#[inline(never)]
fn total($ARG: &Order<Extra>, tax: &dyn Tax) -> u64 {
    let mut sum = 0;
    for line in &$ARG.lines { sum += line.price * line.count as u64; }
    if let State::Paid { by, .. } = &$ARG.state { sum += by.len() as u64; }
    tax.tax(sum) + $ARG.note.text.len() as u64 + $ARG.by_name.len() as u64 + $STEP
}
fn line() -> Line { unsafe { std::mem::zeroed() } }
fn main() {
    let mut order = Order {
        lines: vec![], by_name: HashMap::new(), note: Note { next: None, text: "x".into() },
        state: State::Open, raw: unsafe { std::mem::zeroed() },
    };
    order.by_name.insert("a".into(), Arc::new(Mutex::new(unsafe { std::mem::zeroed() })));
    order.lines.push(line());
    if std::env::args().count() > 1 { order.state = State::Paid { by: "b".into(), at: 1 }; }
    let unrelated: Unrelated = unsafe { std::mem::zeroed() };
    println!("{} {}", total(&order, &Flat(19)), std::mem::size_of_val(&unrelated));
}
"#;

const SAME: &[(&str, &str)] = &[
    ("$PREFIX", ""),
    ("$LINE", "price: u64, count: u32"),
    ("$STATES", "Open, Paid { by: String, at: u64 }, Gone"),
    ("$UNION", "a: u64, b: f64"),
    ("$UNRELATED", "a: u64"),
    ("$EXTRA", "x: u32"),
    ("$ARG", "order"),
    ("$STEP", "1"),
];

/// The pair in which only these parts differ, besides `total` itself.
fn orders(flags: &[&str], changed: &[(&str, &str)]) -> Pair {
    let variants: Vec<(&str, &str, &str)> = SAME
        .iter()
        .map(|(name, old)| {
            let new = changed.iter().find(|(changed, _)| changed == name);
            let new = new.map_or(if *name == "$STEP" { "2" } else { *old }, |(_, new)| *new);
            (*name, *old, new)
        })
        .collect();
    Pair::varied(flags, ORDERS, &variants)
}

#[test]
fn a_changed_body_is_fine() {
    for flags in [
        FAST,
        &["-Copt-level=0"],
        &["-Copt-level=3", "-Ccodegen-units=16"],
        &["-O", "-Csymbol-mangling-version=v0"],
        &["-O", "-Clto=fat"],
        &["-O", "-Cdwarf-version=5"],
    ] {
        assert_safe(&orders(flags, &[]).check(&["app::total"], &[]));
    }
}

#[test]
fn what_does_not_touch_layouts_is_fine() {
    let cases: &[&[(&str, &str)]] = &[
        &[("$PREFIX", "\n\n// three lines further down\n")],
        &[("$ARG", "renamed")],
        &[("$UNRELATED", "a: u64, b: u64, c: [u8; 99]")],
        &[("$PREFIX", "#[inline(never)] fn helper(x: u64) -> u64 { x * 3 }"), ("$STEP", "helper(sum)")],
        &[("$LINE", "price: u64, count: u32 /* a comment */")],
        // Reordered in the source, laid out as before.
        &[("$LINE", "count: u32, price: u64")],
    ];
    for changed in cases {
        assert_safe(&orders(FAST, changed).check(&["app::total"], &[]));
    }
}

#[test]
fn a_new_field_is_found_through_vec() {
    for flags in [FAST, &["-Copt-level=0"], &["-O", "-Csymbol-mangling-version=v0"], &["-O", "-Clto=fat"]] {
        let report =
            orders(flags, &[("$LINE", "price: u64, count: u32, tax: u64")]).check(&["app::total"], &[]);
        let text = assert_found(&report, 1, "app::Line");
        assert!(text.contains("= size: 16 -> 24\n"), "{text}");
        assert!(text.contains("field `tax`: new, `u64` at "), "{text}");
        assert!(text.contains("used by: `app::total`"), "{text}");
        assert!(text.contains("main.rs:"), "{text}");
        assert_eq!(codes(&report), [1]);
    }
}

#[test]
fn a_field_of_another_type_is_found_everywhere() {
    for (changed, item, part) in [
        (("$LINE", "price: u64, count: i32"), "app::Line", "field `count`: `u32` at 0x8 -> `i32` at 0x8"),
        (("$LINE", "count: u64, price: u64"), "app::Line", "field `count`: `u32` at 0x8 -> `u64` at "),
        // The same fields at exchanged places: not only the size counts.
        (("$UNION", "a: u32, b: f64"), "app::Raw", "field `a`: `u64` at 0x0 -> `u32` at 0x0"),
        // Behind HashMap, Arc and Mutex.
        (("$EXTRA", "x: u64"), "app::Extra", "size: 4 -> 8"),
        (("$STATES", "Open, Gone, Paid { by: String, at: u64 }"), "app::State", "variant `Gone`"),
        (("$STATES", "Open, Paid { by: String, at: u64 }"), "app::State", "variant `Gone`: discriminant"),
        (("$STATES", "Open, Paid { by: String, at: i64 }, Gone"), "app::State", "variant `Paid`, field `at`"),
    ] {
        let report = orders(FAST, &[changed]).check(&["app::total"], &[]);
        let text = assert_found(&report, 1, item);
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn swapped_fields_of_one_type_are_found() {
    let source = "
        #[repr(C)] struct P { $FIELDS }
        #[inline(never)] fn f(p: &P) -> u32 { p.a * $STEP + p.b }
        fn main() { let p = P { a: std::process::id(), b: 2 }; println!(\"{}\", f(&p)); }";
    let same = ("$STEP", "10", "20");
    let pair = Pair::varied(FAST, source, &[("$FIELDS", "a: u32, b: u32", "b: u32, a: u32"), same]);
    let text = assert_found(&pair.check(&["app::f"], &[]), 1, "app::P");
    assert!(text.contains("field `a`: `u32` at 0x0 -> `u32` at 0x4"), "{text}");
}

#[test]
fn plain_enums_and_niches_count() {
    let source = "
        #[derive(Clone, Copy)] enum Plain { $PLAIN }
        enum Niche { Some($NICHE), None }
        #[inline(never)] fn f(p: Plain, n: &Niche) -> u32 { p as u32 * $STEP + matches!(n, Niche::None) as u32 }
        fn main() {
            let all = [Plain::A, Plain::B];
            println!(\"{}\", f(all[std::env::args().count() - 1], &Niche::None));
        }";
    let step = ("$STEP", "1", "2");
    let niche = ("$NICHE", "Box<u32>", "Box<u32>");
    let pair = Pair::varied(FAST, source, &[("$PLAIN", "A, B", "B, A"), niche, step]);
    let text = assert_found(&pair.check(&["app::f"], &[]), 1, "app::Plain");
    assert!(text.contains("variant `A`: 0 -> 1"), "{text}");

    let plain = ("$PLAIN", "A, B", "A, B");
    let pair = Pair::varied(FAST, source, &[plain, ("$NICHE", "Box<u32>", "usize"), step]);
    assert_found(&pair.check(&["app::f"], &[]), 1, "app::Niche");
    let pair = Pair::varied(FAST, source, &[plain, niche, step]);
    assert_safe(&pair.check(&["app::f"], &[]));
}

#[test]
fn a_type_that_only_the_new_code_uses_is_compared_with_the_running_one() {
    let source = r#"
        pub struct Conf { $FIELDS }
        static CONF: std::sync::OnceLock<Box<Conf>> = std::sync::OnceLock::new();
        #[inline(never)] fn conf() -> &'static Conf { CONF.get().unwrap() }
        #[inline(never)] fn other(c: &Conf) -> u64 { c.a }
        #[inline(never)] fn f(x: u64) -> u64 { $BODY }
        fn main() {
            let _ = CONF.set(Box::new(unsafe { std::mem::zeroed() }));
            println!("{} {}", f(std::hint::black_box(3)), other(conf()));
        }"#;
    let body = ("$BODY", "x + 1", "x + conf().a");
    let pair = Pair::varied(FAST, source, &[("$FIELDS", "a: u64", "b: u64, a: u64"), body]);
    assert_found(&pair.check(&["app::f"], &[]), 1, "app::Conf");
    let pair = Pair::varied(FAST, source, &[("$FIELDS", "a: u64", "a: u64"), body]);
    assert_safe(&pair.check(&["app::f"], &[]));
}

#[test]
fn recursive_and_generic_types_end() {
    let source = "
        struct Tree<K, V> { left: Option<Box<Tree<K, V>>>, all: Vec<Tree<V, K>>, key: K, value: V, $FIELD }
        #[inline(never)] fn depth<K, V>(t: &Tree<K, V>) -> u32 { $STEP + t.left.as_ref().map_or(0, |l| depth(l)) }
        fn main() {
            let t = Tree { left: None, all: vec![], key: 1u8, value: String::new(), x: 0 };
            println!(\"{} {}\", depth(&t), std::hint::black_box(&t).value);
        }";
    let pair = Pair::varied(FAST, source, &[("$FIELD", "x: u8", "x: u8"), ("$STEP", "1", "2")]);
    assert_safe(&pair.check(&["app::depth"], &[]));
    let pair = Pair::varied(FAST, source, &[("$FIELD", "x: u8", "x: i8"), ("$STEP", "1", "2")]);
    let report = pair.check(&["app::depth"], &[]);
    assert_found(&report, 1, "app::Tree<u8, alloc::string::String>");
    assert_found(&report, 1, "app::Tree<alloc::string::String, u8>");
}
