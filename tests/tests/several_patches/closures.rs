//! Closures that a patch brought and the next one changes: which one a number stands for.

use super::Case;
use livepatch_tests::Failed;
use livepatch_tests::tools::{self, exit};
use std::path::PathBuf;

/// A patch that fills a table with closures, starts a task, and computes values once.
const FILLED: &str = r#"
mod host;

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::{LazyLock, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

type Task = Pin<Box<dyn Future<Output = u64> + Send>>;

static RULES: Mutex<Vec<Box<dyn Fn(u64) -> u64 + Send>>> = Mutex::new(Vec::new());
static TASKS: Mutex<Vec<Task>> = Mutex::new(Vec::new());
_STATICS_ //+

#[derive(Default)]
struct Later(bool);

impl Future for Later {
    type Output = u64;
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u64> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(black_box(1)) } else { Poll::Pending }
    }
}

#[inline(never)]
fn fill() {
    let k = black_box(7);
    RULES.lock().unwrap().retain(|_| k > 0);
    TASKS.lock().unwrap().retain(|_| k > 0);
    _FILL_ //+
}

#[inline(never)]
fn once() -> String {
    String::new() //-
    _ONCE_ //+
}

#[inline(never)]
fn poll() -> String {
    let mut tasks = TASKS.lock().unwrap();
    let Some(mut task) = tasks.pop() else { return "none".into() };
    match task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value.to_string(),
        Poll::Pending => {
            tasks.push(task);
            "pending".into()
        }
    }
}

#[inline(never)]
fn rules() -> Vec<u64> {
    RULES.lock().unwrap().iter().map(|rule| rule(black_box(1))).collect()
}

fn step() {
    fill();
    println!("{:?} {} {}", rules(), poll(), once());
}

fn main() {
    host::serve(step);
}
"#;

impl Case {
    fn filled(&self, fill: &str, statics: &str, once: &str) -> Result<PathBuf, Failed> {
        self.with(&[
            ("_FILL_", fill),
            ("_STATICS_", statics),
            ("_ONCE_", if once.is_empty() { "String::new()" } else { once }),
        ])
    }

    /// A patch in which closures of these texts are put into the table while it is empty.
    fn rules(&self, closures: &[&str]) -> Result<PathBuf, Failed> {
        let push = closures.iter().map(|closure| format!("rules.push(Box::new({closure}));"));
        let push: String = push.collect();
        self.filled(
            &format!("let mut rules = RULES.lock().unwrap(); if rules.is_empty() {{ {push} }}"),
            "",
            "",
        )
    }
}

#[test]
fn closures_are_edited_one_after_the_other() -> Result<(), Failed> {
    let mut case = Case::of(FILLED)?;
    case.prints("[] none ")?;
    case.apply(&case.rules(&["move |n| n + k + 100", "move |n| n * k + 200", "move |m| m + 300"])?)?;
    case.prints("[108, 207, 301] none ")?;
    case.apply(&case.rules(&["move |n| n + k + 100", "move |n| n * k + 2000", "move |m| m + 3000"])?)?;
    case.prints("[108, 2007, 3001] none ")?;
    // The other one of its kind: the first patch alone would not tell.
    case.apply(&case.rules(&["move |n| n + k + 1000", "move |n| n * k + 2000", "move |m| m + 3000"])?)?;
    case.prints("[1008, 2007, 3001] none ")?;
    let inner = "move |n| (0..n).map(|i| black_box(i) + k).sum::<u64>() + 5";
    case.apply(&case.rules(&[inner, "move |n| n * k + 2000", "move |m| m + 3000"])?)?;
    case.prints("[12, 2007, 3001] none ")?;
    case.program.finish()
}

#[test]
fn closures_that_may_have_changed_places_are_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::of(FILLED)?;
    case.prints("[] none ")?;
    case.apply(&case.rules(&["move |n| n + k + 100", "move |n| n * k + 200"])?)?;
    case.prints("[108, 207] none ")?;
    let other = "other code under that name";
    case.is_refused(&case.rules(&["move |n| n * k + 200", "move |n| n + k + 100"])?, other)?;
    case.is_refused(&case.rules(&["move |n| n * k + 201", "move |n| n + k + 101"])?, other)?;
    let in_front = case.rules(&["move |n| n + k - 1", "move |n| n + k + 100", "move |n| n * k + 200"])?;
    case.is_refused(&in_front, other)?;
    let conditional = "#[cfg(not(test))] move |n| n + k + 101";
    case.is_refused(&case.rules(&[conditional, "move |n| n * k + 200"])?, other)?;
    case.prints("[108, 207] none ")?;
    case.program.finish()
}

#[test]
fn a_closure_that_may_have_come_out_of_a_macro_is_a_reason_to_refuse() -> Result<(), Failed> {
    let mut case = Case::of(FILLED)?;
    case.prints("[] none ")?;
    // What a macro holds is counted behind the others.
    let fill = |held: &str, plain: &str| {
        format!(
            "macro_rules! put {{ ($to:ident, $rule:expr) => {{ $to.push(Box::new($rule)) }} }} let mut rules = RULES.lock().unwrap(); \
             if rules.is_empty() {{ put!(rules, move |n| {held}); rules.push(Box::new(move |n| {plain})); }}"
        )
    };
    case.apply(&case.filled(&fill("n + k + 100", "n * k + 200"), "", "")?)?;
    case.prints("[108, 207] none ")?;
    case.apply(&case.filled(&fill("n + k + 100", "n * k + 300"), "", "")?)?;
    case.prints("[108, 307] none ")?;
    let swapped = case.filled(&fill("n * k + 300", "n + k + 100"), "", "")?;
    case.is_refused(&swapped, "other code under that name")?;
    let edited = case.filled(&fill("n + k + 101", "n * k + 300"), "", "")?;
    case.is_refused(&edited, "other code under that name")?;
    case.prints("[108, 307] none ")?;
    case.program.finish()
}

#[test]
fn methods_of_one_name_have_closures_of_their_own() -> Result<(), Failed> {
    let mut case = Case::of(FILLED)?;
    case.prints("[] none ")?;
    let rules = |one: &str, other: &str| {
        let statics = format!(
            "struct One(u64); struct Other(u64); type Rule = Box<dyn Fn(u64) -> u64 + Send>; \
             impl One {{ fn rule(self) -> Rule {{ Box::new(move |n| n + self.0 + {one}) }} }} \
             impl Other {{ fn rule(&self) -> Rule {{ let k = self.0; Box::new(move |n| n + k + {other}) }} }}"
        );
        let fill = "let mut rules = RULES.lock().unwrap(); \
            if rules.is_empty() { rules.push(One(k).rule()); rules.push(Other(k).rule()); }";
        case.filled(fill, &statics, "")
    };
    let (first, second) = (rules("100", "200")?, rules("100", "2000")?);
    case.apply(&first)?;
    case.prints("[108, 208] none ")?;
    // Where it is not clear which of the two a shim belongs to, the patch is refused; never is one taken for the other.
    let pid = case.program.pid().to_string();
    let ran = tools::livepatch(&["apply".as_ref(), pid.as_ref(), second.as_os_str()])?;
    match ran.code {
        exit::DONE => case.prints("[108, 2008] none ")?,
        exit::REFUSED => case.prints("[108, 208] none ")?,
        other => return Err(format!("exit code {other}: {}", ran.text).into()),
    }
    case.program.finish()
}

#[test]
fn an_async_block_is_edited_while_a_task_is_suspended_in_it() -> Result<(), Failed> {
    let mut case = Case::of(FILLED)?;
    case.prints("[] none ")?;
    let task = |own: &str| {
        let push =
            format!("TASKS.lock().unwrap().push(Box::pin(async move {{ Later::default().await + {own} }}));");
        format!("if black_box(true) && std::mem::take(&mut *FIRST.lock().unwrap()) {{ {push} }}")
    };
    let first = "static FIRST: Mutex<bool> = Mutex::new(true);";
    case.apply(&case.filled(&task("k * 10"), first, "")?)?;
    case.prints("[] pending ")?;
    case.apply(&case.filled(&task("k * 20"), first, "")?)?;
    case.prints("[] 141 ")?;
    case.program.finish()
}

#[test]
fn what_an_earlier_patch_computed_once_is_kept_and_apply_says_so() -> Result<(), Failed> {
    let mut case = Case::of(FILLED)?;
    case.prints("[] none ")?;
    let statics = |lazy: &str| {
        format!(
            "static LAZY: LazyLock<Vec<u64>> = LazyLock::new(|| vec![{lazy}]); static ONCE: OnceLock<u64> = OnceLock::new();"
        )
    };
    let once =
        |once: &str| format!("let once = ONCE.get_or_init(|| {once}); format!(\"{{:?}} {{once}}\", *LAZY)");
    let told = |case: &mut Case, lazy: &str, value: &str| -> Result<Vec<String>, Failed> {
        let report = case.apply(&case.filled("", &statics(lazy), &once(value))?)?;
        case.prints("[] none [1, 2] 3")?;
        let notes = report["notes"].as_array().ok_or("no notes")?.clone();
        let own = notes.iter().filter(|note| note["code"] == "LP0111");
        Ok(own.filter_map(|note| Some(note["title"].as_str()?.to_owned())).collect())
    };
    assert!(told(&mut case, "black_box(1), 2", "black_box(3)")?.is_empty());
    let lazy = "what `several::LAZY::{closure#0}` computed already is kept in `several::LAZY`";
    assert_eq!(told(&mut case, "black_box(4), 2", "black_box(3)")?, [lazy]);
    let once = "what `several::once::{closure#0}` computed already is kept";
    assert_eq!(told(&mut case, "black_box(4), 2", "black_box(5)")?, [once]);
    case.program.finish()
}

#[test]
fn what_a_macro_computes_once_is_kept_and_apply_says_so() -> Result<(), Failed> {
    let mut case = Case::of(FILLED)?;
    case.prints("[] none ")?;
    let told = |case: &mut Case, local: &str, more: &str| -> Result<Vec<String>, Failed> {
        let statics = format!(
            "macro_rules! text {{ ($text:expr) => {{ std::cell::RefCell::new($text.first().unwrap().to_string()) }} }}
             thread_local! {{ static LOCAL: std::cell::RefCell<String> = text!({local}); }}"
        );
        let once = format!("{more} LOCAL.with_borrow(String::clone)");
        let report = case.apply(&case.filled("", &statics, &once)?)?;
        case.prints("[] none one")?;
        let notes = report["notes"].as_array().ok_or("no notes")?.clone();
        let own = notes.iter().filter(|note| note["code"] == "LP0111");
        Ok(own.filter_map(|note| Some(note["title"].as_str()?.to_owned())).collect())
    };
    assert!(told(&mut case, "[\"one\", \"1\"]", "")?.is_empty());
    // The places of what may panic in it have moved.
    assert!(told(&mut case, "\n\n[\"one\", \"1\"]", "black_box(1);")?.is_empty());
    let noted = ["what `several::LOCAL` computed already is kept"];
    assert_eq!(told(&mut case, "[\"two\", \"1\"]", "black_box(1);")?, noted);
    case.program.finish()
}
