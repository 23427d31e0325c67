//! The example service patches itself from its own page, clicked in a browser while orders come in.

use livepatch_tests::browser::Browser;
use livepatch_tests::example::Example;
use livepatch_tests::project::command;
use livepatch_tests::tools::{self, exit};
use livepatch_tests::{Failed, fail};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// An order on which old and new code differ: the tax on 4.50 is 85.5 cents.
const ORDER: &str = r#"{"customer":"Ada","items":[{"name":"pen","cents":150,"quantity":3}]}"#;
const OLD: &str = r#"{"customer":"Ada","net":450,"discount":0,"vat":85,"total":535}"#;
const NEW: &str = r#"{"customer":"Ada","net":450,"discount":0,"vat":86,"total":536}"#;

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

/// A connection that stays open.
struct Client(BufReader<TcpStream>);

impl Client {
    fn open(address: &str) -> Result<Self, Failed> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    fn request(&mut self, head: &str, body: &str) -> Result<(u16, String), Failed> {
        let length = body.len();
        let text = format!(
            "{head} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(text.as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).ok_or("no status")?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return fail("the server closed the connection");
            }
            match line.trim().to_ascii_lowercase().strip_prefix("content-length:") {
                Some(value) => length = value.trim().parse()?,
                None if line.trim().is_empty() => break,
                None => {}
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, String::from_utf8(body)?))
    }

    fn order(&mut self) -> Result<String, Failed> {
        match self.request("POST /order", ORDER)? {
            (200, body) => Ok(body),
            (status, body) => fail(format!("{status}: {body}")),
        }
    }
}

/// Orders until told to stop; every answer is the old code's or the new one's.
fn load(address: &str, stop: &AtomicBool, served: &AtomicU64) -> Result<(), String> {
    let mut client = Client::open(address).map_err(|error| error.to_string())?;
    while !stop.load(Ordering::Relaxed) {
        let body = client.order().map_err(|error| error.to_string())?;
        if body != OLD && body != NEW {
            return Err(format!("a wrong answer: {body}"));
        }
        served.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn start(example: &Example) -> Result<Server, Failed> {
    let program = example.ship()?;
    let patches = example.path().join("patches");
    std::fs::create_dir(&patches)?;
    let mut child = command(&program).arg("--patches").arg(&patches).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let address = line.trim().strip_prefix("listening on ").unwrap_or_default().to_owned();
    Ok(Server { child, address })
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
        assert_eq!(client.order()?, OLD);
        browser.click("button[data-file='fix.lpatch']")?;
        browser.wait_for("document.querySelectorAll('#functions tr').length > 0")?;
        assert_eq!(client.order()?, NEW);
        let functions = browser.value("document.getElementById('functions').innerText")?;
        let text = functions.as_str().unwrap_or_default();
        let mut shown: Vec<&str> = text.lines().filter_map(|line| line.split('\t').next()).collect();
        shown.sort_unstable();
        assert_eq!(shown, changed, "the page shows what the patch holds");
        browser.click("#rollback")?;
        browser.wait_for(
            "document.getElementById('functions').children.length === 0 && !document.getElementById('rollback').disabled",
        )?;
        assert_eq!(client.order()?, OLD);
        browser.wait_for(&format!("document.getElementById('history').children.length === {}", 2 * round))?;
    }
    let stopped =
        browser.value("document.querySelector('#history tr:last-child td:nth-child(4)').textContent")?;
    assert!(stopped.as_str().is_some_and(|text| text.parse::<u64>().is_ok()), "{stopped}");
    // Nothing to roll back: the page says so.
    browser.click("#rollback")?;
    browser.wait_for("document.getElementById('message').textContent.includes('nothing to roll back')")?;
    // Another origin's page cannot set the header.
    let refused = client.request("POST /admin/rollback", "")?;
    assert_eq!(refused.0, 403, "{}", refused.1);
    Ok(())
}

#[test]
fn clicking_apply_and_rollback_while_orders_come_in() -> Result<(), Failed> {
    let example = Example::copy("webapp")?;
    let server = start(&example)?;
    let patch = example.patch("orders.rs", "net * VAT / 100", "(net * VAT + 50) / 100")?;
    let changed = functions(&patch)?;
    std::fs::rename(patch, example.path().join("patches/fix.lpatch"))?;
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| load(&server.address, &stop, &served))).collect();
        let stopping = Stop(&stop);
        let clicked = click_through(&server, &changed);
        drop(stopping);
        for thread in threads {
            thread.join().map_err(|_| "the load panicked")??;
        }
        clicked
    })?;
    assert!(served.load(Ordering::Relaxed) > 100);
    Ok(())
}
