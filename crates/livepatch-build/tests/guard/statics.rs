//! Variables that keep their identity.

use super::support::{FAST, Pair, assert_found, assert_safe, codes};
use livepatch_build::guard::NewStatic;
use object::SymbolKind;

const STATICS: &str = r#"
use std::cell::RefCell;
use std::sync::{Mutex, OnceLock, atomic::*};
$PREFIX
struct Entry { $ENTRY }
static HITS: $HITS = <$HITS>::new(0);
static CACHE: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
static ONCE: OnceLock<$ONCE> = OnceLock::new();
thread_local! { static LOCAL: RefCell<$LOCAL> = RefCell::new(Default::default()); }
#[inline(never)]
fn touch(x: usize) -> usize {
    HITS.fetch_add(1, Ordering::Relaxed);
    ONCE.get_or_init(Default::default);
    LOCAL.with_borrow_mut(|l| *l = Default::default());
    CACHE.lock().unwrap().len() + x + $STEP
}
#[inline(never)] fn fill() { CACHE.lock().unwrap().push(unsafe { std::mem::zeroed() }); }
fn main() { fill(); println!("{}", touch(std::env::args().count())); }
"#;

const SAME: &[(&str, &str)] = &[
    ("$PREFIX", ""),
    ("$ENTRY", "a: u64"),
    ("$HITS", "AtomicU64"),
    ("$ONCE", "u32"),
    ("$LOCAL", "u64"),
    ("$STEP", "1"),
];

fn pair(flags: &[&str], changed: &[(&str, &str)]) -> Pair {
    let variants: Vec<_> = SAME
        .iter()
        .map(|(name, old)| {
            let new = changed.iter().find(|(changed, _)| changed == name).map(|(_, new)| *new);
            (*name, *old, new.unwrap_or(if *name == "$STEP" { "2" } else { old }))
        })
        .collect();
    Pair::varied(flags, STATICS, &variants)
}

fn local(pair: &Pair) -> String {
    let mut paths = pair.old_symbols.iter().filter(|s| s.kind == SymbolKind::Tls).map(|s| s.path.clone());
    paths.find(|path| path.starts_with("app::LOCAL")).unwrap_or_else(|| panic!("a thread-local in the image"))
}

#[test]
fn unchanged_variables_are_fine() {
    for flags in [FAST, &["-Copt-level=0"], &["-O", "-Csymbol-mangling-version=v0"], &["-O", "-Clto=fat"]] {
        let pair = pair(flags, &[("$PREFIX", "\n\nstatic NEW: AtomicU8 = AtomicU8::new(3);")]);
        let report = pair.check(&["app::touch"], &["app::HITS", "app::CACHE", "app::ONCE", &local(&pair)]);
        assert_safe(&report);
    }
}

#[test]
fn another_type_is_found() {
    for (changed, path, part) in [
        (("$HITS", "AtomicI64"), "app::HITS", "AtomicU64` -> `"),
        (("$HITS", "AtomicU32"), "app::HITS", "size: 8 bytes -> 4 bytes"),
        (("$ONCE", "u64"), "app::ONCE", "OnceLock<u32>` -> `"),
    ] {
        let pair = pair(FAST, &[changed]);
        let text = assert_found(&pair.check(&["app::touch"], &[path]), 7, path);
        assert!(text.contains(part), "{part} is missing in\n{text}");
        // The function alone does not name it as a variable; the check must come from the variable.
        assert!(!codes(&pair.check(&["app::touch"], &[])).contains(&7));
    }
    let pair = pair(FAST, &[("$LOCAL", "i64")]);
    let text = assert_found(&pair.check(&["app::touch"], &[&local(&pair)]), 7, "app::LOCAL");
    assert!(text.contains("i64"), "{text}");
}

#[test]
fn another_layout_behind_a_variable_is_found() {
    let pair = pair(FAST, &[("$ENTRY", "a: u64, b: u64")]);
    let report = pair.check(&[], &["app::CACHE"]);
    let text = assert_found(&report, 1, "app::Entry");
    assert!(text.contains("used by: `app::CACHE`"), "{text}");
    // Another variable does not lead to it.
    assert!(!codes(&pair.check(&[], &["app::HITS"])).contains(&1));
}

#[test]
fn variables_without_debug_information_are_refused_unless_they_are_the_runtimes() {
    let poor = [FAST, &["-Cdebuginfo=0"]].concat();
    let (old, new) = {
        let fill = |step: &str| {
            SAME.iter().fold(STATICS.to_owned(), |text, (name, value)| {
                text.replace(name, if *name == "$STEP" { step } else { value })
            })
        };
        (fill("1"), fill("2"))
    };
    let pair = Pair::with(&poor, &poor, &old, &new);
    assert_found(&pair.check(&[], &["app::HITS"]), 10, "app::HITS");
    assert_safe(&pair.check(&[], &["std::panicking::panic_count::GLOBAL_PANIC_COUNT"]));
}

#[test]
fn digests_of_new_variables_follow_the_layout_only() {
    let digest = |flags: &[&str], source: &str| {
        let pair = Pair::new(flags, "fn main() {}", source);
        let symbol = pair.new_symbols.iter().find(|s| s.path == "app::NEW").expect("kept").clone();
        let new = NewStatic { symbol: symbol.name.clone(), new: symbol.place(), size: symbol.size };
        let report = pair.run(&[], &[], &[], &[new]);
        let [info] = &report.new_statics[..] else { panic!("{report:?}") };
        assert_eq!(info.path, "app::NEW");
        assert!(info.place.is_some());
        info.type_digest
    };
    let source = |fields: &str, before: &str| {
        format!(
            "use std::sync::Mutex; {before} struct S {{ {fields} }}
             static NEW: Mutex<Vec<S>> = Mutex::new(Vec::new());
             fn main() {{ NEW.lock().unwrap().push(unsafe {{ std::mem::zeroed() }}); }}"
        )
    };
    let first = digest(FAST, &source("a: u32", ""));
    assert_eq!(first, digest(FAST, &source("a: u32", "\n\nfn other() {}\n")));
    assert_eq!(first, digest(&["-Copt-level=0"], &source("a: u32", "")));
    assert_ne!(first, digest(FAST, &source("a: i32", "")));
    assert_ne!(first, digest(FAST, &source("b: u32", "")));
}
