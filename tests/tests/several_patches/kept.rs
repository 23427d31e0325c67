//! What the first patch brought, and the program stored, runs the code of the next one, or that is refused.

use super::Case;
use livepatch_tests::Failed;
use std::path::PathBuf;

/// What it keeps was made by whichever code ran when there was less of it.
const KEEPS: &str = r#"
mod host;

use std::any::Any;
use std::hint::black_box;
use std::sync::Mutex;

trait Rule: Send {
    fn apply(&self, n: u64) -> u64;
}

struct First(u64);
impl Rule for First {
    fn apply(&self, n: u64) -> u64 {
        self.0 + n
    }
}

struct Second(u64); //+
impl Rule for Second { //+
    fn apply(&self, n: u64) -> u64 { //+
        self.0 + n * _FACTOR_ //+
    } //+
} //+

fn fee(n: u64) -> u64 { //+
    n + black_box(_FACTOR_) //+
} //+

struct Note(_TYPE_); //+

type Function = Box<dyn Fn(u64) -> u64 + Send>;
static RULES: Mutex<Vec<Box<dyn Rule>>> = Mutex::new(Vec::new());
static FEES: Mutex<Vec<fn(u64) -> u64>> = Mutex::new(Vec::new());
static CLOSURES: Mutex<Vec<Function>> = Mutex::new(Vec::new());
static NOTES: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());

#[inline(never)]
fn fill(limit: usize) {
    if RULES.lock().unwrap().len() < limit {
        RULES.lock().unwrap().push(Box::new(First(1))); //-
        NOTES.lock().unwrap().push(Box::new(1u64)); //-
        RULES.lock().unwrap().push(Box::new(Second(1))); //+
        FEES.lock().unwrap().push(fee); //+
        let by = black_box(4u64); //+
        CLOSURES.lock().unwrap().push(Box::new(move |n| n * 3 + by + _ADDEND_)); //+
        NOTES.lock().unwrap().push(Box::new(Note(black_box(7) as _TYPE_))); //+
    }
}

#[inline(never)]
fn notes() -> String {
    let notes = NOTES.lock().unwrap();
    let note = notes.iter().filter(|note| note.is::<u64>()).count(); //-
    let note: u64 = notes.iter().filter_map(|note| note.downcast_ref::<Note>()).map(|note| note.0 as u64).sum(); //+
    note.to_string()
}

fn step() {
    let all = RULES.lock().unwrap().len() + FEES.lock().unwrap().len();
    fill(if all < 2 { 2 } else { black_box(1) });
    let rules: Vec<_> = RULES.lock().unwrap().iter().map(|rule| rule.apply(10)).collect();
    let fees: Vec<_> = FEES.lock().unwrap().iter().map(|fee| fee(10)).collect();
    let closures: Vec<_> = CLOSURES.lock().unwrap().iter().map(|f| f(10)).collect();
    println!("rules {rules:?} fees {fees:?} closures {closures:?} notes {}", notes());
}

fn main() {
    host::serve(step);
}
"#;

impl Case {
    /// One that keeps what patches bring, after its first round.
    fn that_keeps() -> Result<Self, Failed> {
        let mut case = Self::of(KEEPS)?;
        case.prints("rules [11] fees [] closures [] notes 1")?;
        Ok(case)
    }

    /// A patch of it.
    fn bringing(&self, factor: &str, closure: &str, of: &str) -> Result<PathBuf, Failed> {
        self.with(&[("_FACTOR_", factor), ("_ADDEND_", closure), ("_TYPE_", of)])
    }
}

#[test]
fn what_a_patch_brought_runs_the_code_of_the_next_one() -> Result<(), Failed> {
    let mut case = Case::that_keeps()?;
    let (two, three) = (case.bringing("2", "5", "u64")?, case.bringing("3", "5", "u64")?);
    case.apply(&two)?;
    case.prints("rules [11, 21] fees [12] closures [39] notes 7")?;
    case.apply(&three)?;
    case.prints("rules [11, 31] fees [13] closures [39] notes 7")?;
    case.apply(&two)?;
    case.prints("rules [11, 21] fees [12] closures [39] notes 7")?;
    case.apply(&three)?;
    case.prints("rules [11, 31] fees [13] closures [39] notes 7")?;
    case.rollback()?;
    // The old source has none of these: they are what the patch made them that brought them.
    case.prints("rules [11, 21] fees [12] closures [39] notes 1")?;
    case.apply(&three)?;
    case.prints("rules [11, 31] fees [13] closures [39] notes 7")?;
    case.rollback()?;
    case.program.finish()
}

#[test]
fn the_only_closure_of_a_function_is_that_one_whatever_its_text() -> Result<(), Failed> {
    let mut case = Case::that_keeps()?;
    let (one, other) = (case.bringing("2", "5", "u64")?, case.bringing("2", "6", "u64")?);
    case.apply(&one)?;
    case.prints("rules [11, 21] fees [12] closures [39] notes 7")?;
    case.apply(&other)?;
    case.prints("rules [11, 21] fees [12] closures [40] notes 7")?;
    case.rollback()?;
    case.apply(&one)?;
    case.prints("rules [11, 21] fees [12] closures [39] notes 7")?;
    case.program.finish()
}

#[test]
fn another_layout_of_a_type_that_a_patch_brought_is_refused() -> Result<(), Failed> {
    let mut case = Case::that_keeps()?;
    let (one, other) = (case.bringing("2", "5", "u64")?, case.bringing("2", "5", "u8")?);
    case.apply(&one)?;
    case.prints("rules [11, 21] fees [12] closures [39] notes 7")?;
    case.is_refused(&other, "several::Note")?;
    case.prints("rules [11, 21] fees [12] closures [39] notes 7")?;
    case.program.finish()
}
