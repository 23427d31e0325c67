use super::*;
use ::object::{Object as _, ObjectSection as _, ObjectSymbol as _};

fn function(path: &str, start: u64, size: u64) -> CodeSymbol {
    CodeSymbol { path: path.into(), symbol: path.into(), start: RunAddr(start), size }
}

fn symbols(functions: Vec<CodeSymbol>) -> Symbols {
    let patch = PatchSymbols {
        id: Digest::of(b"patch"),
        name: "fix".into(),
        build_id: BuildId::new([1, 2]),
        state: PatchState::Applied,
        functions,
        start: RunAddr(0x1000),
        text: vec![0xcc; 0x1000],
        eh_frame: Some((RunAddr(0x2010), vec![0; 8])),
    };
    Symbols { pid: Some(1), patches: vec![patch] }
}

#[test]
fn an_address_belongs_to_the_function_that_it_is_in() {
    let symbols =
        symbols(vec![function("a", 0x1000, 0x10), function("b", 0x1010, 5), function("none", 0x1100, 0)]);
    let name = |at| symbols.name(RunAddr(at)).map(|name| (name.function.path.as_str(), name.offset));
    assert_eq!(name(0xfff), None);
    assert_eq!(name(0x1000), Some(("a", 0)));
    assert_eq!(name(0x100f), Some(("a", 0xf)));
    assert_eq!(name(0x1010), Some(("b", 0)));
    // Where a call at the very end returns to.
    assert_eq!(name(0x1015), Some(("b", 5)));
    assert_eq!(name(0x1016), None);
    assert_eq!(name(0x1100), None);
    assert_eq!(name(0), None);
}

#[test]
fn a_name_is_one_line_of_the_perf_map() {
    assert_eq!(perf_line(&function("<a::B as c::D>::e", 0x7f10, 0x20)), "7f10 20 <a::B as c::D>::e");
    assert_eq!(perf_line(&function("a\n1000 10 b", 0x10, 1)), "10 1 a?1000 10 b");
}

#[test]
fn the_symbol_file_says_what_is_where() {
    let symbols = symbols(vec![
        function("a", 0x1000, 0x10),
        function("zero\0byte", 0x1010, 5),
        function("b", 0x1020, 5),
    ]);
    let bytes = symbols.patches[0].object().unwrap();
    let file = ::object::File::parse(&*bytes).unwrap();
    let found: Vec<_> = file.symbols().map(|s| (s.name().unwrap(), s.address(), s.size())).collect();
    assert_eq!(found, [("a", 0x1000, 0x10), ("b", 0x1020, 5)]);
    let section = |name| file.section_by_name(name).map(|s| (s.address(), s.data().unwrap().to_vec()));
    assert_eq!(section(".text"), Some((0x1000, vec![0xcc; 0x1000])));
    assert_eq!(section(".eh_frame"), Some((0x2010, vec![0; 8])));
}
