//! Variables that a patch brought.

use super::Case;
use livepatch_tests::Failed;

/// Variables that a patch brings.
const VARIABLES: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! count { //+
    () => {{ //+
        static COUNT: AtomicU64 = AtomicU64::new(0); //+
        COUNT.fetch_add(1, Relaxed) + 1 //+
    }}; //+
} //+

static TOTAL: _TYPE_ = <_TYPE_>::new(0); //+
static mut PAIR: (u64, u64) = (0, 0); //+

#[inline(never)]
fn count() -> String {
    black_box(String::from("none")) //-
    _BEFORE_ //+
    let n = count!(); //+
    format!("{n} {} _WORD_", TOTAL.fetch_add(2, Relaxed) + 2) //+
}

#[inline(never)]
fn pair() -> String {
    black_box(String::from("none")) //-
    unsafe { PAIR.0 += 1; PAIR.1 += 2; } //+
    _PAIR_ //+
}

fn step() {
    println!("count {}, pair {}", count(), pair());
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn variables_that_cannot_go_on_are_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::of(VARIABLES)?;
    case.prints("count none, pair none")?;
    let sum = "unsafe { (PAIR.0 + PAIR.1).to_string() }";
    let whole = "unsafe { format!(\"{:?}\", *black_box(&raw const PAIR)) }";
    let with = |case: &Case, word: &str, before: &str, of: &str, pair: &str| {
        case.with(&[("_WORD_", word), ("_BEFORE_", before), ("_TYPE_", of), ("_PAIR_", pair)])
    };
    case.apply(&with(&case, "first", "", "AtomicU64", sum)?)?;
    case.prints("count 1 2 first, pair 3")?;
    case.apply(&with(&case, "second", "", "AtomicU64", sum)?)?;
    case.prints("count 2 4 second, pair 6")?;
    // What begins anew, and what has no effect, is said where it is seen.
    let notes = |report: serde_json::Value| -> Vec<String> {
        let notes = report["notes"].as_array().cloned().unwrap_or_default();
        notes.iter().map(|note| format!("{} {}", note["code"], note["item"]).replace('"', "")).collect()
    };
    let source = case.new_source.clone();
    case.new_source =
        source.replace("::new(0); //+", "::new(50); //+").replace("<_TYPE_>::new(0)", "<_TYPE_>::new(50)");
    let said = case.apply(&with(&case, "second", "", "AtomicU64", sum)?)?;
    assert_eq!(notes(said), ["LP0101 several::TOTAL"]);
    case.prints("count 3 6 second, pair 9")?;
    case.new_source = source.replace("TOTAL", "SUM");
    let said = case.apply(&with(&case, "renamed", "", "AtomicU64", sum)?)?;
    assert_eq!(notes(said), ["LP0112 several::SUM"]);
    case.prints("count 4 2 renamed, pair 12")?;
    case.new_source = source;
    case.apply(&with(&case, "second", "", "AtomicU64", sum)?)?;
    case.prints("count 5 8 second, pair 15")?;
    let twice = with(&case, "third", "let _ = count!();", "AtomicU64", sum)?;
    case.is_refused(&twice, "several variables are called `several::count::COUNT`")?;
    let of_type = with(&case, "third", "", "std::sync::atomic::AtomicU32", sum)?;
    case.is_refused(&of_type, "with another type or size")?;
    case.is_refused(&with(&case, "third", "", "AtomicU64", whole)?, "several::PAIR")?;
    case.prints("count 6 10 second, pair 18")?;
    case.program.finish()
}

#[test]
fn a_variable_goes_on_from_the_last_patch_that_had_it() -> Result<(), Failed> {
    let mut case = Case::of(VARIABLES)?;
    case.prints("count none, pair none")?;
    let sum = "unsafe { (PAIR.0 + PAIR.1).to_string() }";
    let of = |case: &Case, word: &str, of: &str| {
        case.with(&[("_WORD_", word), ("_BEFORE_", ""), ("_TYPE_", of), ("_PAIR_", sum)])
    };
    let small = "std::sync::atomic::AtomicU32";
    case.apply(&of(&case, "first", "AtomicU64")?)?;
    case.prints("count 1 2 first, pair 3")?;
    case.rollback()?;
    let second = of(&case, "second", small)?;
    let said = case.apply(&second)?;
    assert_eq!(said["notes"].as_array().map(Vec::len), Some(0), "what begins anew is not kept: {said}");
    case.prints("count 2 2 second, pair 6")?;
    // The first patch has one of this type, and what the second one counted is not in there.
    let third = of(&case, "third", "AtomicU64")?;
    case.is_refused(&third, "with another type or size")?;
    case.prints("count 3 4 second, pair 9")?;
    case.rollback()?;
    case.apply(&third)?;
    case.prints("count 4 2 third, pair 12")?;
    case.rollback()?;
    // What runs is what the patch in use has, also where another one brought it and a third one came in between.
    case.apply(&second)?;
    case.prints("count 5 6 second, pair 15")?;
    case.is_refused(&third, "with another type or size")?;
    case.apply(&of(&case, "fourth", small)?)?;
    case.prints("count 6 8 fourth, pair 18")?;
    case.program.finish()
}
