//! Trait objects: the shape and the contents of vtables.

use super::support::{FAST, Pair, assert_found, assert_safe, codes};
use livepatch_build::guard::NewFunction;

const SHAPES: &str = r#"
trait Shape { $TRAIT }
trait Named { fn label(&self) -> String { "none".into() } }
struct Square { side: f64, tags: Vec<u8> }
impl Shape for Square { $IMPL }
impl Named for Square { $NAMED }
#[inline(never)]
fn run(shapes: &[Box<dyn Shape>]) -> f64 {
    let mut sum = $START;
    for shape in shapes { sum += shape.area() * shape.corners() as f64; }
    sum
}
#[inline(never)] fn label(named: &dyn Named) -> String { named.label() }
fn main() {
    let side = std::env::args().count() as f64;
    let shapes: Vec<Box<dyn Shape>> = vec![Box::new(Square { side, tags: vec![1] })];
    println!("{} {}", run(std::hint::black_box(&shapes)), label(std::hint::black_box(&Square { side, tags: vec![] } as &dyn Named)));
}
"#;

const TRAIT: &str = "fn area(&self) -> f64; fn corners(&self) -> u32;";
const AREA: &str = "fn area(&self) -> f64 { self.side * self.side }";
const CORNERS: &str = "fn corners(&self) -> u32 { 4 + self.tags.len() as u32 }";

fn shapes(flags: &[&str], methods: &str, bodies: &str, named: &str) -> Pair {
    let old = format!("{AREA} {CORNERS}");
    let variants = [
        ("$TRAIT", TRAIT, methods),
        ("$IMPL", &old, bodies),
        ("$NAMED", "", named),
        ("$START", "0.0", "1.0"),
    ];
    Pair::varied(flags, SHAPES, &variants)
}

const BUILDS: [&[&str]; 4] =
    [FAST, &["-Copt-level=0"], &["-O", "-Csymbol-mangling-version=v0"], &["-O", "-Crelocation-model=static"]];

#[test]
fn changed_bodies_keep_vtables() {
    for flags in BUILDS {
        let bodies = format!("{CORNERS} fn area(&self) -> f64 {{ self.side * 2.0 * self.side + 1.0 }}");
        assert_safe(&shapes(flags, TRAIT, &bodies, "").check(&["app::run"], &[]));
    }
}

#[test]
fn the_order_of_methods_counts() {
    for flags in BUILDS {
        let swapped = "fn corners(&self) -> u32; fn area(&self) -> f64;";
        let report = shapes(flags, swapped, &format!("{AREA} {CORNERS}"), "").check(&["app::run"], &[]);
        let text = assert_found(&report, 8, "<app::Square as app::Shape>");
        assert!(text.contains("slot 3: `<app::Square as app::Shape>::area` -> "), "{text}");
        assert_eq!(codes(&report), [8]);
    }
}

#[test]
fn the_number_of_methods_counts() {
    for flags in BUILDS {
        let more = format!("{TRAIT} fn more(&self) -> u8 {{ 1 }}");
        let report = shapes(flags, &more, &format!("{AREA} {CORNERS}"), "").check(&["app::run"], &[]);
        let text = assert_found(&report, 8, "<app::Square as app::Shape>");
        assert!(text.contains("number of slots: 5 -> 6"), "{text}");
        // The pointer tells it, too, where no object is made.
        assert_found(&report, 8, "dyn app::Shape");
    }
}

#[test]
fn a_newly_overridden_default_method_would_not_reach_old_objects() {
    for flags in BUILDS {
        let own = "fn label(&self) -> String { format!(\"square {}\", self.side) }";
        let report = shapes(flags, TRAIT, &format!("{AREA} {CORNERS}"), own).check(&["app::run"], &[]);
        let text = assert_found(&report, 8, "<app::Square as app::Named>");
        assert!(text.contains("<app::Square as app::Named>::label"), "{text}");
    }
}

#[test]
fn a_new_drop_would_not_reach_old_objects() {
    let source = "
        trait T { fn go(&self) -> u32; } struct S(u32); impl T for S { fn go(&self) -> u32 { self.0 * $STEP } }
        $DROP
        fn main() { let all: Vec<Box<dyn T>> = vec![Box::new(S(std::process::id()))]; println!(\"{}\", all[0].go()); }";
    let drop = "impl Drop for S { fn drop(&mut self) { println!(\"dropped\"); } }";
    let flags = ["-Copt-level=0"];
    let pair = Pair::varied(&flags, source, &[("$STEP", "1", "2"), ("$DROP", "", drop)]);
    let text = assert_found(&pair.check(&["<app::S as app::T>::go"], &[]), 8, "<app::S as app::T>");
    assert!(text.contains("drop function: nothing -> `core::ptr::drop_in_place"), "{text}");
    let pair = Pair::varied(&flags, source, &[("$STEP", "1", "2"), ("$DROP", "", "")]);
    assert_safe(&pair.check(&["<app::S as app::T>::go"], &[]));
}

#[test]
fn a_table_that_is_gone_matters_unless_it_is_the_standard_librarys() {
    let source = "
        use std::io::Write;
        struct Sink;
        impl Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> { Ok(bytes.len()) }
            fn flush(&mut self) -> std::io::Result<()> { Ok(()) }
        }
        #[inline(never)] fn tracing() -> u32 { $TRACING }
        #[inline(never)]
        fn show(n: u32) -> u32 {
            let mut out = $OUT;
            if tracing() != 0 { let _ = write!(out, \"{n}\"); }
            n
        }
        fn main() { println!(\"{}\", std::hint::black_box(show as fn(u32) -> u32)(3)); }";
    for flags in [FAST, &["-O", "-Ccodegen-units=1", "-Csymbol-mangling-version=v0"]] {
        let lost = |out| {
            let pair =
                Pair::varied(flags, source, &[("$TRACING", "std::process::id()", "0"), ("$OUT", out, out)]);
            pair.check(&["app::show"], &[])
        };
        assert_safe(&lost("vec![1u8]"));
        // What `Sink` does is the program's own matter.
        let text = assert_found(&lost("Sink"), 8, "Adapter<app::Sink> as core::fmt::Write");
        assert!(text.contains("the fixed build has no such table"), "{text}");
    }
}

#[test]
fn objects_that_are_no_longer_made_keep_the_order_of_methods() {
    let source = "
        use std::sync::OnceLock;
        trait Shape: Send + Sync { $TRAIT }
        struct Square(f64); struct Circle(f64);
        $IMPLS
        static SHAPE: OnceLock<Box<dyn Shape>> = OnceLock::new();
        #[inline(never)]
        fn area(n: f64) -> f64 { let shape = SHAPE.get_or_init(|| Box::new($MADE(n))); shape.area() * 2.0 + shape.width() }
        fn main() { let n = std::env::args().count() as f64; println!(\"{} {}\", area(n), area(n + 1.0)); }";
    let (area, width) = ("fn area(&self) -> f64", "fn width(&self) -> f64");
    let of = |kind: &str, factor: u8| {
        format!(
            "impl Shape for {kind} {{ {area} {{ self.0 * {factor}.0 }} {width} {{ self.0 + {factor}.0 }} }}"
        )
    };
    let impls = format!("{} {}", of("Square", 2), of("Circle", 3));
    let (order, swapped) = (format!("{area}; {width};"), format!("{width}; {area};"));
    for flags in BUILDS {
        let check = |trait_now: &str, made_now: &str| {
            let (order, impls) = (order.as_str(), impls.as_str());
            let variants =
                [("$TRAIT", order, trait_now), ("$IMPLS", impls, impls), ("$MADE", "Square", made_now)];
            Pair::varied(flags, source, &variants).check(&["app::area"], &[])
        };
        let text = assert_found(&check(&swapped, "Circle"), 8, "app::Shape");
        assert!(text.contains("slots: area, width -> width, area"), "{text}");
        assert!(!codes(&check(&order, "Circle")).contains(&8));
    }
}

#[test]
fn objects_of_a_renumbered_impl_get_the_new_code_or_there_is_a_finding() {
    let source = "
        pub struct App { hooks: Vec<Box<dyn Fn(u32) -> u32>> }
        $ADDED
        impl App {
            #[inline(never)]
            fn new(by: u32) -> Self { App { hooks: vec![Box::new(move |x| x * by + $STEP)] } }
        }
        fn main() { let app = App::new(std::process::id()); println!(\"{}\", app.hooks[0](3)); }";
    let added = "impl From<u32> for App { fn from(by: u32) -> Self { App::new(by) } }";
    let pair = Pair::varied(&["-Copt-level=0"], source, &[("$ADDED", "", added), ("$STEP", "1", "2")]);
    let closures = pair.changed("app::App::new::{{closure}}");
    let brought: Vec<_> = closures
        .iter()
        .map(|f| NewFunction { symbol: f.new_symbol.clone(), new: f.new, new_size: f.new_size })
        .collect();
    let text = assert_found(&pair.run(&[], &[], &brought, &[]), 8, "new::{closure_env#0}");
    assert!(text.contains("other numbers"), "{text}");
    assert!(!codes(&pair.run(&closures, &[], &[], &[])).contains(&8));
}
