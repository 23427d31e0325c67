//! One patch after the other in one process.

use livepatch_tests::child::Program;
use livepatch_tests::fixture::{Fixture, Side};
use livepatch_tests::profile::Profile;
use livepatch_tests::project::{Project, command};
use livepatch_tests::tools::{self, exit};
use livepatch_tests::{Failed, fail};
use std::path::{Path, PathBuf};

const SOURCE: &str = r#"
mod host;

use std::sync::atomic::{AtomicU64, Ordering};

static OLD: AtomicU64 = AtomicU64::new(0);
static NEW: AtomicU64 = AtomicU64::new(100); //+

#[inline(never)]
fn word() -> String {
    let old = OLD.fetch_add(1, Ordering::Relaxed) + 1;
    format!("old {old}") //-
    let new = NEW.fetch_add(1, Ordering::Relaxed) + 1; //+
    format!("FIRST {old} {new}") //+
}

fn step() {
    println!("{}", word());
}

fn main() {
    host::serve(step);
}
"#;

struct Case {
    project: Project,
    program: Program,
    new_source: String,
}

impl Case {
    fn start() -> Result<Self, Failed> {
        Self::of(SOURCE)
    }

    fn of(source: &str) -> Result<Self, Failed> {
        let fixture = Fixture::inline("several", source)?;
        let new_source = fixture.sources(Side::New).map(|(_, text)| text).collect();
        let project = Project::new(&fixture, Profile::Release)?;
        let program = Program::start(command(&project.ship()?))?;
        Ok(Self { project, program, new_source })
    }

    /// A patch whose lines begin with `word`.
    fn create(&self, word: &str) -> Result<PathBuf, Failed> {
        self.project.file("src/main.rs", &self.new_source.replace("FIRST", word))?;
        let created = self.project.create(word)?;
        created.ran.expect(exit::DONE, "create")?;
        Ok(created.file)
    }

    fn apply(&self, file: &Path) -> Result<serde_json::Value, Failed> {
        let pid = self.program.pid().to_string();
        let ran = tools::livepatch(&["apply".as_ref(), pid.as_ref(), file.as_os_str()])?;
        Ok(ran.expect(exit::DONE, "apply")?.json)
    }

    fn rollback(&self) -> Result<(), Failed> {
        tools::livepatch(&["rollback", &self.program.pid().to_string()])?
            .expect(exit::DONE, "rollback")
            .map(drop)
    }

    fn prints(&mut self, line: &str) -> Result<(), Failed> {
        let lines = self.program.round()?;
        if lines == [line] { Ok(()) } else { fail(format!("expected `{line}`, found {lines:?}")) }
    }
}

#[test]
fn a_newer_patch_replaces_an_older_one_and_keeps_its_statics() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.prints("old 1")?;
    let first = case.create("FIRST")?;
    case.apply(&first)?;
    case.prints("FIRST 2 101")?;
    let second = case.create("SECOND")?;
    let report = case.apply(&second)?;
    assert_eq!(report["replaced"].as_array().map(Vec::len), Some(1), "{report}");
    case.prints("SECOND 3 102")?;
    let status =
        tools::livepatch(&["status", &case.program.pid().to_string()])?.expect(exit::DONE, "status")?;
    let states: Vec<_> =
        status.json["patches"].as_array().ok_or("no patches")?.iter().map(|p| &p["state"]).collect();
    assert_eq!(states, ["replaced", "applied"]);
    case.rollback()?;
    case.prints("old 4")?;
    case.program.finish()
}

#[test]
fn two_patches_of_one_name_are_told_apart() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let first = case.create("ONE")?;
    let saved = first.with_extension("saved");
    std::fs::rename(&first, &saved)?;
    case.apply(&saved)?;
    case.prints("ONE 1 101")?;
    let second = case.create("TWO")?;
    std::fs::rename(&second, &first)?;
    case.apply(&first)?;
    case.prints("TWO 2 102")?;
    case.program.finish()
}

#[test]
fn hundred_times_in_and_out() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let patch = case.create("NEW")?;
    for cycle in 0..100u64 {
        case.apply(&patch)?;
        let word = case.program.round()?;
        assert!(word[0].starts_with("NEW "), "cycle {cycle}: {word:?}");
        case.rollback()?;
        case.prints(&format!("old {}", 2 * cycle + 2))?;
    }
    case.program.finish()
}

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

    /// A patch that has these words for those of the source.
    fn with(&self, words: &[(&str, &str)]) -> Result<PathBuf, Failed> {
        let replaced =
            words.iter().fold(self.new_source.clone(), |source, (word, by)| source.replace(word, by));
        self.project.file("src/main.rs", &replaced)?;
        let name: Vec<String> =
            words.iter().map(|(_, by)| by.chars().filter(|c| c.is_alphanumeric()).collect()).collect();
        let created = self.project.create(&name.join("-"))?;
        created.ran.expect(exit::DONE, "create")?;
        Ok(created.file)
    }

    fn is_refused(&self, file: &Path, reason: &str) -> Result<(), Failed> {
        let pid = self.program.pid().to_string();
        let ran = tools::livepatch(&["apply".as_ref(), pid.as_ref(), file.as_os_str()])?;
        let json = ran.expect(exit::REFUSED, "apply")?.json.to_string();
        if json.contains(reason) { Ok(()) } else { fail(format!("`{reason}` is not in {json}")) }
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
fn another_closure_under_the_name_of_a_kept_one_is_refused() -> Result<(), Failed> {
    let mut case = Case::that_keeps()?;
    let (one, other) = (case.bringing("2", "5", "u64")?, case.bringing("2", "6", "u64")?);
    case.apply(&one)?;
    case.prints("rules [11, 21] fees [12] closures [39] notes 7")?;
    case.is_refused(&other, "which may be another function, closure")?;
    case.prints("rules [11, 21] fees [12] closures [39] notes 7")?;
    case.rollback()?;
    case.is_refused(&other, "which may be another function, closure")?;
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

/// Function pointers to what a patch brings, and what that calls.
const POINTERS: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::Mutex;

static FEES: Mutex<Vec<fn(u64) -> u64>> = Mutex::new(Vec::new());

#[inline(_INLINE_)] //+
fn fee(n: u64) -> u64 { //+
    black_box(n) * _FACTOR_ //+
} //+

#[inline(never)] //+
fn deep(n: u64) -> u64 { //+
    black_box(n) + _FACTOR_ //+
} //+

_FAR_ //+

#[inline(never)]
fn base(n: u64) -> u64 {
    black_box(n) + 100 //-
    black_box(n) + 100 * _FACTOR_ //+
}

#[inline(never)]
fn fill() {
    let mut fees = FEES.lock().unwrap();
    if fees.is_empty() {
        fees.reserve(1); //-
        _KEPT_ //+
    }
}

#[inline(never)]
fn total(n: u64) -> u64 {
    n + base(n) //-
    fee(n) + deep(n) + base(n) //+
}

fn step() {
    fill();
    let fees: Vec<_> = FEES.lock().unwrap().iter().map(|fee| fee(10)).collect();
    println!("total {} fees {fees:?}", total(10));
}

fn main() {
    host::serve(step);
}
"#;

const FAR: &str = "#[inline(never)] fn far(n: u64) -> u64 { deep(n) + base(n) }";

impl Case {
    /// A patch with pointers, and a process that keeps them.
    fn that_points(kept: &str, far: &str) -> Result<Self, Failed> {
        let mut case = Self::of(POINTERS)?;
        case.prints("total 120 fees []")?;
        case.apply(&case.with(&[
            ("_INLINE_", "never"),
            ("_FACTOR_", "2"),
            ("_KEPT_", kept),
            ("_FAR_", far),
        ])?)?;
        Ok(case)
    }

    fn then(&self, inline: &str, factor: &str, kept: &str, far: &str) -> Result<PathBuf, Failed> {
        self.with(&[("_INLINE_", inline), ("_FACTOR_", factor), ("_KEPT_", kept), ("_FAR_", far)])
    }
}

#[test]
fn a_kept_function_that_the_next_patch_only_calls() -> Result<(), Failed> {
    let mut case = Case::that_points("fees.push(fee);", "")?;
    case.prints("total 242 fees [20]")?;
    // A function of which nobody takes the address may be called otherwise.
    case.is_refused(&case.then("never", "3", "", "")?, "called otherwise")?;
    case.prints("total 242 fees [20]")?;
    case.apply(&case.then("never", "3", "let _ = black_box(fee as fn(u64) -> u64);", "")?)?;
    case.prints("total 353 fees [30]")?;
    case.program.finish()
}

#[test]
fn a_kept_function_that_the_next_patch_inlines_is_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::that_points("fees.push(fee);", "")?;
    case.prints("total 242 fees [20]")?;
    case.is_refused(&case.then("always", "3", "", "")?, "only inlined into other functions")?;
    case.prints("total 242 fees [20]")?;
    // Nobody keeps what is only called.
    let mut case = Case::that_points("", "")?;
    case.apply(&case.then("always", "3", "", "")?)?;
    case.prints("total 353 fees []")?;
    case.program.finish()
}

#[test]
fn a_kept_function_that_is_gone_and_calls_what_is_another_now_is_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::that_points("fees.push(far);", FAR)?;
    case.prints("total 242 fees [222]")?;
    let removed = case.then("never", "3", "", "")?;
    case.is_refused(&removed, "which this patch does not have, and which calls `several::")?;
    case.prints("total 242 fees [222]")?;
    case.apply(&case.then("never", "3", "fees.push(far);", FAR)?)?;
    case.prints("total 353 fees [323]")?;
    case.rollback()?;
    case.prints("total 120 fees [222]")?;
    case.is_refused(&removed, "which this patch does not have")?;
    case.program.finish()
}

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

/// Jobs that a patch queues: the table of such an object has code that hands the call on to the closure's body.
const JOBS: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::Mutex;

static JOBS: Mutex<Vec<Box<dyn FnOnce() -> String + Send>>> = Mutex::new(Vec::new());

#[inline(never)]
fn fill() {
    let mut jobs = JOBS.lock().unwrap();
    jobs.reserve(1); //-
    let n = black_box(5u64); //+
    _BEFORE_ //+
    jobs.push(Box::new(move || (0..3).map(|i| format!("fee{} ", n * i)).collect::<String>())); //+
    black_box(_WORD_); //+
}

fn step() {
    let waiting = JOBS.lock().unwrap().pop();
    match waiting {
        Some(job) => println!("{}", job().trim()),
        None => {
            fill();
            println!("queued");
        }
    }
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn another_closure_behind_the_same_table_is_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::of(JOBS)?;
    case.prints("queued")?;
    case.apply(&case.with(&[("_BEFORE_", ""), ("_WORD_", "1")])?)?;
    case.prints("queued")?;
    let tax = "jobs.push(Box::new(move || (0..3).map(|i| format!(\"tax{} \", n + i)).collect::<String>()));";
    case.is_refused(&case.with(&[("_BEFORE_", tax), ("_WORD_", "1")])?, "another function, closure")?;
    case.apply(&case.with(&[("_BEFORE_", ""), ("_WORD_", "2")])?)?;
    case.prints("fee0 fee5 fee10")?;
    case.program.finish()
}

/// Futures that a patch brings, polled by hand, one step a round.
const FUTURES: &str = r#"
mod host;

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

type Task = Pin<Box<dyn Future<Output = u64> + Send>>;

static TASKS: Mutex<Vec<Task>> = Mutex::new(Vec::new());

struct Step(u64, bool);

impl Future for Step {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u64> {
        if std::mem::replace(&mut self.1, true) { Poll::Ready(self.0) } else { Poll::Pending }
    }
}

#[inline(never)]
fn step_of(n: u64) -> Step {
    Step(black_box(n), false)
}

async fn work(n: u64) -> u64 { //+
    let first = step_of(n _FIRST_).await; //+
    let second = step_of(first _SECOND_).await; //+
    _EXTRA_ //+
    first + second _END_ //+
} //+

#[inline(never)]
fn fill() {
    let mut tasks = TASKS.lock().unwrap();
    if tasks.is_empty() {
        tasks.push(Box::pin(std::future::ready(0))); //-
        tasks.push(Box::pin(work(10))); //+
    }
}

#[inline(never)]
fn poll() -> String {
    let mut tasks = TASKS.lock().unwrap();
    let mut context = Context::from_waker(Waker::noop());
    match tasks[0].as_mut().poll(&mut context) {
        Poll::Ready(n) => {
            tasks.clear();
            format!("done {n}")
        }
        Poll::Pending => "waits".into(),
    }
}

fn step() {
    fill();
    println!("{}", poll());
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn a_future_that_a_patch_brought_goes_on_in_the_next_one() -> Result<(), Failed> {
    let mut case = Case::of(FUTURES)?;
    case.prints("done 0")?;
    let with = |case: &Case, first: &str, second: &str, extra: &str, end: &str| {
        case.with(&[("_FIRST_", first), ("_SECOND_", second), ("_EXTRA_", extra), ("_END_", end)])
    };
    case.apply(&with(&case, "", "", "", "")?)?;
    case.prints("waits")?;
    case.prints("waits")?;
    // What comes after the awaits may be another, also for the future under way.
    case.apply(&with(&case, "", "", "", "+ 100")?)?;
    case.prints("done 120")?;
    case.prints("waits")?;
    // One more await, other values to wait for: nothing tells that it is the same point.
    let reason = "several::work::{async_fn_env#0}";
    case.is_refused(&with(&case, "", "", "step_of(1).await;", "+ 100")?, reason)?;
    case.is_refused(&with(&case, "+ 1", "", "", "+ 100")?, reason)?;
    case.prints("waits")?;
    case.prints("done 120")?;
    case.program.finish()
}

/// A patch that starts a thread, which is in the patch's code from then on.
const THREAD: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

type Ends = (Sender<u64>, Receiver<u64>);

static THREAD: Mutex<Option<Ends>> = Mutex::new(None);

#[inline(never)] //+
fn tick(n: u64) -> u64 { //+
    black_box(n) + _TICK_ //+
} //+

#[inline(never)] //+
fn serve(asked: &Receiver<u64>, answers: &Sender<u64>) { //+
    for n in asked { //+
        answers.send(tick(n) + shipped(n)).unwrap(); //+
    } //+
} //+

#[inline(never)]
fn shipped(n: u64) -> u64 {
    black_box(n) //-
    black_box(n) * _SHIPPED_ //+
}

#[inline(never)]
fn start() {
    let mut thread = THREAD.lock().unwrap();
    if thread.is_none() {
        let _: (Sender<u64>, Receiver<u64>) = channel();
        let ((ask, asked), (answers, answer)) = (channel(), channel()); //+
        std::thread::spawn(move || serve(&asked, &answers)); //+
        *thread = Some((ask, answer)); //+
    }
}

#[inline(never)]
fn ask(n: u64) -> String {
    let thread = THREAD.lock().unwrap();
    let Some((ask, answer)) = &*thread else { return "nobody".into() };
    ask.send(n).unwrap();
    format!("{} _WORD_", answer.recv().unwrap())
}

fn step() {
    start();
    println!("{} {}", ask(10), shipped(1));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn a_thread_that_a_patch_started_need_not_leave_code_that_the_next_one_has_too() -> Result<(), Failed> {
    let mut case = Case::of(THREAD)?;
    case.prints("nobody 1")?;
    let with = |case: &Case, tick: &str, shipped: &str, word: &str| {
        case.with(&[("_TICK_", tick), ("_SHIPPED_", shipped), ("_WORD_", word)])
    };
    case.apply(&with(&case, "1", "2", "first")?)?;
    case.prints("31 first 2")?;
    case.apply(&with(&case, "1", "2", "second")?)?;
    case.prints("31 second 2")?;
    // What it calls of the image is what the patch makes of that; of the first patch it has to be the same.
    let pid = case.program.pid().to_string();
    let other = with(&case, "5", "2", "third")?;
    let short = ["--timeout", "1"].map(std::ffi::OsStr::new);
    let ran = tools::livepatch(&[&["apply".as_ref(), pid.as_ref(), other.as_os_str()][..], &short].concat())?;
    ran.expect(exit::BUSY, "apply")?;
    case.prints("31 second 2")?;
    case.program.finish()
}
