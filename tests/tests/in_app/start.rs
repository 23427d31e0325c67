//! What happens before the helper runs: the program's memory and descriptors are shared then.

use livepatch_tests::self_patching::{Case, signal};
use livepatch_tests::{Failed, fail};
use std::process::Command;
use std::time::{Duration, Instant};

/// Somebody stops or kills what is to become the helper while it is still in the program's memory.
#[test]
fn a_helper_that_never_gets_to_start() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("hang", "hanging true")?;
    case.expect("deadline 3000", "set")?;
    for _ in 0..3 {
        case.expect("status", "error helper-deadline")?;
        case.expect("say", "old")?;
    }
    case.expect("deadline 30000", "set")?;
    for _ in 0..3 {
        case.program.send("status")?;
        let clones = case.clones(2)?;
        signal("-STOP", clones[1])?;
        signal("-KILL", clones[1])?;
        let answer = case.program.line()?;
        assert!(answer.starts_with("error helper: cannot start /proc/self/exe: it was killed"), "{answer}");
        case.expect("say", "old")?;
    }
    case.finish()
}

/// What the program had open, a listening socket for instance, is not kept by what it was about to start.
#[test]
fn a_program_that_is_killed_leaves_nothing_open() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("hang", "hanging true")?;
    case.program.send("status")?;
    for clone in case.clones(2)? {
        signal("-STOP", clone)?;
    }
    case.program.kill_and_wait_for_its_output()
}

#[test]
fn deadlines_that_pass_before_the_helper_starts() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("children subreaper", "0")?;
    let before = case.ask("resources")?;
    let started = Instant::now();
    for round in 0..30 {
        case.expect(&format!("deadline {}", round % 3), "set")?;
        let answer = case.ask("status")?;
        let is_right = answer.starts_with("error helper-deadline") || answer.starts_with("0 ");
        assert!(is_right && !answer.contains("LATE"), "{answer}");
    }
    // Each of them waits for the end of what it began, which no busy machine makes a second.
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    case.expect("deadline 30000", "set")?;
    case.expect("status", "0 ")?;
    assert_eq!(before, case.ask("resources")?);
    case.expect("children any", "-1")?;
    case.finish()
}

#[test]
fn a_limit_on_the_size_of_files() -> Result<(), Failed> {
    let mut case = Case::by("sh", &["-c", "ulimit -f 1; exec \"$@\"", "sh"])?;
    case.expect("apply FIX", "error helper: cannot make the helper's request (a file in memory): it has")?;
    case.expect("say", "old")?;
    case.finish()
}

#[test]
fn a_limit_on_open_files() -> Result<(), Failed> {
    let limited = |limit: u32| Case::by("sh", &["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh"]);
    // A call takes eleven, and leaves none open.
    let mut case = limited(16)?;
    case.live()?;
    case.finish()?;
    let mut case = limited(6)?;
    let answer = case.ask("apply FIX")?;
    assert!(answer.starts_with("error helper: cannot make") && answer.contains("RLIMIT_NOFILE"), "{answer}");
    case.expect("say", "old")?;
    case.finish()
}

/// A program that may have no more memory gets an error and runs on: nothing that a call needs ends it where there is none. After the first
/// call the C library keeps the stack of the thread, so that the next one comes further.
#[test]
fn a_limit_on_memory() -> Result<(), Failed> {
    let mut case = Case::start()?;
    case.expect("status", "0 ")?;
    let pid = case.program.pid().to_string();
    let now = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let now = 4 * now.split(' ').next().unwrap_or_default().parse::<u64>()?;
    let limit = |kib: u64| -> Result<(), Failed> {
        let limit = format!("--as={}:unlimited", kib << 10);
        let is_set = Command::new("prlimit").args(["--pid", &pid, &limit]).status()?.success();
        if is_set { Ok(()) } else { fail("prlimit") }
    };
    let mut refused = 0;
    for more in (0..=160).step_by(8) {
        limit(now + more)?;
        let answer = case.ask("status")?;
        let is_refused = answer.contains("RLIMIT_AS");
        assert!(is_refused || answer.starts_with("0 "), "{answer}");
        refused += u32::from(is_refused);
    }
    assert!(refused > 0);
    limit(now + (1 << 20))?;
    case.live()?;
    case.finish()
}

/// A program may have changed its root folder to one where there is none.
#[test]
fn no_dev_null() -> Result<(), Failed> {
    let hide = "mount -t tmpfs none /dev && exec \"$@\"";
    let mut case = Case::by("unshare", &["-m", "sh", "-c", hide, "sh"])?;
    case.live()?;
    case.finish()
}

/// Nothing works there, the tool neither: the error says so.
#[test]
fn no_proc() -> Result<(), Failed> {
    let mut case = Case::by("unshare", &["-m"])?;
    let space = format!("--mount=/proc/{}/ns/mnt", case.program.pid());
    let hidden = Command::new("nsenter").args([&space, "mount", "-t", "tmpfs", "none", "/proc"]).status()?;
    assert!(hidden.success());
    let answer = case.ask("apply FIX")?;
    assert!(
        answer.starts_with("error helper: cannot start") && answer.contains("mount it at /proc"),
        "{answer}"
    );
    case.expect("say", "old")?;
    case.finish()
}
