//! The patched module is a shared object in a program of another language.

use livepatch_tests::child::Program;
use livepatch_tests::fixture::{Fixture, Side};
use livepatch_tests::profile::Profile;
use livepatch_tests::project::Project;
use livepatch_tests::tools::{self, exit};
use livepatch_tests::{Failed, fail};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const PYTHON_HOST: &str = r#"
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
lib.total.restype = ctypes.c_uint64
lib.total.argtypes = [ctypes.c_uint64]
print("ready", flush=True)
for line in sys.stdin:
    print(lib.total(450), lib.calls())
    print(".", flush=True)
"#;

/// Before each second round it unloads the library and loads it again, as a rule to the same address.
const RELOADING_HOST: &str = r#"
import _ctypes, ctypes, sys
def load():
    lib = ctypes.CDLL(sys.argv[1])
    lib.total.restype = ctypes.c_uint64
    lib.total.argtypes = [ctypes.c_uint64]
    return lib
lib = load()
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    if number and number % 2 == 0:
        _ctypes.dlclose(lib._handle)
        assert sys.argv[1] not in open("/proc/self/maps").read()
        lib = load()
    print(lib.total(450), lib.calls())
    print(".", flush=True)
"#;

const C_HOST: &str = r#"
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>

int main(int argc, char **argv) {
    void *lib = dlopen(argv[1], RTLD_NOW);
    if (!lib) { fprintf(stderr, "%s\n", dlerror()); return 1; }
    uint64_t (*total)(uint64_t) = (uint64_t (*)(uint64_t))dlsym(lib, "total");
    uint32_t (*calls)(void) = (uint32_t (*)(void))dlsym(lib, "calls");
    char line[64];
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        unsigned long long price = total(450);
        printf("%llu %u\n.\n", price, calls());
        fflush(stdout);
    }
    return 0;
}
"#;

/// Old, new and again old answers of the library in one host.
fn in_host(host: impl FnOnce(&Path, &Path) -> Result<Command, Failed>) -> Result<(), Failed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/shared_object");
    let project = Project::new(&Fixture::read(&folder)?, Profile::Release)?;
    let library = project.ship()?;
    let mut program = Program::start(host(project.path(), &library)?)?;
    let pid = program.pid().to_string();
    let mut prints = |expected: &str| {
        let lines = program.round()?;
        if lines == [expected] { Ok(()) } else { fail(format!("expected `{expected}`, found {lines:?}")) }
    };
    prints("535 1")?;
    project.write(Side::New)?;
    let created = project.create("fix")?;
    created.ran.expect(exit::DONE, "create")?;
    tools::livepatch(&["apply".as_ref(), pid.as_ref(), created.file.as_os_str()])?
        .expect(exit::DONE, "apply")?;
    prints("536 2")?;
    prints("536 3")?;
    tools::livepatch(&["rollback", &pid])?.expect(exit::DONE, "rollback")?;
    prints("535 4")?;
    program.finish()
}

/// One base serves all thread-locals of a function; in a function of their own new ones are reached.
#[test]
fn new_thread_locals_have_functions_of_their_own() -> Result<(), Failed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/mixed_thread_locals");
    let project = Project::new(&Fixture::read(&folder)?, Profile::Release)?;
    let mut program = Program::start(python(project.path(), &project.ship()?)?)?;
    assert_eq!(program.round()?, ["535 1"]);
    project.write(Side::New)?;
    let refused = project.create("together")?.ran.expect(exit::REFUSED, "create")?;
    assert_eq!(refused.json["findings"][0]["code"], "LP0031", "{}", refused.json);
    let source = project.path().join("src/lib.rs");
    let text = std::fs::read_to_string(&source)?.replace("LAST.replace(net)", "swap(net)");
    let swap = "\n#[inline(never)]\nfn swap(net: u64) -> u64 {\n    LAST.replace(net)\n}\n";
    std::fs::write(&source, text + swap)?;
    let created = project.create("apart")?;
    created.ran.expect(exit::DONE, "create")?;
    let pid = program.pid().to_string();
    tools::livepatch(&["apply".as_ref(), pid.as_ref(), created.file.as_os_str()])?
        .expect(exit::DONE, "apply")?;
    assert_eq!(program.round()?, ["535 2"]);
    assert_eq!(program.round()?, ["985 3"], "the new thread-local keeps what it is given");
    tools::livepatch(&["rollback", &pid])?.expect(exit::DONE, "rollback")?;
    assert_eq!(program.round()?, ["535 4"]);
    program.finish()
}

/// The table of what a library exports stays as it is: nothing to patch if nothing else changed, and a note if something did.
#[test]
fn new_exports_are_told() -> Result<(), Failed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/shared_object");
    let project = Project::new(&Fixture::read(&folder)?, Profile::Release)?;
    project.ship()?;
    let export = "\n#[unsafe(no_mangle)]\npub extern \"C\" fn added(n: u64) -> u64 {\n    n + 1\n}\n";
    let add = || -> Result<(), Failed> {
        let source = project.path().join("src/lib.rs");
        let text = std::fs::read_to_string(&source)?;
        Ok(std::fs::write(&source, text + export)?)
    };
    let codes = |report: &Value| -> Vec<String> {
        let findings = report["findings"].as_array().into_iter().flatten();
        findings.map(|finding| format!("{} {}", finding["code"], finding["item"])).collect()
    };
    add()?;
    let alone = project.create("alone")?.ran.expect(exit::REFUSED, "create")?;
    assert_eq!(codes(&alone.json), [r#""LP0017" "added""#], "{}", alone.json);
    project.write(Side::New)?;
    add()?;
    let both = project.create("both")?.ran.expect(exit::DONE, "create")?;
    assert_eq!(codes(&both.json), [r#""LP0116" "added""#], "{}", both.json);
    Ok(())
}

/// What was done to a library that is gone says nothing of the one that was loaded in its place.
#[test]
fn a_library_that_was_loaded_again_is_as_in_its_file() -> Result<(), Failed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/shared_object");
    let project = Project::new(&Fixture::read(&folder)?, Profile::Release)?;
    let mut program = Program::start(python_with(RELOADING_HOST, project.path(), &project.ship()?)?)?;
    assert_eq!(program.round()?, ["535 1"]);
    project.write(Side::New)?;
    let created = project.create("fix")?;
    created.ran.expect(exit::DONE, "create")?;
    let pid = program.pid().to_string();
    let apply = || tools::livepatch(&["apply".as_ref(), pid.as_ref(), created.file.as_os_str()]);
    apply()?.expect(exit::DONE, "apply")?;
    assert_eq!(program.round()?, ["536 2"]);
    assert_eq!(program.round()?, ["535 1"], "the library was loaded again");
    assert_ne!(tools::livepatch(&["rollback", &pid])?.code, exit::DONE, "there is nothing to roll back");
    apply()?.expect(exit::DONE, "apply again")?;
    assert_eq!(program.round()?, ["536 2"]);
    program.finish()
}

#[test]
fn in_a_python_program() -> Result<(), Failed> {
    in_host(python)
}

fn python(dir: &Path, library: &Path) -> Result<Command, Failed> {
    python_with(PYTHON_HOST, dir, library)
}

fn python_with(host: &str, dir: &Path, library: &Path) -> Result<Command, Failed> {
    let script = dir.join("host.py");
    std::fs::write(&script, host)?;
    let mut command = Command::new("python3");
    command.arg(script).arg(library);
    Ok(command)
}

#[test]
fn in_a_c_program() -> Result<(), Failed> {
    in_host(|dir, library| {
        let (source, program) = (dir.join("host.c"), dir.join("c_host"));
        std::fs::write(&source, C_HOST)?;
        let status = Command::new("cc").arg(&source).arg("-o").arg(&program).arg("-ldl").status()?;
        if !status.success() {
            return fail("the C host does not build");
        }
        let mut command = Command::new(program);
        command.arg(library);
        Ok(command)
    })
}
