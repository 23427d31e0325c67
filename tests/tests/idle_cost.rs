//! What a program pays at every start for being able to patch itself: the loader's work on what the engine brings along.
//!
//! Counted are the things that the work is proportional to, because they are the same on every machine: addresses that the
//! loader fills in, and functions that it looks up by name. `docs/self-patching.md` has what they cost.

use livepatch_tests::Failed;
use livepatch_tests::fixture::Fixture;
use livepatch_tests::profile::Profile;
use livepatch_tests::project::Project;
use livepatch_tests::tools::{Ran, exit};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSymbol};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Addresses that the library may bring along. It brings 2,535; a table with the names of all error numbers, which one `{}`
/// can pull in, has 264 more, and each call site of `tracing` some ten.
const ADDRESSES: usize = 2_600;
/// Functions that it may import from the C library. It imports 15, nearly all of them by way of the standard library's threads
/// and clocks; one that is called by number elsewhere in the engine must not come back by way of the standard library.
const IMPORTS: usize = 16;

/// What a loader has to do for a program.
#[derive(Debug)]
struct Work {
    addresses: usize,
    imports: usize,
}

impl Work {
    fn of(program: &Path) -> Result<Self, Failed> {
        let bytes = fs::read(program)?;
        let file = ElfFile64::<object::Endianness>::parse(bytes.as_slice())?;
        let addresses = file.dynamic_relocations().ok_or("no dynamic relocations")?.count();
        let imports = file.dynamic_symbols().filter(|symbol| symbol.is_undefined()).count();
        Ok(Self { addresses, imports })
    }
}

#[test]
fn a_start_is_not_much_more_work() -> Result<(), Failed> {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/idle");
    let project = Project::new(&Fixture::read(&case)?, Profile::Release)?;
    let mut cargo = Command::new(env!("CARGO"));
    let built = Ran::of(cargo.args(["build", "--release"]).current_dir(project.path()))?;
    built.expect(exit::DONE, "cargo build")?;
    let folder = project.path().join("target/release");
    let (with, without) = (Work::of(&folder.join("with"))?, Work::of(&folder.join("without"))?);
    // The program that does not use it is not empty itself.
    assert!(without.addresses > 100 && without.imports > 20, "{without:?}");
    // If the library were left out of both, nothing would be measured.
    assert!(with.addresses > without.addresses + 100, "{with:?}, {without:?}");
    assert!(with.addresses <= without.addresses + ADDRESSES, "{with:?}, {without:?}");
    assert!(with.imports <= without.imports + IMPORTS, "{with:?}, {without:?}");
    Ok(())
}
