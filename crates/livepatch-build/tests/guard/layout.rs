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
        &["-O", "-Cdebuginfo=2", "-Zunstable-options", "-Cdwarf-version=5"].as_slice(),
    ] {
        let flags: Vec<&str> = flags.iter().copied().filter(|flag| *flag != "-Zunstable-options").collect();
        assert_safe(&orders(&flags, &[]).check(&["app::total"], &[]));
    }
}
