//! Maps of real linkers, checked against the symbols of the image.

use crate::images::symbols;
use crate::project::Project;
use crate::test;
use crate::tool::Built;
use libtest_mimic::Trial;
use livepatch_build::baseline::Baseline;
use livepatch_build::store::Store;

pub fn tests() -> Vec<Trial> {
    vec![
        test("map_of_rust_lld", || map_agrees_with_symbols("")),
        test("map_of_gnu_ld", || map_agrees_with_symbols("-C link-arg=-fuse-ld=bfd")),
    ]
}

fn map_agrees_with_symbols(flags: &str) {
    let project = Project::workspace();
    let built: Vec<Built> = project.try_build(&["--release"], &[("RUSTFLAGS", flags)]).answer();
    let store = Store::at(project.store()).unwrap();
    let build = Baseline::open(&store, &built[0].manifest.build_id().to_string()).unwrap().build().unwrap();
    let symbols = symbols(&build.image);
    let mut agreed = 0;
    for placed in build.map.sections() {
        let name = placed.section.strip_prefix(".text.").unwrap_or("");
        let named: Vec<_> = symbols.range((name.to_owned(), 0)..=(name.to_owned(), u64::MAX)).collect();
        if !named.is_empty() {
            assert!(named.iter().any(|(_, address)| placed.addr.0 == *address), "{placed:?} {named:?}");
            agreed += 1;
        }
    }
    let of_program = build.map.sections().iter().filter(|placed| placed.file.contains("/app-")).count();
    assert!(agreed > 100 && of_program > 5, "{agreed} functions, {of_program} sections of the program");
    let std = build.map.sections().iter().find(|placed| placed.file.contains("libstd-")).unwrap();
    assert!(std.member.as_deref().unwrap().ends_with(".o") && std.size > 0);
}
