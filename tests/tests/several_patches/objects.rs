//! Trait objects, and functions of equal code, that a patch brought.

use super::Case;
use livepatch_tests::Failed;
use std::path::PathBuf;

/// Objects of a trait and of types that a patch brings.
const OBJECTS: &str = r#"
mod host;

use std::any::Any;
use std::hint::black_box;
use std::sync::Mutex;

static KEPT: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());
static FEES: Mutex<Vec<fn(u64) -> u64>> = Mutex::new(Vec::new());

_BEFORE_ //+

trait Rule: Send { //+
    fn _FIRST_(&self, n: u64) -> u64; //+
    fn _SECOND_(&self, n: u64) -> u64 { //+
        n + black_box(7) //+
    } //+
} //+

struct R(u64); //+

_IMPL_ //+

impl Rule for R { //+
    fn apply(&self, n: u64) -> u64 { //+
        self.0 + n * _TIMES_ //+
    } //+
    _OVERRIDE_ //+
} //+

struct Q; //+

impl Rule for Q { //+
    fn _FIRST_(&self, n: u64) -> u64 { //+
        n << black_box(1) //+
    } //+
    fn _SECOND_(&self, _: u64) -> u64 { //+
        black_box(1) //+
    } //+
} //+

fn merged(n: u64) -> u64 { //+
    (0..black_box(3)).fold(n, |x, i| x * _FACTOR_ + i) //+
} //+

fn other(n: u64) -> u64 { //+
    (0..black_box(3)).fold(n, |x, i| x * _OTHER_ + i) //+
} //+

#[inline(never)]
fn fill() {
    let mut kept = KEPT.lock().unwrap();
    if kept.is_empty() {
        kept.push(Box::new(1u64)); //-
        kept.push(Box::new(Box::new(R(1)) as Box<dyn Rule>)); //+
        kept.push(Box::new(Box::new(Q) as Box<dyn Rule>)); //+
        FEES.lock().unwrap().push(merged); //+
        FEES.lock().unwrap().push(other); //+
    }
}

#[inline(never)]
fn results(n: u64) -> Vec<u64> {
    let kept = KEPT.lock().unwrap();
    kept.iter().map(|kept| u64::from(kept.is::<Box<u64>>())).filter(|one| *one > n).collect() //-
    let rules = kept.iter().filter_map(|kept| kept.downcast_ref::<Box<dyn Rule>>()); //+
    rules.flat_map(|rule| [rule.apply(n), rule.more(n)]).collect() //+
}

fn step() {
    // What the image made of it is no object of the patch.
    if KEPT.lock().unwrap().iter().any(|kept| kept.is::<u64>()) {
        KEPT.lock().unwrap().clear();
    }
    fill();
    let fees: Vec<_> = FEES.lock().unwrap().iter().map(|fee| fee(10)).collect();
    println!("rules {:?} fees {fees:?}", results(10));
}

fn main() {
    host::serve(step);
}
"#;

const AS_IT_WAS: [(&str, &str); 8] = [
    ("_TIMES_", "2"),
    ("_BEFORE_", ""),
    ("_FIRST_", "apply"),
    ("_SECOND_", "more"),
    ("_IMPL_", ""),
    ("_FACTOR_", "2"),
    ("_OVERRIDE_", ""),
    ("_OTHER_", "2"),
];

impl Case {
    fn of_objects() -> Result<Self, Failed> {
        let mut case = Self::of(OBJECTS)?;
        case.prints("rules [] fees []")?;
        case.apply(&case.with(&AS_IT_WAS)?)?;
        case.prints("rules [21, 17, 20, 1] fees [84, 84]")?;
        Ok(case)
    }

    /// A patch with other words.
    fn but(&self, words: &[(&str, &str)]) -> Result<PathBuf, Failed> {
        let other = |word: &str| words.iter().find(|(own, _)| *own == word).map(|(_, by)| *by);
        self.with(&AS_IT_WAS.map(|(word, by)| (word, other(word).unwrap_or(by))))
    }
}

#[test]
fn objects_of_a_trait_that_a_patch_brought_run_the_code_of_the_next_one() -> Result<(), Failed> {
    let mut case = Case::of_objects()?;
    case.apply(&case.but(&[("_TIMES_", "3")])?)?;
    case.prints("rules [31, 17, 20, 1] fees [84, 84]")?;
    // The method has another symbol behind another block.
    let block = "impl std::fmt::Display for R { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, \"R\") } }";
    case.apply(&case.but(&[("_IMPL_", block), ("_TIMES_", "4")])?)?;
    case.prints("rules [41, 17, 20, 1] fees [84, 84]")?;
    case.program.finish()
}

#[test]
fn objects_whose_tables_would_be_others_are_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::of_objects()?;
    let overridden = "fn more(&self, n: u64) -> u64 { n + self.0 + black_box(9) }";
    case.is_refused(&case.but(&[("_OVERRIDE_", overridden)])?, "::{vtable}")?;
    let dropped = "impl Drop for R { fn drop(&mut self) { black_box(self.0); } }";
    case.is_refused(&case.but(&[("_IMPL_", dropped)])?, "::{vtable}")?;
    let exchanged = [("_FIRST_", "more"), ("_SECOND_", "apply")];
    let methods = "fn more(&self, n: u64) -> u64 { n + black_box(7) }";
    case.is_refused(&case.but(&[exchanged[0], exchanged[1], ("_OVERRIDE_", methods)])?, "Rule")?;
    case.prints("rules [21, 17, 20, 1] fees [84, 84]")?;
    case.program.finish()
}

#[test]
fn an_address_that_stands_for_two_functions_is_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::of_objects()?;
    case.is_refused(&case.but(&[("_OTHER_", "5")])?, "may be another function")?;
    case.prints("rules [21, 17, 20, 1] fees [84, 84]")?;
    case.program.finish()
}

#[test]
fn an_address_that_stands_for_a_changed_function_and_one_that_is_gone_is_a_reason_to_refuse()
-> Result<(), Failed> {
    let mut case = Case::of_objects()?;
    let source = case.new_source.clone();
    let without = |name: &str| source.replace(&format!("push({name});"), "reserve(1);");
    case.new_source = without("other");
    case.is_refused(&case.but(&[("_FACTOR_", "5")])?, "may be another function")?;
    case.new_source = without("merged");
    case.is_refused(&case.but(&[("_OTHER_", "5")])?, "may be another function")?;
    case.prints("rules [21, 17, 20, 1] fees [84, 84]")?;
    // What is gone cannot have changed.
    case.apply(&case.but(&[("_TIMES_", "3")])?)?;
    case.prints("rules [31, 17, 20, 1] fees [84, 84]")?;
    case.program.finish()
}

/// Objects of a trait with supertraits that have a method of one name.
const SUPERTRAITS: &str = r#"
mod host;

use std::any::Any;
use std::hint::black_box;
use std::sync::Mutex;

static KEPT: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());

trait To<T> { fn to(&self) -> T; } //+
trait Rule: _SUPERTRAITS_ + Send {} //+
struct _OF_(u64); //+
impl To<u32> for _OF_ { fn to(&self) -> u32 { 1000 + self.0 as u32 + black_box(0) } } //+
impl To<u64> for _OF_ { fn to(&self) -> u64 { 2000 + self.0 + black_box(0) } } //+
impl Rule for _OF_ {} //+

#[inline(never)]
fn fill() {
    let mut kept = KEPT.lock().unwrap();
    if kept.len() < 2 {
        kept.push(Box::new(1u64)); //-
        kept.push(Box::new(Box::new(_OF_(black_box(1))) as Box<dyn Rule>)); //+
    }
}

#[inline(never)]
fn results() -> String {
    let kept = KEPT.lock().unwrap();
    kept.iter().filter(|kept| kept.is::<u32>()).count().to_string() //-
    let rules = kept.iter().filter_map(|kept| kept.downcast_ref::<Box<dyn Rule>>()); //+
    rules.map(|rule| format!("{} {} _WORD_", To::<u32>::to(&**rule), To::<u64>::to(&**rule))).collect() //+
}

fn step() {
    fill();
    println!("results {}", results());
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn supertraits_that_are_exchanged_are_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::of(SUPERTRAITS)?;
    case.prints("results 0")?;
    let with = |case: &Case, supertraits: &str, of: &str, word: &str| {
        case.with(&[("_SUPERTRAITS_", supertraits), ("_OF_", of), ("_WORD_", word)])
    };
    case.apply(&with(&case, "To<u32> + To<u64>", "R", "first")?)?;
    case.prints("results 1001 2001 first")?;
    case.is_refused(&with(&case, "To<u64> + To<u32>", "Q", "second")?, "the trait has other methods")?;
    case.apply(&with(&case, "To<u32> + To<u64>", "Q", "third")?)?;
    case.prints("results 1001 2001 third")?;
    case.program.finish()
}
