//! Whether what an earlier patch brought has the same address in the next one.

use super::Case;
use livepatch_tests::Failed;

/// Patches that bring a function, a table of functions and a constant, keep references to them, and compare these with their own.
const COMPARED: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::Mutex;

pub struct Plan {
    price: u64,
    fee: fn(u64) -> u64,
}

static FEES: Mutex<Vec<fn(u64) -> u64>> = Mutex::new(Vec::new());
static PLANS: Mutex<Vec<&'static Plan>> = Mutex::new(Vec::new());

fn unchanged(n: u64) -> u64 {
    black_box(n)
}

fn touch(plan: &Plan) -> u64 {
    (plan.fee)(plan.price)
}

static NONE: Plan = Plan { price: _PRICE_, fee }; //+

fn fee(n: u64) -> u64 { //+
    black_box(n) + _FEE_ //+
} //+

_MORE_ //+

fn step() {
    let mut fees = FEES.lock().unwrap();
    let mut plans = PLANS.lock().unwrap();
    if fees.is_empty() { //+
        fees.push(fee); //+
        plans.push(&NONE); //+
    } //+
    let known = fees.iter().filter(|other| std::ptr::fn_addr_eq(**other, black_box(unchanged as fn(u64) -> u64))).count(); //-
    let known = fees.iter().filter(|other| std::ptr::fn_addr_eq(**other, black_box(fee as fn(u64) -> u64))).count(); //+
    let none = plans.iter().filter(|other| std::ptr::eq(**other, black_box(&NONE))).count(); //+
    let none = 0; //-
    let sums: Vec<_> = plans.iter().map(|plan| touch(plan)).collect();
    let fees: Vec<_> = fees.iter().map(|fee| fee(black_box(1))).collect();
    println!("known {known} none {none} fees {fees:?} sums {sums:?}");
}

fn main() {
    host::serve(step);
}
"#;

impl Case {
    fn compared(&self, price: &str, fee: &str, more: &str) -> Result<std::path::PathBuf, Failed> {
        self.with(&[("_PRICE_", price), ("_FEE_", fee), ("_MORE_", more)])
    }
}

#[test]
fn functions_and_constants_keep_their_addresses_from_patch_to_patch() -> Result<(), Failed> {
    let mut case = Case::of(COMPARED)?;
    case.prints("known 0 none 0 fees [] sums []")?;
    let first = case.compared("10", "100", "")?;
    case.apply(&first)?;
    case.prints("known 1 none 1 fees [101] sums [110]")?;
    case.apply(&case.compared("10", "200", "")?)?;
    case.prints("known 1 none 1 fees [201] sums [210]")?;
    // Neither changed.
    case.apply(&case.compared("10", "200", "pub fn more() {}")?)?;
    case.prints("known 1 none 1 fees [201] sums [210]")?;
    case.apply(&first)?;
    case.prints("known 1 none 1 fees [101] sums [110]")?;
    case.rollback()?;
    case.prints("known 0 none 0 fees [101] sums [110]")?;
    case.apply(&case.compared("10", "300", "")?)?;
    case.prints("known 1 none 1 fees [301] sums [310]")?;
    case.program.finish()
}

#[test]
fn a_constant_with_a_new_value_is_another_one() -> Result<(), Failed> {
    let mut case = Case::of(COMPARED)?;
    case.prints("known 0 none 0 fees [] sums []")?;
    case.apply(&case.compared("10", "100", "")?)?;
    case.prints("known 1 none 1 fees [101] sums [110]")?;
    let report = case.apply(&case.compared("20", "200", "")?)?;
    let notes = report["notes"].to_string();
    assert!(notes.contains("LP0113") && notes.contains("`several::NONE` has a new value"), "{notes}");
    case.prints("known 1 none 0 fees [201] sums [210]")?;
    case.program.finish()
}
