//! Names of patched functions for debuggers, profilers and people who read backtraces.

use livepatch_tests::case::Case;
use livepatch_tests::child::Program;
use livepatch_tests::tools::{self, Ran, exit};
use livepatch_tests::{Failed, fail};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Round 1 calls `changed`; the next leaves a thread inside of it, in `work` below it.
const SOURCE: &str = r#"
mod host;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

static ROUND: AtomicU64 = AtomicU64::new(0);
static INSIDE: AtomicU64 = AtomicU64::new(0);

/// Never leaves from the second round on.
#[inline(never)]
fn work(n: u64) -> u64 {
    INSIDE.fetch_add(1, SeqCst);
    while ROUND.load(SeqCst) > 1 {
        black_box(n);
    }
    black_box(n)
}

#[inline(never)] //+
fn added(n: u64) -> u64 { //+
    let mut rooms = black_box([n; 50]); // A frame that nobody finds the end of by chance. //+
    rooms[black_box(3)] = work(n); //+
    black_box(&rooms)[black_box(3)] //+
} //+

#[inline(never)]
fn changed(n: u64) -> u64 {
    black_box(work(n) + 1) //-
    black_box(added(n) + 2) //+
}

#[inline(never)]
fn unchanged() -> u64 {
    black_box(changed(black_box(7))) + 1
}

fn step() {
    if ROUND.fetch_add(1, SeqCst) == 0 {
        println!("{}", unchanged());
        return;
    }
    let before = INSIDE.load(SeqCst);
    std::thread::spawn(unchanged);
    while INSIDE.load(SeqCst) == before {
        std::thread::yield_now();
    }
    println!("inside");
}

fn main() {
    host::serve(step);
}
"#;

/// `livepatch symbols` with these arguments.
fn symbols(arguments: &[&OsStr]) -> Result<Ran, Failed> {
    tools::livepatch(&[&[OsStr::new("symbols")], arguments].concat())
}

/// A process with a thread inside of patched code.
fn inside(name: &str, source: &str) -> Result<Case, Failed> {
    let mut case = Case::start(name, source)?;
    case.says("9")?;
    case.apply(&[])?.expect(exit::DONE, "apply")?;
    case.says("inside")?;
    Ok(case)
}

/// What gdb says about all threads, after these commands.
fn backtraces(target: &[&OsStr], commands: &[&str]) -> Result<String, Failed> {
    let mut gdb = Command::new("gdb");
    gdb.args(["-q", "-nx", "-batch"]);
    for command in commands.iter().chain(&["thread apply all backtrace"]) {
        gdb.args(["-ex", command]);
    }
    let output = gdb.args(target).output().map_err(|error| format!("gdb: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// One stack holds frames with these names in this order, none between them, and no other does.
fn calls(text: &str, innermost_first: &[&str]) -> Result<(), Failed> {
    let frames: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
    let names = frames.iter().map(|line| innermost_first.iter().position(|name| line.contains(name)));
    let found: Vec<(usize, usize)> =
        names.enumerate().filter_map(|(frame, name)| Some((frame, name?))).collect();
    let first = found.first().map_or(0, |(frame, _)| *frame);
    if found.iter().copied().eq((0..innermost_first.len()).map(|name| (first + name, name))) {
        return Ok(());
    }
    fail(format!("expected frames of {innermost_first:?}, found {found:?}:\n{text}"))
}

/// The stack of the thread that is inside, where all names are known.
const STACK: [&str; 4] = ["names::work", "names::added", "names::changed", "names::unchanged"];

#[test]
fn gdb_names_patched_frames_of_a_process_and_of_its_core_dump() -> Result<(), Failed> {
    let case = inside("names", SOURCE)?;
    let folder = livepatch_tests::scratch::folder()?;
    let (pid, program) = (case.pid(), case.output());
    let (pid, flag) = (OsStr::new(&pid), OsStr::new("-p"));
    let written = symbols(&[pid, OsStr::new("-o"), folder.path().as_ref()])?.expect(exit::DONE, "symbols")?;
    let line = written.json["patches"][0]["gdb"].as_str().ok_or("no line for gdb")?;

    // The program is stripped.
    let nameless = backtraces(&[flag, pid], &[])?;
    assert!(nameless.contains("#1 ") && !nameless.contains("names::"), "{nameless}");
    calls(&backtraces(&[flag, pid], &[line])?, &STACK[1..3])?;
    calls(&backtraces(&[program.as_ref(), flag, pid], &[line])?, &STACK)?;

    let core = folder.path().join("the core");
    let dumped = backtraces(&[flag, pid], &[&format!("generate-core-file {}", core.display())])?;
    assert!(core.exists(), "{dumped}");
    calls(&backtraces(&[program.as_ref(), core.as_ref()], &[line])?, &STACK)?;

    // The same can be had of the dump when the process is gone.
    case.signal("KILL")?;
    let file = PathBuf::from(written.json["patches"][0]["file"].as_str().ok_or("no file")?);
    let live = fs::read(&file)?;
    fs::remove_file(&file)?;
    let words = [OsStr::new("--core"), core.as_ref(), OsStr::new("-o"), folder.path().as_ref()];
    let dead = symbols(&words)?.expect(exit::DONE, "symbols of the dump")?;
    assert_eq!(dead.json, written.json);
    assert!(fs::read(&file)? == live, "the files of the process and of the dump differ");

    // Dumps that are cut off: a part of the memory is missing, or all of it. And what is no dump.
    let bytes = fs::read(&core)?;
    let end = end_of_headers(&bytes)?;
    for length in [end, end + 0x1000] {
        File::options().write(true).open(&core)?.set_len(length)?;
        symbols(&words)?.expect(exit::REFUSED, "symbols of a part of a dump")?;
    }
    symbols(&words)?.expect(exit::REFUSED, "symbols of a part of a dump")?;
    let words = [OsStr::new("--core"), program.as_ref()];
    symbols(&words)?.expect(exit::MISMATCH, "symbols of a program")?;
    Ok(())
}

/// Where the program headers of an ELF file end that stand behind its header.
fn end_of_headers(elf: &[u8]) -> Result<u64, Failed> {
    let half = |at: usize| elf.get(at..at + 2).map(|bytes| u64::from(bytes[0]) | u64::from(bytes[1]) << 8);
    let (header, size, count) =
        half(52).zip(half(54)).zip(half(56)).map(|((a, b), c)| (a, b, c)).ok_or("too short")?;
    Ok(header + size * count)
}

/// A perf map, removed in the end.
struct Map(PathBuf);

impl Map {
    fn of(pid: &str) -> Self {
        Self(PathBuf::from(format!("/tmp/perf-{pid}.map")))
    }

    fn lines(&self) -> Result<Vec<String>, Failed> {
        Ok(fs::read_to_string(&self.0)?.lines().map(str::to_owned).collect())
    }

    fn remove(&self) -> Result<(), Failed> {
        Ok(fs::remove_file(&self.0)?)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // Most tests leave none.
        let _ = fs::remove_file(&self.0);
    }
}

/// The lines that a map has to have.
fn lines_for(report: &Value) -> Result<Vec<String>, Failed> {
    let functions = report["patches"][0]["functions"].as_array().ok_or("no functions")?;
    let line = |f: &Value| {
        let start = f["address"].as_str()?.strip_prefix("0x")?;
        Some(format!("{start} {:x} {}", f["size"].as_u64()?, f["path"].as_str()?))
    };
    functions.iter().map(line).collect::<Option<_>>().ok_or_else(|| "an incomplete function".into())
}

fn perf_map(pid: &str) -> Result<Ran, Failed> {
    symbols(&[OsStr::new(pid), OsStr::new("--perf-map")])
}

#[test]
fn perf_names_patched_functions() -> Result<(), Failed> {
    // The time is spent in patched code itself.
    let case =
        inside("profiled", &SOURCE.replace("#[inline(never)]\nfn work", "#[inline(always)]\nfn work"))?;
    let (pid, folder) = (case.pid(), livepatch_tests::scratch::folder()?);
    let map = Map::of(&pid);
    perf_map(&pid)?.expect(exit::DONE, "symbols")?;
    let data = folder.path().join("perf.data");
    let perf = |arguments: &[&str]| -> Result<String, Failed> {
        let output = Command::new("perf").args(arguments).arg("-i").arg(&data).output();
        let output = output.map_err(|error| format!("perf: {error}; install linux-perf"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    let mut record = Command::new("perf");
    record
        .args(["record", "-q", "-e", "cpu-clock:u", "-p", &pid, "-o"])
        .arg(&data)
        .args(["--", "sleep", "1"]);
    let recorded = record.output().map_err(|error| format!("perf: {error}; install linux-perf"))?;
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    let script = perf(&["script", "-F", "ip,sym"])?;
    assert!(script.contains(" profiled::added\n"), "{script}");
    map.remove()?;
    let script = perf(&["script", "-F", "ip,sym"])?;
    assert!(!script.contains("profiled::added"), "{script}");
    Ok(())
}

#[test]
fn a_perf_map_is_written_where_and_only_where_it_may() -> Result<(), Failed> {
    let case = inside("mapped", SOURCE)?;
    let (pid, folder) = (case.pid(), livepatch_tests::scratch::folder()?);
    let map = Map::of(&pid);
    let done = perf_map(&pid)?.expect(exit::DONE, "symbols")?.json;
    assert_eq!(done["perf_map"], map.0.to_str().unwrap_or_default());
    let lines = lines_for(&done)?;
    assert!(lines.iter().any(|line| line.ends_with(" mapped::added")), "{lines:?}");
    assert_eq!(map.lines()?, lines);
    let text = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    for line in &lines {
        executable(&text, line)?;
    }
    // Once more, and after a rollback, nothing is missing: the code stays. A line that was lost comes back.
    perf_map(&pid)?.expect(exit::DONE, "symbols")?;
    assert_eq!(map.lines()?, lines);
    fs::write(&map.0, lines[1..].join("\n"))?;
    perf_map(&pid)?.expect(exit::DONE, "symbols")?;
    assert_eq!(map.lines()?, [&lines[1..], &lines[..1]].concat());

    // What an earlier process of that number left.
    File::options()
        .write(true)
        .open(&map.0)?
        .set_modified(SystemTime::now() - Duration::from_secs(86_400))?;
    untouched(&map, &pid, "older than the process")?;
    map.remove()?;
    // Links, to wherever.
    let other = folder.path().join("other");
    fs::write(&other, "nothing\n")?;
    symlink(&other, &map.0)?;
    untouched(&map, &pid, "symbolic link")?;
    map.remove()?;
    fs::hard_link(&other, &map.0)?;
    untouched(&map, &pid, "no plain file")?;
    map.remove()?;
    // Nobody reads it: to open it for writing would take for ever.
    assert!(Command::new("mkfifo").arg(&map.0).status()?.success());
    perf_map(&pid)?.expect(exit::REFUSED, "a pipe")?;
    map.remove()?;
    fs::create_dir(&map.0)?;
    perf_map(&pid)?.expect(exit::ERROR, "a folder")?;
    fs::remove_dir(&map.0)?;
    Ok(())
}

/// The line's addresses are code of the process that comes from no file.
fn executable(maps: &str, line: &str) -> Result<(), Failed> {
    let hex = |text: &str| u64::from_str_radix(text, 16);
    let mut words = line.split(' ');
    let start = hex(words.next().unwrap_or_default())?;
    let end = start + hex(words.next().unwrap_or_default())?;
    for mapping in maps.lines() {
        let fields: Vec<&str> = mapping.split_ascii_whitespace().collect();
        let (from, to) = fields[0].split_once('-').ok_or("no range")?;
        if hex(from)? <= start && end <= hex(to)? && fields[1] == "r-xp" && fields[4] == "0" {
            return Ok(());
        }
    }
    fail(format!("`{line}` is in no code without a file:\n{maps}"))
}

/// Refused, and nothing was written.
fn untouched(map: &Map, pid: &str, why: &str) -> Result<(), Failed> {
    let before = fs::read(&map.0)?;
    let refused = perf_map(pid)?.expect(exit::REFUSED, why)?;
    let said = refused.json["error"].as_str().unwrap_or_default();
    assert!(said.contains(why), "{said}");
    assert!(fs::read(&map.0)? == before, "it was written to");
    Ok(())
}

#[test]
fn a_perf_map_that_the_process_writes_itself() -> Result<(), Failed> {
    let case = Case::start("generates", SOURCE)?;
    for (open, code) in [("exec 7>&-", exit::DONE), (":", exit::REFUSED)] {
        // The shell becomes the program, so both have one number.
        let script =
            format!("exec 7>/tmp/perf-$$.map && echo '1000 10 generated' >&7 && {open} && exec \"$0\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(case.shipped());
        let mut program = Program::start(command)?;
        let pid = program.pid().to_string();
        let map = Map::of(&pid);
        program.round()?;
        tools::livepatch(&["apply".as_ref(), pid.as_ref(), case.target.patch.as_os_str()])?
            .expect(exit::DONE, "apply")?;
        match code {
            exit::REFUSED => untouched(&map, &pid, "open for writing")?,
            _ => {
                let done = perf_map(&pid)?.expect(code, "symbols")?;
                assert_eq!(
                    map.lines()?,
                    [vec!["1000 10 generated".to_owned()], lines_for(&done.json)?].concat()
                );
            }
        }
        program.finish()?;
    }
    Ok(())
}

/// In a container, path and number are others than outside.
#[test]
fn a_perf_map_of_a_process_in_namespaces() -> Result<(), Failed> {
    let case = Case::start("contained", SOURCE)?;
    let script = "exec 8<\"$0\" && mount -t tmpfs none /tmp && exec /proc/self/fd/8";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--pid", "--fork", "--mount", "sh", "-c", script]).arg(case.shipped());
    let mut program = Program::start(command)?;
    program.round()?;
    let outer = program.pid();
    let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
    let pid = children.trim();
    tools::livepatch(&["apply".as_ref(), pid.as_ref(), case.target.patch.as_os_str()])?
        .expect(exit::DONE, "apply")?;
    let done = perf_map(pid)?.expect(exit::DONE, "symbols")?;
    let path = format!("/proc/{pid}/task/{pid}/root/tmp/perf-1.map");
    assert_eq!(done.json["perf_map"], path);
    assert_eq!(Map(path.into()).lines()?, lines_for(&done.json)?);
    assert!(!Map::of(pid).0.exists());
    program.finish()
}

/// A round panics below the changed function, and says on standard output what the standard library says of it.
const PANICKING: &str = r#"
mod host;

use std::hint::black_box;

unsafe extern "C" {
    fn dup2(from: i32, to: i32) -> i32;
}

#[inline(never)]
fn fail(n: u64) -> u64 {
    assert!(black_box(n) == 0, "as expected");
    n
}

#[inline(never)]
fn changed(n: u64) -> u64 {
    black_box(fail(n)) + 1 //-
    black_box(fail(n)) + 2 //+
}

fn step() {
    let caught = std::panic::catch_unwind(|| black_box(changed)(black_box(7)));
    println!("caught {}", caught.is_err());
}

fn main() {
    unsafe { std::env::set_var("RUST_BACKTRACE", "full") };
    unsafe { dup2(1, 2) };
    host::serve(step);
}
"#;

/// The addresses of the frames that a panic's message lists, and what it calls them.
fn frames(lines: &[String]) -> Result<Vec<(String, String)>, Failed> {
    let frame = |line: &String| {
        let (number, rest) = line.trim().split_once(':')?;
        number.parse::<u32>().ok()?;
        let (address, name) = rest.trim().split_once(" - ")?;
        Some((address.to_owned(), name.to_owned()))
    };
    let frames: Vec<_> = lines.iter().filter_map(frame).collect();
    match lines.last().is_some_and(|line| line == "caught true") && frames.len() > 4 {
        true => Ok(frames),
        false => fail(format!("no panic with a backtrace that was caught:\n{}", lines.join("\n"))),
    }
}

#[test]
fn a_backtrace_leads_through_patched_frames_and_its_addresses_have_names() -> Result<(), Failed> {
    let mut case = Case::start("panicking", PANICKING)?;
    let before = frames(&case.program.round()?)?;
    let none = symbols(&[OsStr::new(&case.pid())])?.expect(exit::DONE, "symbols")?;
    assert_eq!(none.json["patches"], Value::Array(Vec::new()));
    case.apply(&[])?.expect(exit::DONE, "apply")?;
    let after = frames(&case.program.round()?)?;
    let different: Vec<usize> = (0..after.len()).filter(|at| before.get(*at) != Some(&after[*at])).collect();
    let [at] = different[..] else { return fail(format!("{before:?}\n{after:?}")) };
    assert_eq!(before.len(), after.len(), "the backtrace is cut");
    assert!(at > 1 && at + 2 < after.len(), "nothing stands around the patched frame");
    // The program is stripped: the standard library knows no more of the frames around it.
    assert!(after[at - 1..=at + 1].iter().all(|(_, name)| name == "<unknown>"), "{after:?}");

    let pid = case.pid();
    let mut words = vec![OsStr::new(&pid)];
    words.extend(after.iter().flat_map(|(address, _)| [OsStr::new("--address"), address.as_ref()]));
    let named = symbols(&words)?.expect(exit::DONE, "symbols")?;
    let paths = named.json["addresses"].as_array().ok_or("no addresses")?;
    assert_eq!(paths.len(), after.len());
    for (number, answer) in paths.iter().enumerate() {
        let expected = if number == at { Value::from("panicking::changed") } else { Value::Null };
        assert_eq!(answer["path"], expected, "{answer}");
    }

    // With symbols it names all frames but the patched one.
    let mut program = Program::start(livepatch_tests::project::command(&case.output()))?;
    let other = program.pid().to_string();
    tools::livepatch(&["apply".as_ref(), other.as_ref(), case.target.patch.as_os_str()])?
        .expect(exit::DONE, "apply")?;
    let mut own = frames(&program.round()?)?;
    own.retain(|(_, name)| name.contains("panicking::") || name == "<unknown>");
    let own: Vec<&str> = own.iter().map(|(_, name)| name.as_str()).collect();
    let place = own.iter().position(|name| name.contains("panicking::fail")).ok_or("no name")?;
    assert!(own[place + 1] == "<unknown>" && own[place + 2].contains("panicking::step"), "{own:?}");
    program.finish()?;

    case.rollback(&[])?.expect(exit::DONE, "rollback")?;
    assert_eq!(frames(&case.program.round()?)?, before);
    // The code is still there, and has its names.
    let named = symbols(&words)?.expect(exit::DONE, "symbols")?;
    assert_eq!(named.json["addresses"][at]["path"], "panicking::changed");
    assert_eq!(named.json["patches"][0]["state"], "rolled-back");
    case.program.finish()
}
