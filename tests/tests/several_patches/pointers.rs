//! Function pointers to what a patch brought.

use super::Case;
use livepatch_tests::Failed;
use std::path::PathBuf;

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

fn far(body: &str) -> String {
    format!("#[inline(never)] fn far(n: u64) -> u64 {{ {body} }}")
}

/// As [`POINTERS`], where code of the image calls, too, what a kept function calls.
fn shared() -> String {
    POINTERS.replace("{fees:?}\", total(10)", "{fees:?} {}\", total(10), base(1)")
}

#[test]
fn a_kept_function_that_is_gone_runs_on_as_the_last_patch_that_had_it_made_it() -> Result<(), Failed> {
    let mut case = Case::of(&shared())?;
    case.prints("total 120 fees [] 101")?;
    case.apply(&case.then("never", "2", "fees.push(far);", &far("n * 7 + black_box(0)"))?)?;
    case.prints("total 242 fees [70] 201")?;
    case.apply(&case.then("never", "2", "fees.push(far);", &far("base(n) * 8"))?)?;
    case.prints("total 242 fees [1680] 201")?;
    case.is_refused(&case.then("never", "3", "", "")?, "which calls `several::base`")?;
    case.prints("total 242 fees [1680] 201")?;
    let gone = case.then("never", "2", "", "")?;
    case.apply(&gone)?;
    case.prints("total 242 fees [1680] 201")?;
    // It is led on from one patch without it to the next.
    case.apply(&case.then("never", "2", "fees.reserve(2);", "")?)?;
    case.prints("total 242 fees [1680] 201")?;
    case.apply(&case.then("never", "2", "fees.push(far);", &far("n * 9 + black_box(0)"))?)?;
    case.prints("total 242 fees [90] 201")?;
    case.apply(&gone)?;
    case.prints("total 242 fees [90] 201")?;
    case.rollback()?;
    case.prints("total 120 fees [70] 101")?;
    case.program.finish()
}

#[test]
fn a_kept_function_that_calls_what_the_next_patch_takes_back_is_a_reason_to_refuse() -> Result<(), Failed> {
    // Whether code of the image calls it, too, or that of patches alone.
    for (source, [shipped, first, back]) in [(POINTERS, ["", "", ""]), (&shared(), [" 101", " 201", " 101"])]
    {
        let mut case = Case::of(source)?;
        case.prints(&format!("total 120 fees []{shipped}"))?;
        case.apply(&case.then("never", "2", "fees.push(far);", &far("base(n) * 2"))?)?;
        case.prints(&format!("total 242 fees [420]{first}"))?;
        case.new_source = case.new_source.replace("+ 100 * _FACTOR_", "+ 100");
        case.is_refused(&case.then("never", "2", "", "")?, "which calls `several::base`")?;
        case.prints(&format!("total 242 fees [420]{first}"))?;
        // Where the function is in the newer patch, it calls what everybody calls.
        case.apply(&case.then("never", "2", "fees.push(far);", &far("base(n) * 2"))?)?;
        case.prints(&format!("total 142 fees [220]{back}"))?;
        case.program.finish()?;
    }
    Ok(())
}
