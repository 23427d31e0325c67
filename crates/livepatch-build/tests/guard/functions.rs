//! Signatures, calling conventions, missing debug information, foreign code, shared addresses.

use super::support::{FAST, Pair, assert_found, assert_safe};
use livepatch_build::guard::{ChangedFunction, inlined_at, trees};
use livepatch_patch::LinkAddr;

const V0: &[&str] = &["-O", "-Ccodegen-units=1", "-Csymbol-mangling-version=v0"];

const CALLED: &str = "
    $ATTRIBUTE
    $ABI fn price($PARAMS) -> $RESULT { $BODY }
    fn main() {
        let n = std::env::args().count() as _;
        let p: [$ABI fn($TYPES) -> $RESULT; 1] = [price];
        println!(\"{:?}\", std::hint::black_box(p)[0]($ARGS));
    }";

fn called(flags: &[&str], attribute: &str, old: [&str; 6], new: [&str; 6]) -> Pair {
    let names = ["$ABI", "$PARAMS", "$TYPES", "$RESULT", "$BODY", "$ARGS"];
    let mut variants = vec![("$ATTRIBUTE", attribute, attribute)];
    variants.extend(names.iter().zip(old.iter().zip(new)).map(|(name, (old, new))| (*name, *old, new)));
    Pair::varied(flags, CALLED, &variants)
}

const OLD: [&str; 6] = ["", "net: u64, rate: u64", "u64, u64", "u64", "net * rate", "n, 2"];

#[test]
fn signatures_are_compared_under_an_unchanged_symbol() {
    for (flags, attribute, path) in [
        (V0, "#[inline(never)]", "app::price"),
        (&["-Copt-level=0", "-Csymbol-mangling-version=v0"], "", "app::price"),
        (FAST, "#[unsafe(no_mangle)] pub", "price"),
    ] {
        assert_safe(
            &called(flags, attribute, OLD, [OLD[0], "b: u64, a: u64", OLD[2], OLD[3], "a * b + 1", OLD[5]])
                .check(&[path], &[]),
        );
        for (new, part) in [
            (["", "net: u64", "u64", "u64", "net * 7", "n"], "parameters: (u64, u64) -> (u64)"),
            (
                ["", "net: u64, rate: u32", "u64, u32", "u64", "net * rate as u64", "n, 2"],
                "(u64, u64) -> (u64, u32)",
            ),
            (
                ["", "net: u32, rate: u64", "u32, u64", "u64", "net as u64 * rate", "n, 2"],
                "(u64, u64) -> (u32, u64)",
            ),
            (
                ["", "net: u64, rate: u64", "u64, u64", "i64", "(net * rate) as i64", "n, 2"],
                "result: u64 -> i64",
            ),
            (
                ["", "net: u64, _: u8, rate: u64", "u64, u8, u64", "u64", "net * rate", "n, 1, 2"],
                "(u64, u8, u64)",
            ),
        ] {
            let text = assert_found(&called(flags, attribute, OLD, new).check(&[path], &[]), 5, path);
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}

#[test]
fn arguments_that_the_optimiser_removed_are_noticed() {
    let source = "
        #[inline(never)] fn level(verbose: bool, n: u32) -> u32 { println!(\"{n}\"); $BODY }
        fn main() { println!(\"{}\", level(std::env::args().count() > 1, std::process::id())); }";
    let pair = Pair::varied(FAST, source, &[("$BODY", "n + 1", "n + verbose as u32")]);
    let text = assert_found(&pair.check(&["app::level"], &[]), 6, "app::level");
    assert!(text.contains("altered by the optimiser -> as declared"), "{text}");
    let pair = Pair::varied(FAST, source, &[("$BODY", "n + 1", "n + 2")]);
    assert_safe(&pair.check(&["app::level"], &[]));
}

#[test]
fn unknown_functions_are_refused() {
    let source = "#[inline(never)] fn f(x: u32) -> u32 { println!(\"{x}\"); x + $STEP }
        fn main() { println!(\"{}\", f(std::process::id())); }";
    let (old, new) = (source.replace("$STEP", "1"), source.replace("$STEP", "2"));
    let full = [FAST, &["-Cdebuginfo=2"]].concat();
    assert_safe(&Pair::with(&full, &full, &old, &new).check(&["app::f"], &[]));
    for level in ["-Cdebuginfo=0", "-Cdebuginfo=1", "-Cdebuginfo=line-tables-only"] {
        let poor = [FAST, &[level]].concat();
        for (before, after, build) in [
            (&poor, &full, "the running program"),
            (&full, &poor, "the fixed build"),
            (&poor, &poor, "the running program"),
        ] {
            let text =
                assert_found(&Pair::with(before, after, &old, &new).check(&["app::f"], &[]), 10, "app::f");
            assert!(text.contains(build), "{text}");
        }
    }
}

#[test]
fn assembly_is_refused() {
    let source = "
        core::arch::global_asm!(\".section .text.seven,\\\"ax\\\",@progbits\", \".globl seven\", \".type seven,@function\",
            \"seven: mov $$$STEP, %eax\", \"ret\", \".size seven, . - seven\", options(att_syntax));
        unsafe extern \"C\" { fn seven() -> u32; }
        fn main() { println!(\"{}\", unsafe { seven() }); }";
    let pair = Pair::varied(FAST, source, &[("$STEP", "7", "8"), ("$$", "$", "$")]);
    assert_found(&pair.check(&["seven"], &[]), 11, "seven");
}

#[test]
fn names_that_share_an_address_must_stay_together() {
    let merged = "
        #[unsafe(no_mangle)] #[inline(never)] pub fn retries(x: u32) -> u32 { x.rotate_left(3) ^ 0x1234 }
        #[unsafe(no_mangle)] #[inline(never)] pub fn replicas(x: u32) -> u32 { x.rotate_left($STEP) ^ 0x1234 }
        fn main() { let n = std::process::id(); println!(\"{} {}\", retries(n), replicas(n)); }";
    let pair = Pair::varied(FAST, merged, &[("$STEP", "3", "4")]);
    let address = |name: &str| pair.old_symbols.iter().find(|s| s.name == name).expect("exported").addr;
    assert_eq!(address("retries"), address("replicas"), "the compiler is expected to merge equal functions");
    let report = pair.check(&["replicas"], &[]);
    let text = assert_found(&report, 9, "replicas");
    assert!(text.contains("`retries` has the same address"), "{text}");

    let both = merged.replace("rotate_left(3)", "rotate_left($STEP)");
    let pair = Pair::varied(FAST, &both, &[("$STEP", "3", "4")]);
    let known: Vec<_> = pair
        .check(&["retries"], &[])
        .refusals()
        .map(|finding| finding.code.0)
        .filter(|code| *code == 9)
        .collect();
    assert!(known.is_empty(), "both changed the same way");
}

#[test]
fn inlined_functions_are_listed() {
    let source = "
        fn inner(x: u32) -> u32 { x.wrapping_mul($STEP) }
        fn middle(x: u32) -> u32 { inner(x) ^ 5 }
        #[inline(never)] fn outer(x: u32) -> u32 { middle(x) + 1 }
        fn main() { println!(\"{}\", outer(std::process::id())); }";
    let pair = Pair::varied(FAST, source, &[("$STEP", "77", "78")]);
    let report = pair.check(&["app::outer"], &[]);
    assert_safe(&report);
    let info = &report.functions[0];
    assert_eq!(info.path, "app::outer");
    let place = info.place.as_ref().expect("declared somewhere");
    assert!(place.file.ends_with("main.rs") && place.line == 4, "{place}");
    for path in ["app::middle", "app::inner"] {
        assert!(info.inlined.iter().any(|f| f.path == path && f.place.is_some()), "{:?}", info.inlined);
    }
    let [ChangedFunction { symbol, old, old_size, .. }] = &pair.changed("app::outer")[..] else {
        panic!("one")
    };
    let listed = trees(&pair.old, &[(symbol, *old)]).expect("sound").remove(0).expect("described").inlined;
    assert_eq!(listed, info.inlined);
    let addrs: Vec<LinkAddr> = (0..*old_size).map(|i| LinkAddr(old.0 + i)).collect();
    let stacks = inlined_at(&pair.old, &addrs).expect("sound");
    let deepest = stacks.iter().max_by_key(|stack| stack.len()).expect("some");
    let paths: Vec<&str> = deepest.iter().map(|f| f.path.as_str()).collect();
    assert!(paths.ends_with(&["app::inner", "app::middle", "app::outer"]), "{paths:?}");
}
