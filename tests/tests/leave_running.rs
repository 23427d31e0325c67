//! A function that never returns keeps its old frames, while everything else, and new calls of it, are new.

use livepatch_tests::Failed;
use livepatch_tests::child::Program;
use livepatch_tests::fixture::{Fixture, Side};
use livepatch_tests::profile::Profile;
use livepatch_tests::project::{Project, command};
use livepatch_tests::tools::{self, Ran, exit};
use std::path::Path;

const SOURCE: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

type Loop = (Sender<()>, Receiver<(u32, u32)>);

static WORK: Mutex<Option<Loop>> = Mutex::new(None);

/// Inlined into the loop.
fn mark() -> u32 {
    black_box(10) //-
    black_box(11) //+
}

#[inline(never)]
fn answer() -> u32 {
    black_box(20) //-
    black_box(21) //+
}

#[inline(never)]
fn accept_loop(jobs: &Receiver<()>, results: &Sender<(u32, u32)>) {
    for () in jobs {
        if results.send((mark(), answer())).is_err() {
            return;
        }
    }
}

fn start() -> Loop {
    let (job, jobs) = channel();
    let (result, results) = channel();
    std::thread::Builder::new().name("acceptor".into()).spawn(move || accept_loop(&jobs, &result)).ok();
    (job, results)
}

fn ask((job, results): &Loop) -> (u32, u32) {
    job.send(()).ok();
    results.recv().unwrap_or_default()
}

fn step() {
    let mut work = WORK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (mark, answer) = ask(work.get_or_insert_with(start));
    println!("running {mark} {answer}");
    let (mark, answer) = ask(&start());
    println!("fresh {mark} {answer}");
}

fn main() {
    host::serve(step);
}
"#;

fn run(program: &Program, verb: &str, file: &Path, more: &[&str]) -> Result<Ran, Failed> {
    let pid = program.pid().to_string();
    let mut args = vec![verb.as_ref(), pid.as_ref(), file.as_os_str()];
    args.extend(more.iter().map(std::ffi::OsStr::new));
    tools::livepatch(&args)
}

#[test]
fn an_accept_loop_goes_on_in_old_code_and_calls_new() -> Result<(), Failed> {
    let fixture = Fixture::inline("acceptor", SOURCE)?;
    let project = Project::new(&fixture, Profile::Release)?;
    let mut program = Program::start(command(&project.ship()?))?;
    let old = ["running 10 20", "fresh 10 20"];
    assert_eq!(program.round()?, old);
    project.write(Side::New)?;
    let created = project.create("fix")?;
    created.ran.expect(exit::DONE, "create")?;
    let file = &created.file;
    let busy = run(&program, "apply", file, &["--timeout", "1"])?.expect(exit::BUSY, "apply")?;
    assert_eq!(busy.json["inside"][0]["name"], "acceptor", "{}", busy.json);
    let ways_out = busy.json["leave_running"].as_array().ok_or("no way out is named")?;
    let paths: Vec<&str> = ways_out.iter().filter_map(|path| path.as_str()).collect();
    assert_eq!(paths, ["acceptor::accept_loop"], "{}", busy.json);
    assert_eq!(program.round()?, old);
    let left = ["--leave-running", "acceptor::accept_loop"];
    let wrong = ["--leave-running", "accept_loop"];
    run(&program, "apply", file, &wrong)?.expect(exit::USAGE, "apply")?;
    run(&program, "check", file, &left)?.expect(exit::DONE, "check")?;
    assert_eq!(program.round()?, old);
    let applied = run(&program, "apply", file, &left)?.expect(exit::DONE, "apply")?;
    assert_eq!(still_inside(&applied.json), ["acceptor::accept_loop"]);
    for _ in 0..3 {
        assert_eq!(program.round()?, ["running 10 21", "fresh 11 21"]);
    }
    tools::livepatch(&["rollback", &program.pid().to_string()])?.expect(exit::DONE, "rollback")?;
    assert_eq!(program.round()?, old);
    program.finish()
}

/// The functions in whose old code a thread goes on, as a report says.
fn still_inside(report: &serde_json::Value) -> Vec<String> {
    let threads = report["still_inside"].as_array().into_iter().flatten();
    threads.filter_map(|thread| Some(thread["function"].as_str()?.to_owned())).collect()
}

/// A loop of the usual kind: it does one of several things, so the compiler makes a jump table.
const DISPATCH: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

type Loop = (Sender<u8>, Receiver<u64>);

static WORK: Mutex<Option<Loop>> = Mutex::new(None);

#[inline(never)]
fn answer() -> u64 {
    black_box(20) //-
    black_box(21) //+
}

#[inline(never)]
fn serve(jobs: &Receiver<u8>, results: &Sender<u64>) {
    for job in jobs {
        let result = match job {
            0 => black_box(10), //-
            0 => black_box(11), //+
            1 => answer(),
            2 => black_box(1) << black_box(5),
            3 => black_box(7) * black_box(9),
            4 => black_box(100) - black_box(1),
            5 => u64::from(black_box(255_u8).count_ones()),
            _ => return,
        };
        if results.send(result).is_err() {
            return;
        }
    }
}

fn start() -> Loop {
    let (job, jobs) = channel();
    let (result, results) = channel();
    std::thread::Builder::new().name("server".into()).spawn(move || serve(&jobs, &result)).ok();
    (job, results)
}

fn ask((job, results): &Loop) -> String {
    let one = |number| {
        job.send(number).ok();
        results.recv().unwrap_or_default().to_string()
    };
    (0..6).map(one).collect::<Vec<_>>().join(" ")
}

fn step() {
    let mut work = WORK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    println!("running {}", ask(work.get_or_insert_with(start)));
    println!("fresh {}", ask(&start()));
}

fn main() {
    host::serve(step);
}
"#;

#[test]
fn a_loop_with_a_jump_table_is_left_running_as_advised() -> Result<(), Failed> {
    let fixture = Fixture::inline("dispatch", DISPATCH)?;
    let project = Project::new(&fixture, Profile::Release)?;
    let mut program = Program::start(command(&project.ship()?))?;
    let old = ["running 10 20 32 63 99 8", "fresh 10 20 32 63 99 8"];
    let new = ["running 10 21 32 63 99 8", "fresh 11 21 32 63 99 8"];
    assert_eq!(program.round()?, old);
    project.write(Side::New)?;
    let created = project.create("fix")?;
    created.ran.expect(exit::DONE, "create")?;
    let file = &created.file;
    let busy = run(&program, "apply", file, &["--timeout", "1"])?.expect(exit::BUSY, "apply")?;
    let advice = busy.json["leave_running"].as_array().ok_or("no way out is named")?;
    let left: Vec<_> = advice.iter().filter_map(|path| Some(["--leave-running", path.as_str()?])).collect();
    assert_eq!(left, [["--leave-running", "dispatch::serve"]], "{}", busy.json);
    for way in [left.as_flattened(), &["--policy", "immediate"]] {
        run(&program, "check", file, way)?.expect(exit::DONE, "check")?;
        assert_eq!(program.round()?, old);
        let applied = run(&program, "apply", file, way)?.expect(exit::DONE, "apply")?;
        assert!(still_inside(&applied.json).contains(&"dispatch::serve".to_owned()), "{}", applied.json);
        for _ in 0..3 {
            assert_eq!(program.round()?, new);
        }
        // The loop is in old code all the time, so that nothing waits for it here.
        tools::livepatch(&["rollback", &program.pid().to_string(), "--policy", "immediate"])?
            .expect(exit::DONE, "rollback")?;
        assert_eq!(program.round()?, old);
    }
    program.finish()
}
