//! A browser without a window, driven through its debugging pipe: JSON objects that end with a zero byte, from
//! descriptor 3 and to descriptor 4 of the browser (Chrome DevTools Protocol).

use crate::{Failed, fail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything on a page may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Exchanges its first four descriptors, which `Command` cannot.
const START: &str = "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";

/// A browser with one page.
pub struct Browser {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Option<String>,
    number: u64,
    _profile: TempDir,
}

impl Browser {
    /// Starts it and opens an address.
    ///
    /// # Errors
    /// If it does not start or does not answer.
    pub fn open(address: &str) -> Result<Self, Failed> {
        let profile = crate::scratch::folder()?;
        let mut child = Command::new("sh")
            .args(["-c", START, "chromium", "--headless=new", "--remote-debugging-pipe", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut browser = Self { child, input, output, session: None, number: 0, _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": address}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach)?;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        browser.wait_for("document.readyState === 'complete' && location.protocol.startsWith('http')")?;
        Ok(browser)
    }

    /// Calls a method and waits for its answer.
    fn call(&mut self, method: &str, params: Value) -> Result<Value, Failed> {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.input.write_all(format!("{message}\0").as_bytes())?;
        self.input.flush()?;
        loop {
            let mut bytes = Vec::new();
            if self.output.read_until(0, &mut bytes)? == 0 {
                return fail(format!("the browser ended instead of answering {method}"));
            }
            bytes.pop();
            let answer: Value = serde_json::from_slice(&bytes)?;
            if answer["id"] == self.number {
                return match answer["error"].is_null() {
                    true => Ok(answer["result"].clone()),
                    false => fail(format!("{method}: {}", answer["error"])),
                };
            }
        }
    }

    /// The value of a JavaScript expression on the page.
    ///
    /// # Errors
    /// If it cannot be computed.
    pub fn value(&mut self, expression: &str) -> Result<Value, Failed> {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", params)?;
        match answer["exceptionDetails"].is_null() {
            true => Ok(answer["result"]["value"].clone()),
            false => fail(format!("{expression}: {}", answer["exceptionDetails"])),
        }
    }

    /// Waits until an expression is true.
    ///
    /// # Errors
    /// If that does not happen; the message holds the page's text.
    pub fn wait_for(&mut self, expression: &str) -> Result<(), Failed> {
        let end = Instant::now() + LIMIT;
        while self.value(expression)? != true {
            if Instant::now() > end {
                let text = self.value("document.body?.innerText")?;
                return fail(format!("`{expression}` did not come true; the page says: {text}"));
            }
        }
        Ok(())
    }

    /// Clicks the element that a CSS selector finds, with the mouse.
    ///
    /// # Errors
    /// If it is not there or cannot be clicked.
    pub fn click(&mut self, selector: &str) -> Result<(), Failed> {
        let selector = json!(selector);
        self.wait_for(&format!(
            "!!document.querySelector({selector}) && !document.querySelector({selector}).disabled"
        ))?;
        let place = self.value(&format!(
            "(() => {{ const e = document.querySelector({selector}); e.scrollIntoView({{block: 'center'}}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        ))?;
        for kind in ["mousePressed", "mouseReleased"] {
            let params =
                json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", params)?;
        }
        Ok(())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends in good order, with all its processes, before its folder is removed.
        let _ = self.call("Browser.close", json!({}));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
