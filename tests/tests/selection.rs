//! Parts of a patch, function by function: each line of a round says which code of one function ran.

use livepatch_tests::case;
use livepatch_tests::child::Program;
use livepatch_tests::fixture::{Fixture, Side};
use livepatch_tests::profile::Profile;
use livepatch_tests::project::{Project, command};
use livepatch_tests::tools::{self, Ran, exit};
use livepatch_tests::{Failed, fail};
use serde_json::Value;
use std::path::{Path, PathBuf};

struct Case {
    /// Holds the folder in which patch and program are.
    _project: Project,
    program: Program,
    file: PathBuf,
}

impl Case {
    fn start(name: &str, profile: Profile) -> Result<Self, Failed> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(name);
        let project = Project::new(&Fixture::read(&folder)?, profile)?;
        let program = Program::start(command(&project.ship()?))?;
        project.write(Side::New)?;
        let created = project.create("fix")?;
        created.ran.expect(exit::DONE, "create")?;
        Ok(Self { _project: project, program, file: created.file })
    }

    fn run(&self, verb: &str, part: &[&str]) -> Result<Ran, Failed> {
        let pid = self.program.pid().to_string();
        let mut args = vec![verb.as_ref(), pid.as_ref(), self.file.as_os_str()];
        args.extend(part.iter().map(std::ffi::OsStr::new));
        tools::livepatch(&args)
    }

    fn rollback(&self) -> Result<(), Failed> {
        let pid = self.program.pid().to_string();
        tools::livepatch(&["rollback", &pid])?.expect(exit::DONE, "rollback").map(drop)
    }

    fn status(&self) -> Result<Value, Failed> {
        Ok(tools::livepatch(&["status", &self.program.pid().to_string()])?.expect(exit::DONE, "status")?.json)
    }

    /// Names of the lines that show new code.
    fn new_lines(&mut self) -> Result<Vec<String>, Failed> {
        let mut new = Vec::new();
        for line in self.program.round()? {
            let (name, values) = line.split_once(' ').ok_or("a line without a value")?;
            let values: Vec<u32> = values.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            match values.iter().filter(|value| *value % 2 == 1).count() {
                0 => {}
                all if all == values.len() => new.push(name.to_owned()),
                _ => return fail(format!("mixed: {line}")),
            }
        }
        Ok(new)
    }

    /// Applies a part, checks that just these lines are new, and rolls back.
    fn gives(&mut self, part: &[&str], expected: &[&str]) -> Result<(), Failed> {
        self.run("check", part)?.expect(exit::DONE, "check")?;
        self.run("apply", part)?.expect(exit::DONE, "apply")?;
        let found = self.new_lines()?;
        if found != expected {
            return fail(format!("{part:?}: expected {expected:?}, found {found:?}"));
        }
        self.rollback()?;
        match self.new_lines()?.is_empty() {
            true => Ok(()),
            false => fail(format!("{part:?}: something stayed new after the rollback")),
        }
    }

    /// Neither check nor apply do anything; the report.
    fn refused(&mut self, part: &[&str], code: i32) -> Result<Value, Failed> {
        self.run("check", part)?.expect(code, "check")?;
        let ran = self.run("apply", part)?.expect(code, "apply")?;
        match self.new_lines()?.is_empty() {
            true => Ok(ran.json),
            false => fail(format!("{part:?}: refused, and yet something is new")),
        }
    }

    fn missing(&mut self, part: &[&str], needs: &str) -> Result<(), Failed> {
        let report = self.refused(part, exit::REFUSED)?;
        let list = report["missing"].as_array().ok_or("no list of what is missing")?;
        match list.iter().any(|missing| missing["needs"] == needs) {
            true => Ok(()),
            false => fail(format!("{part:?}: {needs} is not among the missing: {report}")),
        }
    }
}

const EVERYTHING: [&str; 17] = [
    "router::route",
    "router2::route",
    "router::deep::dive",
    "Order::total",
    "Order::display",
    "Order::debug",
    "Order::bill",
    "Cart::area",
    "Cart::name",
    "Cart::each",
    "router::generic",
    "router::job",
    "cart::first",
    "cart::second",
    "cart::caller",
    "router::hosting",
    "cart::limit",
];

fn subset_by_subset(case: &mut Case) -> Result<(), Failed> {
    case.gives(&[], &EVERYTHING)?;
    case.gives(&["--module", "selection"], &EVERYTHING)?;
    case.gives(
        &["--module", "selection::router2", "--function", "selection::cart::LIMIT"],
        &["router2::route", "cart::limit"],
    )?;
    case.gives(&["--function", "selection::router::route"], &["router::route"])?;
    case.gives(
        &["--type", "selection::router::Order"],
        &["Order::total", "Order::display", "Order::debug", "Order::bill"],
    )?;
    case.gives(&["--type", "selection::cart::Cart"], &["Cart::area", "Cart::name", "Cart::each"])?;
    case.gives(&["--function", "selection::router::Order::total"], &["Order::total"])?;
    let display = "<selection::router::Order as std::fmt::Display>::fmt";
    case.gives(&["--function", display], &["Order::display"])?;
    case.gives(
        &["--function", "<selection::router::Order as selection::cart::Billed>::bill"],
        &["Order::bill"],
    )?;
    case.gives(&["--function", "selection::cart::Cart::each"], &["Cart::each"])?;
    case.gives(&["--function", "selection::router::generic"], &["router::generic"])?;
    case.gives(&["--function", "selection::router::inner"], &["router::job"])?;
    case.gives(&["--function", "selection::router::hosting"], &["router::hosting"])?;
    case.gives(&["--function", "selection::cart::shared"], &["cart::first", "cart::second"])?;
    case.gives(
        &["--function", "selection::router::route", "--type", "selection::cart::Cart"],
        &["router::route", "Cart::area", "Cart::name", "Cart::each"],
    )?;
    case.missing(&["--function", "selection::cart::first"], "selection::cart::shared")?;
    case.missing(&["--function", "selection::cart::caller"], "selection::router::deep::dive")
}

/// What the patch does not hold is refused with what it holds.
fn unknown(case: &mut Case) -> Result<(), Failed> {
    for (part, similar) in [
        (["--function", "route"], "selection::router::route"),
        (["--function", "router::route"], "selection::router::route"),
        (["--type", "Order"], "selection::router::Order"),
        (["--module", "router"], "selection::router"),
        (["--module", "selection::rout"], ""),
        (["--function", "selection::main"], ""),
        (["--type", "selection::router"], ""),
        (["--function", "selection::router"], ""),
    ] {
        let report = case.refused(&part, exit::USAGE)?;
        let holds = report["holds"].as_array().ok_or("no list of what it holds")?;
        assert!(holds.iter().any(|path| path == "selection::cart::shared"), "{report}");
        let meant = &report["unknown"][0]["similar"];
        let found =
            meant.as_array().ok_or("no list of what may be meant")?.iter().any(|path| path == similar);
        assert!(found || similar.is_empty(), "{part:?}: {report}");
    }
    Ok(())
}

/// Parts are patches of their own, which replace each other.
fn replaced(case: &mut Case) -> Result<(), Failed> {
    let apply = |case: &Case, part: &[&str]| case.run("apply", part)?.expect(exit::DONE, "apply");
    let first =
        apply(case, &["--module", "selection::router2", "--function", "selection::cart::LIMIT"])?.json;
    assert_eq!(first["already_applied"], false);
    // The same functions, named in another way.
    let again =
        apply(case, &["--function", "selection::router2::route", "--function", "selection::cart::LIMIT"])?
            .json;
    assert_eq!(again["already_applied"], true);
    let other = apply(case, &["--type", "selection::cart::Cart"])?.json;
    assert_eq!(other["already_applied"], false);
    assert_eq!(other["replaced"].as_array().map(Vec::len), Some(1), "{other}");
    assert_eq!(case.new_lines()?, ["Cart::area", "Cart::name", "Cart::each"]);
    let pid = case.program.pid().to_string();
    let whole = tools::livepatch(&["-v".as_ref(), "apply".as_ref(), pid.as_ref(), case.file.as_os_str()])?;
    assert!(whole.text.contains("entries switched"), "-v says what is done: {}", whole.text);
    let whole = whole.expect(exit::DONE, "apply")?.json;
    assert_eq!(case.new_lines()?, EVERYTHING);
    let status = case.status()?;
    let patches = status["patches"].as_array().ok_or("no patches")?;
    assert_eq!(patches.len(), 3, "{status}");
    assert_eq!(patches[1]["selection"][0]["kind"], "type");
    assert_eq!(patches[1]["selection"][0]["path"], "selection::cart::Cart");
    assert_eq!(patches[2]["selection"].as_array().map(Vec::len), Some(0));
    let functions = |patch: &Value| patch["functions"].as_array().map_or(0, Vec::len);
    assert!(functions(&patches[1]) < functions(&patches[2]), "{status}");
    let mapped = |report: &Value| report["mapped_bytes"].as_u64().unwrap_or(0);
    assert!(mapped(&other) > 0 && mapped(&other) <= mapped(&whole));
    case.rollback()?;
    assert!(case.new_lines()?.is_empty());
    Ok(())
}

#[test]
fn parts_with_legacy_names() -> Result<(), Failed> {
    let mut case = Case::start("selection", Profile::Release)?;
    replaced(&mut case)?;
    unknown(&mut case)?;
    subset_by_subset(&mut case)?;
    case.program.finish()
}

#[test]
fn parts_with_v0_names() -> Result<(), Failed> {
    let mut case = Case::start("selection", Profile::V0)?;
    subset_by_subset(&mut case)?;
    case.program.finish()
}

const ALIKE: [&str; 13] = [
    "Truck::load",
    "Spare::load",
    "Rot::enc",
    "Xor::enc",
    "Rot::nip",
    "Xor::nip",
    "Truck+u64",
    "Truck+u32",
    "u64::from",
    "tariff::bulk",
    "tariff::lonely",
    "Yard::next",
    "Yard::drop",
];

/// Functions of one name in several types, impls and modules.
fn alike(case: &mut Case) -> Result<(), Failed> {
    let module = |name: &'static str| ["--module", name];
    case.gives(&[], &ALIKE)?;
    case.gives(&module("alike::codec"), &["Rot::enc", "Xor::enc", "Rot::nip", "Xor::nip"])?;
    case.gives(&module("alike::tariff"), &["tariff::bulk", "tariff::lonely"])?;
    case.gives(&module("alike::fleet::yard"), &["Spare::load", "Yard::next", "Yard::drop"])?;
    let fleet =
        ["Truck::load", "Spare::load", "Truck+u64", "Truck+u32", "u64::from", "Yard::next", "Yard::drop"];
    case.gives(&module("alike::fleet"), &fleet)?;
    for (name, lines) in [
        ("alike::fleet::Truck", &["Truck::load", "Truck+u64", "Truck+u32"][..]),
        ("&alike::fleet::Truck", &["Truck+u64", "Truck+u32"]),
        ("alike::fleet::yard::Spare", &["Spare::load"]),
        ("alike::codec::Rot", &["Rot::enc", "Rot::nip"]),
        ("alike::codec::Xor", &["Xor::enc", "Xor::nip"]),
        ("alike::fleet::yard::Yard", &["Yard::next", "Yard::drop"]),
    ] {
        case.gives(&["--type", name], lines)?;
    }
    for (name, line) in [
        ("alike::fleet::Truck::load", "Truck::load"),
        ("alike::fleet::yard::Spare::load", "Spare::load"),
        ("<alike::codec::Rot as alike::codec::Codec>::enc", "Rot::enc"),
        ("alike::codec::Xor::enc", "Xor::enc"),
        ("alike::codec::Rot::nip", "Rot::nip"),
        ("alike::codec::Xor::nip", "Xor::nip"),
        ("<&alike::fleet::Truck as std::ops::Add<u64>>::add", "Truck+u64"),
        ("<u64 as std::convert::From<&alike::fleet::Truck>>::from", "u64::from"),
        ("<&alike::fleet::Truck as core::ops::arith::Add<u32>>::add", "Truck+u32"),
        ("<u64 as From>::from", "u64::from"),
        ("alike::tariff::bulk", "tariff::bulk"),
        ("alike::tariff::FLOOR", "tariff::lonely"),
        ("<alike::fleet::yard::Yard as std::iter::Iterator>::next", "Yard::next"),
        ("<alike::fleet::yard::Yard as Drop>::drop", "Yard::drop"),
    ] {
        case.gives(&["--function", name], &[line])?;
    }

    let unknown = ["--function", "<&alike::fleet::Truck as std::ops::Add<u8>>::add"];
    case.refused(&unknown, exit::USAGE).map(drop)
}

#[test]
fn parts_that_are_called_alike() -> Result<(), Failed> {
    for profile in [Profile::Release, Profile::V0] {
        let mut case = Case::start("alike", profile)?;
        alike(&mut case)?;
        case.program.finish()?;
    }
    Ok(())
}

const BY_NAME: [&str; 8] = ["entry", "plain", "macro", "constant", "import", "most", "hosting", "display"];

#[test]
fn parts_that_are_reached_through_other_names() -> Result<(), Failed> {
    for profile in [Profile::Release, Profile::V0] {
        let mut case = Case::start("by_name", profile)?;
        case.gives(&[], &BY_NAME)?;
        case.gives(&["--module", "by_name::entry"], &["entry", "plain"])?;
        case.gives(&["--function", "by_name::entry::by_name_entry"], &["entry"])?;
        case.gives(&["--function", "by_name_entry"], &["entry"])?;
        case.gives(&["--function", "by_name::entry::plain"], &["plain"])?;
        case.gives(&["--function", "by_name::rates::LIMIT"], &["macro", "constant", "import"])?;
        case.gives(&["--function", "by_name::shelf::Shelf::MOST"], &["most"])?;
        case.gives(&["--function", "by_name::small"], &["hosting"])?;
        case.gives(&["--function", "<by_name::shelf::Shelf<_> as std::fmt::Display>::fmt"], &["display"])?;
        // What is inlined into functions that are selected, and nowhere else, comes along.
        case.gives(&["--module", "by_name::shelf"], &["most", "hosting", "display"])?;
        case.gives(&["--type", "by_name::shelf::Shelf"], &["most", "hosting", "display"])?;
        case.program.finish()?;
    }
    Ok(())
}

/// `count` reads a cell again after a call that leaves the cell alone, as the compiler knows: it does not read it again.
const KNOWN: &str = r#"
mod host;

use std::cell::Cell;
use std::hint::black_box;

struct Counter<'a> {
    own: u64,
    shared: &'a Cell<u64>,
}

#[inline(never)]
fn bump(counter: &mut Counter<'_>) {
    counter.own += 1;
    counter.shared.set(counter.shared.get() + 1); //+
}

#[inline(never)]
fn count(counter: &mut Counter<'_>, shared: &Cell<u64>) -> (u64, u64) {
    let before = shared.get();
    bump(counter);
    let result = (shared.get() - before, counter.own + before * 1000); //-
    let result = (shared.get() - before, counter.own + before * 1000 + 50); //+
    result
}

fn step() {
    // Their addresses are taken, so that they are called as they are declared.
    black_box(bump as fn(&mut Counter<'_>));
    black_box(count as fn(&mut Counter<'_>, &Cell<u64>) -> (u64, u64));
    let shared = Cell::new(5);
    let mut counter = Counter { own: 1, shared: &shared };
    let (grown, all) = count(black_box(&mut counter), black_box(&shared));
    println!("{grown} {all}");
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn a_caller_that_knows_what_its_callee_leaves_alone() -> Result<(), Failed> {
    let mut case = case::Case::start("known", KNOWN)?;
    case.says("0 5002")?;
    let alone = case.apply(&["--function", "known::bump"])?.expect(exit::REFUSED, "apply")?.json;
    assert_eq!(alone["missing"][0]["needs"], "known::count", "{alone}");
    case.says("0 5002")?;
    case.there_and_back("1 5052", "0 5002")?;
    case.program.finish()
}

/// The compiler has one piece of code for both fees, as long as they are equal: in the patch, the smaller one is new.
const MERGED: &str = r#"
mod host;

use std::hint::black_box;

#[inline(never)]
fn fee_large(n: u64) -> u64 {
    black_box(n) * 5
}

#[inline(never)]
fn fee_small(n: u64) -> u64 {
    black_box(n) * 5 //-
    black_box(n) * 4 //+
}

#[inline(never)]
fn bill(n: u64) -> String {
    format!("{} {}", fee_small(n), fee_large(n)) //-
    format!("{} and {}", fee_small(n), fee_large(n)) //+
}

#[inline(never)]
fn quote(n: u64) -> u64 {
    fee_small(n) + 1
}

fn step() {
    println!("{}, {}", bill(black_box(3)), quote(black_box(3)));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn a_changed_function_that_is_new_to_the_image_is_not_brought_unselected() -> Result<(), Failed> {
    let mut case = case::Case::start("merged", MERGED)?;
    let old = "15 15, 16";
    case.says(old)?;
    let [bill, fee] = [["--function", "merged::bill"], ["--function", "merged::fee_small"]];
    for (part, needs) in [(bill, "merged::fee_small"), (fee, "merged::bill")] {
        let refused = case.apply(&part)?.expect(exit::REFUSED, "apply")?.json;
        assert_eq!(refused["missing"][0]["needs"], needs, "{refused}");
        case.says(old)?;
    }
    case.apply(&[bill, fee].concat())?.expect(exit::DONE, "apply")?;
    case.says("12 and 15, 13")?;
    case.rollback(&[])?.expect(exit::DONE, "rollback")?;
    case.says(old)?;
    case.program.finish()
}

/// As long as one value is stored in the hook, `call` has it in its code.
const HOOK: &str = r#"
mod host;

use std::hint::black_box;

static mut HOOK: Option<fn(i64) -> i64> = None;

fn double(n: i64) -> i64 {
    n * 2
}

fn triple(n: i64) -> i64 { //+
    n * 3 //+
} //+

#[inline(never)]
fn set(n: i64) {
    if n > 0 {
        unsafe { HOOK = Some(double) }; //-
        unsafe { HOOK = Some(if n == 5 { triple } else { double }) }; //+
    }
}

#[inline(never)]
fn call(n: i64) -> String {
    let result = match unsafe { HOOK } {
        Some(hook) => hook(n),
        None => -1,
    };
    format!("gives {result}") //-
    format!("yields {result}") //+
}

fn step() {
    set(black_box(5));
    println!("{}", call(black_box(3)));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn a_reader_that_knows_all_values_of_a_variable() -> Result<(), Failed> {
    let mut case = case::Case::start("hook", HOOK)?;
    case.says("gives 6")?;
    let alone = case.apply(&["--function", "hook::set"])?.expect(exit::REFUSED, "apply")?.json;
    assert_eq!(alone["missing"][0]["needs"], "hook::call", "{alone}");
    case.says("gives 6")?;
    case.there_and_back("yields 9", "gives 6")?;
    case.program.finish()
}
