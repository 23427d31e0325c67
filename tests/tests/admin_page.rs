//! The example service, a multi-threaded tokio program, patches itself while orders come in: from its own page, clicked in a browser,
//! and from many requests at the same time.

use livepatch_tests::browser::Browser;
use livepatch_tests::example::Example;
use livepatch_tests::http::Client;
use livepatch_tests::project::command;
use livepatch_tests::tools::{self, exit};
use livepatch_tests::{Failed, fail};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, OnceLock};

/// An order on which old and new code differ: the tax on 4.50 is 85.5 cents.
const ORDER: &str = r#"{"customer":"Ada","items":[{"name":"pen","cents":150,"quantity":3}]}"#;
const OLD: &str = r#"{"customer":"Ada","net":450,"discount":0,"vat":85,"total":535}"#;
const NEW: &str = r#"{"customer":"Ada","net":450,"discount":0,"vat":86,"total":536}"#;

/// What a call is told that waited for others until its deadline, and one whose helper was not done by then.
const TIMED_OUT: [&str; 2] = ["another operation of this program was under way", "when the deadline passed"];

struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends the load also when a check fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn order(client: &mut Client) -> Result<String, Failed> {
    match client.request("POST /order", "", ORDER)? {
        (200, body) => Ok(body),
        (status, body) => fail(format!("{status}: {body}")),
    }
}

/// Orders until told to stop; every answer is the old code's or the new one's.
fn load(address: &str, stop: &AtomicBool, served: &AtomicU64) -> Result<(), String> {
    let mut client = Client::open(address).map_err(|error| error.to_string())?;
    while !stop.load(Ordering::Relaxed) {
        let body = order(&mut client).map_err(|error| error.to_string())?;
        if body != OLD && body != NEW {
            return Err(format!("a wrong answer: {body}"));
        }
        served.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// The shipped service, and a folder with a patch for it.
struct Built {
    _example: Example,
    program: PathBuf,
    patches: PathBuf,
}

impl Built {
    fn new() -> Result<Self, Failed> {
        let example = Example::copy("webapp")?;
        let program = example.ship()?;
        let patch = example.patch("orders.rs", "net * VAT / 100", "(net * VAT + 50) / 100")?;
        let patches = example.path().join("patches");
        std::fs::create_dir(&patches)?;
        std::fs::rename(patch, patches.join("fix.lpatch"))?;
        Ok(Self { program, patches, _example: example })
    }

    fn get() -> &'static Self {
        static BUILT: OnceLock<Built> = OnceLock::new();
        BUILT.get_or_init(|| Self::new().expect("the service is built"))
    }

    fn start(&self, workers: usize) -> Result<Server, Failed> {
        let mut command = command(&self.program);
        command.arg("--patches").arg(&self.patches).args(["--workers", &workers.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening on ").unwrap_or_default().to_owned();
        Ok(Server { child, address })
    }
}

/// Paths of the functions that a patch replaces, sorted. Which one holds the changed line is up to the compiler.
fn functions(patch: &Path) -> Result<Vec<String>, Failed> {
    let inspected =
        tools::livepatch(&[OsStr::new("inspect"), patch.as_os_str()])?.expect(exit::DONE, "inspect")?;
    let functions = inspected.json["functions"].as_array().ok_or("no functions")?;
    let mut paths: Vec<String> =
        functions.iter().filter_map(|function| Some(function["path"].as_str()?.to_owned())).collect();
    paths.sort_unstable();
    if paths.is_empty() { fail("the patch holds no function") } else { Ok(paths) }
}

fn click_through(server: &Server, changed: &[String]) -> Result<(), Failed> {
    let mut client = Client::open(&server.address)?;
    let mut browser = Browser::open(&format!("http://{}/admin", server.address))?;
    browser.wait_for("Number(document.getElementById('rate').textContent) > 0")?;
    for round in 1..=3 {
        assert_eq!(order(&mut client)?, OLD);
        browser.click("button[data-file='fix.lpatch']")?;
        browser.wait_for("document.querySelectorAll('#functions tr').length > 0")?;
        assert_eq!(order(&mut client)?, NEW);
        let functions = browser.value("document.getElementById('functions').innerText")?;
        let text = functions.as_str().unwrap_or_default();
        let mut shown: Vec<&str> = text.lines().filter_map(|line| line.split('\t').next()).collect();
        shown.sort_unstable();
        assert_eq!(shown, changed, "the page shows what the patch holds");
        browser.click("#rollback")?;
        browser.wait_for(
            "document.getElementById('functions').children.length === 0 && !document.getElementById('rollback').disabled",
        )?;
        assert_eq!(order(&mut client)?, OLD);
        browser.wait_for(&format!("document.getElementById('history').children.length === {}", 2 * round))?;
    }
    let stopped =
        browser.value("document.querySelector('#history tr:last-child td:nth-child(4)').textContent")?;
    assert!(stopped.as_str().is_some_and(|text| text.parse::<u64>().is_ok()), "{stopped}");
    // Nothing to roll back: the page says so.
    browser.click("#rollback")?;
    browser.wait_for("document.getElementById('message').textContent.includes('nothing to roll back')")?;
    // Another origin's page cannot set the header.
    let refused = client.request("POST /admin/rollback", "", "")?;
    assert_eq!(refused.0, 403, "{}", refused.1);
    Ok(())
}

/// Does something while four clients order; no order may fail.
fn under_load(server: &Server, work: impl FnOnce() -> Result<(), Failed>) -> Result<(), Failed> {
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| load(&server.address, &stop, &served))).collect();
        let stopping = Stop(&stop);
        let worked = work();
        drop(stopping);
        for thread in threads {
            thread.join().map_err(|_| "the load panicked")??;
        }
        worked
    })?;
    assert!(served.load(Ordering::Relaxed) > 100);
    Ok(())
}

/// What a request to change something came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// The process is already as it was to become.
    NothingToDo,
    /// The time that this request had was over: others were at it, or its helper had no processor. It may have been done all the same.
    TimedOut,
}

fn timed_out(text: &str) -> bool {
    TIMED_OUT.iter().any(|told| text.contains(told))
}

/// Has the service apply or roll back. Only documented answers pass.
fn change(client: &mut Client, what: &str) -> Result<Outcome, Failed> {
    let nothing = if what == "rollback" { "nothing to roll back" } else { "the patch is applied already" };
    match client.request(&format!("POST /admin/{what}"), "x-livepatch: 1", "")? {
        (200, _) => Ok(Outcome::Done),
        (409, text) if text.contains(nothing) => Ok(Outcome::NothingToDo),
        (409, text) if timed_out(&text) => Ok(Outcome::TimedOut),
        (status, text) => fail(format!("{what}: {status}: {text}")),
    }
}

/// How often requests were the one that did it, and how often they had too little time.
#[derive(Default)]
struct Count {
    done: usize,
    timed_out: usize,
}

/// Asks until the process is as it was asked for. No request takes longer than its deadline, so this does not wait for ever.
fn insist(client: &mut Client, what: &str, count: &mut Count) -> Result<(), Failed> {
    for _ in 0..20 {
        match change(client, what)? {
            Outcome::Done => {
                count.done += 1;
                return Ok(());
            }
            Outcome::NothingToDo => return Ok(()),
            Outcome::TimedOut => count.timed_out += 1,
        }
    }
    fail(format!("{what}: no time in twenty attempts"))
}

/// One of many clients that all ask for the same at the same time.
fn ask_together(address: &str, rounds: usize, all: &Barrier) -> Result<Count, String> {
    let mut client = Client::open(address).map_err(|error| error.to_string())?;
    let mut count = Count::default();
    let mut failed = None;
    // Whoever fails goes on to the others' meeting points, or they would wait for ever.
    for round in 0..2 * rounds {
        let (what, expected) = [("apply/fix.lpatch", NEW), ("rollback", OLD)][round % 2];
        all.wait();
        let asked = insist(&mut client, what, &mut count);
        all.wait();
        // Everybody has an answer, so everybody meets the same code.
        match (asked, order(&mut client)) {
            (Ok(()), Ok(body)) if body == expected => {}
            (asked, body) => {
                failed.get_or_insert(format!("round {round}, {what}: {asked:?}, then {body:?}"));
            }
        }
        all.wait();
    }
    failed.map_or(Ok(count), Err)
}

/// Asks what is in the process, again and again.
fn watch(address: &str, stop: &AtomicBool) -> Result<(), String> {
    let mut client = Client::open(address).map_err(|error| error.to_string())?;
    while !stop.load(Ordering::Relaxed) {
        match client.request("GET /admin/status", "", "") {
            Ok((200, body)) if body.matches("\"id\"").count() <= 1 => {}
            Ok((409, text)) if timed_out(&text) => {}
            answer => return Err(format!("{answer:?}")),
        }
    }
    Ok(())
}

#[test]
fn many_tasks_call_at_the_same_time() -> Result<(), Failed> {
    const CALLERS: usize = 6;
    const ROUNDS: usize = 4;
    let server = Built::get().start(4)?;
    let address = server.address.as_str();
    under_load(&server, || {
        let (stop, all) = (AtomicBool::new(false), Barrier::new(CALLERS));
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| watch(address, &stop));
            let callers: Vec<_> =
                (0..CALLERS).map(|_| scope.spawn(|| ask_together(address, ROUNDS, &all))).collect();
            let stopping = Stop(&stop);
            let mut all = Count::default();
            for caller in callers {
                let count = caller.join().map_err(|_| "a caller panicked")??;
                all.done += count.done;
                all.timed_out += count.timed_out;
            }
            drop(stopping);
            watching.join().map_err(|_| "the watch panicked")??;
            // Of all that asked for the same, one did it; the others waited and found it done. What had too little time may have done it, too.
            assert!(all.done <= 2 * ROUNDS, "{} of {}", all.done, 2 * ROUNDS);
            assert!(all.done + all.timed_out >= 2 * ROUNDS, "{} and {}", all.done, all.timed_out);
            Ok(())
        })
    })
}

#[test]
fn clicking_apply_and_rollback_while_orders_come_in() -> Result<(), Failed> {
    let built = Built::get();
    let server = built.start(2)?;
    let changed = functions(&built.patches.join("fix.lpatch"))?;
    under_load(&server, || click_through(&server, &changed))
}
