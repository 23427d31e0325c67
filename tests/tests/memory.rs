//! What a patch costs the process in memory.

use livepatch_tests::Failed;
use livepatch_tests::case::Case;
use livepatch_tests::tools::exit;

const SOURCE: &str = r#"
mod host;

#[inline(never)]
fn word() -> &'static str {
    "old" //-
    "new" //+
}

fn step() {
    println!("{}", word());
}

fn main() {
    host::serve(step);
}
"#;

/// Resident memory in KiB: private, and of files.
#[derive(Clone, Copy, Debug)]
struct Resident {
    private: u64,
    files: u64,
}

fn resident(case: &Case) -> Result<Resident, Failed> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", case.pid()))?;
    let line = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line")?;
        Ok::<u64, Failed>(value.trim().trim_end_matches(" kB").parse()?)
    };
    Ok(Resident { private: line("RssAnon:")?, files: line("RssFile:")? })
}

/// The mappings of a patch, the journal and the registry are some pages each; the unwind tables of all modules, which the tool
/// reads, are hundreds, and do not become resident.
#[test]
fn a_patch_costs_little_more_than_its_code() -> Result<(), Failed> {
    let mut case = Case::start("memory", SOURCE)?;
    case.says("old")?;
    let before = resident(&case)?;
    case.apply(&[])?.expect(exit::DONE, "apply")?;
    case.says("new")?;
    let after = resident(&case)?;
    assert!(after.private <= before.private + 128, "{before:?} {after:?}");
    assert!(after.files <= before.files + 128, "{before:?} {after:?}");
    case.rollback(&[])?.expect(exit::DONE, "rollback")?;
    for _ in 0..10 {
        case.there_and_back("new", "old")?;
    }
    let end = resident(&case)?;
    assert!(end.private <= after.private + 16 && end.files <= after.files + 128, "{after:?} {end:?}");
    Ok(())
}
