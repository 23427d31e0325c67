//! Programs that patch themselves: one program, built once for each way to build, run in many surroundings.

mod start;

use livepatch_tests::profile::Profile;
use livepatch_tests::self_patching::{Case, build, built, signal, unprivileged};
use livepatch_tests::tools;
use livepatch_tests::{Failed, fail};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn a_stripped_program_under_load() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let before = case.ask("resources")?;
    case.live()?;
    case.expect("race FIX", "1 applied 7 already")?;
    case.expect("rollback", "took out 1")?;
    let after = case.ask("resources")?;
    // The load's threads have ended or are about to; nothing else may have come.
    assert_eq!(before.split(' ').next(), after.split(' ').next(), "descriptors");
    case.finish()
}

#[test]
fn idle_again_as_before() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let before = case.ask("resources")?;
    case.expect("apply FIX", "applied")?;
    case.expect("rollback", "took out 1")?;
    assert_eq!(before, case.ask("resources")?);
    case.finish()
}

#[test]
fn panics_that_abort() -> Result<(), Failed> {
    let built = build(Profile::Abort)?;
    let mut case = Case::of(&built, |_| {})?;
    case.live()?;
    case.finish()
}

#[test]
fn an_unprivileged_user() -> Result<(), Failed> {
    let mut case = Case::of(built(), unprivileged)?;
    case.live()?;
    case.finish()
}

#[test]
fn a_containers_seccomp_filter() -> Result<(), Failed> {
    let mut case = Case::of(built(), unprivileged)?;
    case.expect("sandbox", "sandboxed true")?;
    case.live()?;
    case.finish()
}

#[test]
fn the_file_was_replaced_meanwhile() -> Result<(), Failed> {
    let mut case = Case::start()?;
    fs::remove_file(&case.file)?;
    fs::write(&case.file, "#!/bin/false\n")?;
    case.live()?;
    case.finish()
}

#[test]
fn an_unchanged_caller_of_the_patched_function() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("within FIX", "old applied")?;
    case.expect("rollback", "took out 1")?;
    let answer = case.ask("within FIX")?;
    assert!(answer.ends_with(" new"), "{answer}");
    case.expect("rollback", "took out 1")?;
    case.expect("thread FIX", "applied")?;
    assert_eq!(case.program.line()?, "joined");
    case.finish()
}

#[test]
fn a_caller_inside_a_changed_function_is_told_at_once() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let started = Instant::now();
    case.expect(
        "inside FIX",
        "around error caller-inside self_patching::around: the calling thread is inside self_patching::around",
    )?;
    case.expect("say", "old")?;
    case.expect("apply FIX", "applied")?;
    case.expect(
        "inside-rollback",
        "AROUND error caller-inside self_patching::around: the calling thread is inside `self_patching::around` of patch",
    )?;
    case.expect("say", "new")?;
    // The deadline of each is 30 seconds.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    case.expect("rollback", "took out 1")?;
    case.finish()
}

#[test]
fn another_thread_inside_makes_it_busy() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("occupy", "occupied")?;
    case.expect("deadline 5000", "set")?;
    case.expect("apply FIX", "error busy")?;
    case.expect("say", "old")?;
    case.expect("deadline 30000", "set")?;
    case.expect("leave", "left")?;
    case.expect("apply FIX", "applied")?;
    case.finish()
}

#[test]
fn a_helper_that_starts_late() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("occupy", "occupied")?;
    case.expect("deadline 10000", "set")?;
    let started = Instant::now();
    case.program.send(&format!("apply {}", case.patch))?;
    let helper = case.helper()?;
    let found = started.elapsed();
    signal("-STOP", helper)?;
    // More than the two seconds that are left for undoing: counted from here, its time would end after the program's.
    std::thread::sleep(Duration::from_millis(2500));
    signal("-CONT", helper)?;
    let continued = started.elapsed();
    let answer = case.program.line()?;
    assert!(
        answer.starts_with("error busy"),
        "{answer}; found after {found:?}, continued after {continued:?}, answered after {:?}",
        started.elapsed()
    );
    case.expect("leave", "left")?;
    case.finish()
}

#[test]
fn a_helper_that_is_killed() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("load 2", "loaded")?;
    for _ in 0..5 {
        case.expect("occupy", "occupied")?;
        case.program.send(&format!("apply {}", case.patch))?;
        signal("-KILL", case.helper()?)?;
        let answer = case.program.line()?;
        assert!(answer.starts_with("error helper-ended"), "{answer}");
        case.expect("say", "old")?;
        case.expect("leave", "left")?;
        case.expect("apply FIX", "applied")?;
        case.expect("rollback", "took out 1")?;
    }
    case.expect("unload", "0 wrong")?;
    case.finish()
}

#[test]
fn a_helper_that_hangs() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("load 2", "loaded")?;
    case.expect("apply FIX", "applied")?;
    case.expect("rollback", "took out 1")?;
    case.expect("occupy", "occupied")?;
    case.expect("deadline 1000", "set")?;
    for round in 0..8 {
        case.program.send(&format!("apply {}", case.patch))?;
        let helper = case.helper()?;
        // At another point of its work in each round.
        std::thread::sleep(Duration::from_millis(round * 7));
        signal("-STOP", helper)?;
        let answer = case.program.line()?;
        assert!(answer.starts_with("error helper-") && !answer.contains("LATE"), "{answer}");
        case.expect("say", "old")?;
    }
    case.expect("leave", "left")?;
    case.expect("deadline 30000", "set")?;
    case.expect("apply FIX", "applied")?;
    case.expect("unload", "0 wrong")?;
    case.finish()
}

/// A start of such a file is not traceable by whoever starts it, nor must the program run again instead.
#[test]
fn a_program_with_rights_of_its_own() -> Result<(), Failed> {
    let mut case = Case::placed(built(), unprivileged, |file| {
        let mode = fs::Permissions::from_mode(0o4755);
        Ok(fs::set_permissions(file, mode)?)
    })?;
    let answer = case.ask("apply FIX")?;
    let is_root = fs::metadata("/proc/self")?.uid() == 0;
    // Whoever runs the tests as a user gets a program with that user's rights: nothing is special then.
    let expected = if is_root {
        "error helper-ended: the helper ended without a report; it said: the executable"
    } else {
        "applied"
    };
    assert!(answer.starts_with(expected), "{answer}");
    case.finish()
}

#[test]
fn deadlines_hold_for_every_patch_file_and_however_long_they_are() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let pipe = case.folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status()?;
    assert!(made.success());
    case.expect("deadline 3000", "set")?;
    for patch in [pipe.to_str().ok_or("a path that is no text")?, "/dev/zero"] {
        case.expect(&format!("apply {patch}"), "error read")?;
    }
    fs::remove_file(pipe)?;
    case.expect("deadline forever", "set")?;
    case.expect("apply FIX", "applied")?;
    case.finish()
}

#[test]
fn the_helper_has_none_of_the_programs_descriptors() -> Result<(), Failed> {
    // The input of the program is inherited by whatever it starts carelessly.
    let mut case = Case::start()?;
    case.expect("occupy", "occupied")?;
    case.expect("deadline 3000", "set")?;
    let own = |file: &str| fs::read_link(format!("/proc/{}/fd/{file}", case.program.pid()));
    let inherited = [own("0")?, own("1")?, own("2")?];
    case.program.send(&format!("apply {}", case.patch))?;
    let helper = case.helper()?;
    let mut links = Vec::new();
    for entry in fs::read_dir(format!("/proc/{helper}/fd"))?.flatten() {
        links.extend(fs::read_link(entry.path()));
    }
    assert!(links.len() >= 3, "{links:?}");
    assert!(
        !links.iter().any(|link| inherited.contains(link) && link != Path::new("/dev/null")),
        "{links:?}"
    );
    let answer = case.program.line()?;
    assert!(answer.starts_with("error busy"), "{answer}");
    case.finish()
}

#[test]
fn a_program_that_waits_for_all_its_children_does_not_see_the_helper() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("children count", "0")?;
    case.expect("children wait", "waiting")?;
    case.expect("apply FIX", "applied")?;
    case.expect("rollback", "took out 1")?;
    case.expect("children seen", "0 signals collected 0")?;
    case.expect("children end", "own true")?;
    case.expect("children seen", "1 signals")?;
    case.finish()
}

#[test]
fn a_program_that_ignores_its_children() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("children ignore", "0")?;
    case.live()?;
    case.expect("children any", "-1")?;
    case.finish()
}

#[test]
fn a_program_that_orphans_come_to_keeps_no_dead_helper() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("children subreaper", "0")?;
    case.live()?;
    case.expect("children any", "-1")?;
    case.finish()
}

#[test]
fn the_tool_in_place_of_the_executable() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let tool = tools::folder().join("livepatch");
    case.expect(&format!("tool {}", tool.display()), "set")?;
    case.live()?;
    case.expect("tool /nowhere/livepatch", "set")?;
    let answer = case.ask("apply FIX")?;
    let is_right = answer.starts_with("error helper: cannot start /nowhere/livepatch: No such file");
    assert!(is_right && answer.contains("has to be the path"), "{answer}");
    case.expect("tool /bin/true", "set")?;
    case.expect("apply FIX", "error helper-ended")?;
    case.finish()
}

#[test]
fn a_tool_that_hangs_or_says_something_else() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let tool = case.folder.path().join("tool");
    let write = |text: &str| {
        fs::write(&tool, text)?;
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755))
    };
    write("#!/bin/sh\nexec sleep 1000\n")?;
    case.expect(&format!("tool {}", tool.display()), "set")?;
    case.expect("deadline 1000", "set")?;
    case.expect("apply FIX", "error helper-deadline: the helper had no answer after")?;
    case.expect("status", "error helper-deadline")?;
    write("#!/bin/sh\necho nonsense\n")?;
    case.expect("deadline 30000", "set")?;
    case.expect("apply FIX", "error helper: the helper's report is not understood")?;
    write("#!/bin/sh\necho it is broken >&2; exit 1\n")?;
    case.expect("apply FIX", "error helper-ended: the helper ended without a report; it said: it is broken")?;
    fs::remove_file(&tool)?;
    case.expect("say", "old")?;
    case.finish()
}

#[test]
fn a_call_that_waits_for_others_until_its_deadline() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("occupy", "occupied")?;
    case.expect("deadline 60000", "set")?;
    case.expect("behind FIX", "begun")?;
    // The other call is under way until the occupant leaves.
    case.helper()?;
    case.expect("deadline 300", "set")?;
    case.expect("status", "error in-progress: another operation of this program was under way for")?;
    case.expect("rollback", "error in-progress")?;
    case.program.send("leave")?;
    let mut answers = [case.program.line()?, case.program.line()?];
    answers.sort();
    assert!(answers[0].starts_with("behind: applied") && answers[1] == "left", "{answers:?}");
    case.expect("say", "new")?;
    case.finish()
}

#[test]
fn the_helper_is_permitted_to_trace_and_then_nobody() -> Result<(), Failed> {
    let mut case = Case::of(built(), unprivileged)?;
    case.expect("occupy", "occupied")?;
    case.expect("watch-permits", "sandboxed true")?;
    case.expect("deadline 5000", "set")?;
    case.program.send(&format!("apply {}", case.patch))?;
    let helper = case.helper()?;
    // Where Yama restricts tracing, the noted call was not made and it is refused.
    let answer = case.program.line()?;
    assert!(answer.starts_with("error busy") || answer.starts_with("error permission"), "{answer}");
    assert_eq!(case.ask("permits")?, format!("{helper} 0"));
    case.finish()
}

#[test]
fn what_may_not_be_traced() -> Result<(), Failed> {
    let mut case = Case::of(built(), unprivileged)?;
    case.expect("dumpable no", "0")?;
    let answer = case.ask("apply FIX")?;
    let is_right = answer.starts_with("error permission: not permitted to trace process");
    assert!(is_right && answer.contains("prctl(PR_SET_DUMPABLE, 1)"), "{answer}");
    case.expect("dumpable yes", "0")?;
    case.expect("apply FIX", "applied")?;
    case.expect("rollback", "took out 1")?;
    case.expect("forbid", "sandboxed true")?;
    case.expect("apply FIX", "error permission")?;
    case.expect("say", "old")?;
    case.finish()
}

#[test]
fn a_debugger_at_the_program_is_named() -> Result<(), Failed> {
    let mut case = Case::start()?;
    let pid = case.program.pid().to_string();
    let strace = ["strace", "-f", "-o", "/dev/null", "-p", &pid];
    let gdb = ["gdb", "-nx", "-q", "-batch", "-ex", "continue", "-p", &pid];
    for debugger in [&strace[..], &gdb[..]] {
        let mut tracer = Command::new(debugger[0]).args(&debugger[1..]).spawn()?;
        let attached = wait_for_tracer(&pid, tracer.id());
        let answer = attached.and_then(|()| case.ask("apply FIX"));
        signal("-TERM", tracer.id() as i32)?;
        tracer.wait()?;
        let answer = answer?;
        assert!(answer.starts_with("error busy") && answer.contains(debugger[0]), "{answer}");
    }
    case.live()?;
    case.finish()
}

/// Waits until a process is traced by another one.
fn wait_for_tracer(pid: &str, tracer: u32) -> Result<(), Failed> {
    let limit = Instant::now() + Duration::from_secs(30);
    while Instant::now() < limit {
        if fs::read_to_string(format!("/proc/{pid}/status"))?.contains(&format!("TracerPid:\t{tracer}\n")) {
            return Ok(());
        }
        std::thread::yield_now();
    }
    fail("the debugger did not attach")
}

#[test]
fn bytes_policy_and_a_patch_by_its_name() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("bytes FIX", "applied self_patching::")?;
    case.expect("say", "new")?;
    case.expect("rollback-of", "took out true")?;
    case.expect("say", "old")?;
    // Calls that are under way may finish in the old code: nobody waits for the occupant.
    case.expect("occupy", "occupied")?;
    case.expect("policy immediate", "set")?;
    case.expect("apply FIX", "applied")?;
    case.expect("say", "new")?;
    case.expect("leave", "left")?;
    case.finish()
}

#[test]
fn a_module_of_the_patch() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("module nowhere", "set")?;
    case.expect("apply FIX", "error not-held")?;
    case.expect("module self_patching", "set")?;
    let answer = case.ask("apply FIX")?;
    for function in ["word", "around", "stay"] {
        assert!(answer.contains(&format!("self_patching::{function}")), "{answer}");
    }
    case.finish()
}

#[test]
fn a_part_of_the_patch() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("select self_patching::nothing", "set")?;
    case.expect("apply FIX", "error not-held")?;
    case.expect("select self_patching::word", "set")?;
    assert_eq!(case.ask("apply FIX")?, "applied self_patching::word");
    case.expect("say", "new")?;
    // The function around this call is changed by the patch, but not by this part of it.
    case.expect("inside FIX", "around error already")?;
    case.finish()
}

#[test]
fn what_is_no_patch_and_what_is_not_there() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("apply /nowhere", "error read")?;
    case.expect("apply /proc/self/exe", "error mismatch")?;
    let damaged = case.folder.path().join("damaged");
    let mut bytes = fs::read(&built().patch)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes)?;
    case.expect(&format!("apply {}", damaged.display()), "error mismatch")?;
    fs::remove_file(damaged)?;
    let program = case.file.clone();
    // The marks of a helper's start without a helper's request: the program does not run, nor does anything else.
    let output = Command::new(program)
        .arg("livepatch-helper-8f3c5d1e9a7b42c6b0d4e85f17a26c93")
        .env_clear()
        .env("LIVEPATCH_HELPER_8F3C5D1E_MS", "1000")
        .output()?;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    case.finish()
}
