//! Addresses of functions of the program as shipped, which patches took.

use super::Case;
use livepatch_tests::Failed;

/// A function of which a patch takes the address, and a table that leads to one.
const TAKEN: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::Mutex;

static FEES: Mutex<Vec<fn(u64) -> u64>> = Mutex::new(Vec::new());
static RULES: Mutex<Vec<Box<dyn Rule>>> = Mutex::new(Vec::new());

trait Rule: Send {
    fn apply(&self, n: u64) -> u64;
    fn kind(&self) -> u64;
}

struct Q(u64);

impl Rule for Q {
    fn apply(&self, n: u64) -> u64 {
        (0..black_box(3)).fold(n, |x, i| x * self.0 + i) //-
        (0..black_box(3)).fold(n _CHANGE_, |x, i| x * self.0 + i) //+
    }
    fn kind(&self) -> u64 {
        black_box(1)
    }
}

_RULE_ //+

#[inline(never)] //-
#[inline(_INLINE_)] //+
fn tax(n: u64) -> u64 {
    black_box(n) + 1 //-
    black_box(n) + _TAX_ //+
}

#[inline(never)]
fn fill() {
    let mut rules = RULES.lock().unwrap();
    if rules.is_empty() {
        rules.push(Box::new(Q(black_box(7))));
    }
    _KEPT_ //+
}

#[inline(never)]
fn first(n: u64) -> u64 {
    tax(n)
}

#[inline(never)]
fn second(n: u64) -> u64 {
    tax(n) * 2
}

fn step() {
    fill();
    let fees: Vec<_> = FEES.lock().unwrap().iter().map(|fee| fee(10)).collect();
    let rules: Vec<_> = RULES.lock().unwrap().iter().map(|rule| rule.apply(1) + rule.kind()).collect();
    println!("{} {} fees {fees:?} rules {rules:?}", first(black_box(1)), second(black_box(2)));
}

fn main() {
    host::serve(step);
}
"#;

impl Case {
    fn taking(&self, words: &[(&str, &str)]) -> Result<std::path::PathBuf, Failed> {
        let own = [("_CHANGE_", ""), ("_RULE_", ""), ("_INLINE_", "never"), ("_TAX_", "1"), ("_KEPT_", "")];
        let other = |word: &str| words.iter().find(|(own, _)| *own == word).map(|(_, by)| *by);
        self.with(&own.map(|(word, by)| (word, other(word).unwrap_or(by))))
    }
}

#[test]
fn the_address_of_a_function_of_the_image_leads_to_what_the_next_patch_has_for_it() -> Result<(), Failed> {
    let mut case = Case::of(TAKEN)?;
    case.prints("2 6 fees [] rules [353]")?;
    let taken = "let mut fees = FEES.lock().unwrap(); if fees.is_empty() { fees.push(tax); }";
    case.apply(&case.taking(&[("_TAX_", "100"), ("_KEPT_", taken)])?)?;
    case.prints("101 204 fees [110] rules [353]")?;
    let inlined = case.taking(&[("_TAX_", "200"), ("_INLINE_", "always")])?;
    case.is_refused(&inlined, "only inside of other functions")?;
    case.prints("101 204 fees [110] rules [353]")?;
    case.apply(&case.taking(&[("_TAX_", "300")])?)?;
    case.prints("301 604 fees [310] rules [353]")?;
    // As it was shipped, for everybody.
    case.apply(&case.taking(&[("_KEPT_", "black_box(1);")])?)?;
    case.prints("2 6 fees [11] rules [353]")?;
    case.program.finish()
}

#[test]
fn a_table_that_leads_to_a_function_of_the_image_for_another_one_is_a_reason_to_refuse() -> Result<(), Failed>
{
    let mut case = Case::of(TAKEN)?;
    case.prints("2 6 fees [] rules [353]")?;
    let rule = "struct R(u64); impl Rule for R { fn apply(&self, n: u64) -> u64 { \
        (0..black_box(3)).fold(n, |x, i| x * self.0 + i) } fn kind(&self) -> u64 { black_box(2) } }";
    let kept = "if rules.len() < 2 { rules.push(Box::new(R(black_box(7)))); }";
    case.apply(&case.taking(&[("_RULE_", rule), ("_KEPT_", kept)])?)?;
    case.prints("2 6 fees [] rules [353, 354]")?;
    let changed = case.taking(&[("_CHANGE_", "+ 1000")])?;
    case.is_refused(&changed, "another function that the address may stand for")?;
    case.apply(&case.taking(&[("_TAX_", "5")])?)?;
    case.prints("6 14 fees [] rules [353, 354]")?;
    case.program.finish()
}

/// A function that the compiler leaves nothing of, whose address the source takes beside those of new functions.
const INLINED: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::Mutex;

static FEES: Mutex<Vec<fn(u64) -> u64>> = Mutex::new(Vec::new());

fn small(n: u64) -> u64 {
    n ^ 1
}

fn spare(n: u64) -> u64 {
    black_box(n) ^ 7
}

fn handed(by: (fn(u64) -> u64, fn(u64) -> u64), n: u64) -> u64 {
    let mut sum = 0;
    for i in 0..black_box(2) {
        sum += by.0(n + i) * black_box(1);
    }
    sum
}

#[inline(never)] //+
fn one(n: u64) -> u64 { black_box(n) * 3 } //+
#[inline(never)] //+
fn two(n: u64) -> u64 { black_box(n) - 3 } //+

#[inline(never)]
fn fill() -> u64 {
    let mut fees = FEES.lock().unwrap(); //+
    if fees.is_empty() { fees.push(one); fees.push(two); } //+
    handed((small, spare), black_box(2))
}

#[inline(never)]
fn first(n: u64) -> u64 {
    black_box(n) + 1 //-
    black_box(n) + _FIRST_ //+
}

fn step() {
    let small = fill();
    let fees: Vec<_> = FEES.lock().unwrap().iter().map(|fee| fee(10)).collect();
    println!("{} {small} fees {fees:?}", first(black_box(1)));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn functions_that_may_stand_for_unchanged_ones_go_on() -> Result<(), Failed> {
    let mut case = Case::of(INLINED)?;
    case.prints("2 5 fees []")?;
    for (first, line) in [("1", "2 5"), ("10", "11 5"), ("20", "21 5")] {
        case.apply(&case.with(&[("_FIRST_", first)])?)?;
        case.prints(&format!("{line} fees [30, 7]"))?;
    }
    case.program.finish()
}
