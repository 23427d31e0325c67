//! The tool is killed in the middle of remote work: the thread finds back by itself.
//!
//! The tool is this test program once more, started with the work in its environment.

mod common;

use common::{Victim, soon, wait_for};
use livepatch_patch::RunAddr;
use livepatch_process::{
    CallProgress, CallSite, Pid, Process, Protection, RemoteCall, Seized, Tid, mmap_min_addr, near_gap,
};
use nix::libc;
use std::io::Write;
use std::process::{Child, Command, Stdio};

const WORK: &str = "LIVEPATCH_TEST_WORK";
const NAME: &str = "a_thread_in_remote_work_finds_back_when_the_tool_is_killed";
const REALTIME: i32 = 36;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    Syscall,
    Call,
}

/// What the tool needs to know, as text in its environment.
struct Order {
    work: Work,
    pid: Pid,
    tid: Tid,
    site: RunAddr,
    function: RunAddr,
    fd: u64,
}

impl Order {
    fn to_text(&self) -> String {
        let Self { work, pid, tid, site, function, fd } = self;
        format!("{work:?} {pid} {tid} {} {} {fd}", site.0, function.0)
    }

    fn parse(text: &str) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        let work = if words[0] == "Call" { Work::Call } else { Work::Syscall };
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        Self {
            work,
            pid: Pid(number(1) as i32),
            tid: Tid(number(2) as i32),
            site: RunAddr(number(3)),
            function: RunAddr(number(4)),
            fd: number(5),
        }
    }

    /// Never comes back but by a failure: the thread waits for a byte that the test sends after the end of this program.
    fn carry_out(&self) {
        let process = Process::open(self.pid).unwrap();
        let mut seized = Seized::seize_all(&process, soon()).unwrap();
        let mut thread = seized.interrupt_one(self.tid, soon()).unwrap();
        let site = CallSite::at(self.site);
        thread.map_at(self.site, CallSite::SIZE, Protection::ReadWrite, soon()).unwrap();
        site.prepare(&mut thread, soon()).unwrap();
        let args = [self.fd, 0, 0, 0, 0, 0];
        match self.work {
            Work::Call => {
                let call = RemoteCall { name: "read_one", function: self.function, args, site };
                thread.remote_call(&call, soon()).unwrap();
            }
            Work::Syscall => {
                let buffer = site.put_string(&process, b"?").unwrap();
                let args = [self.fd, buffer.0, 1, 0, 0, 0];
                thread.remote_syscall(libc::SYS_read, args, soon()).unwrap().unwrap();
            }
        }
    }
}

/// A tool that is inside the work on a thread of the victim.
fn tool_at_work(victim: &Victim, order: &Order) -> Child {
    let tool = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(WORK, order.to_text())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let path = format!("/proc/{}/task/{}/syscall", victim.pid(), order.tid);
    let reading = format!("0 {:#x} ", order.fd);
    wait_for("the work", || std::fs::read_to_string(&path).unwrap().starts_with(&reading));
    tool
}

fn in_remote_work(victim: &Victim, site: &CallSite) -> Vec<Tid> {
    let mut seized = victim.seize();
    let mut found = seized.threads();
    found.retain(|tid| seized.interrupt_one(*tid, soon()).unwrap().in_remote_work(site).unwrap());
    seized.detach().unwrap();
    found
}

#[test]
fn a_thread_in_remote_work_finds_back_when_the_tool_is_killed() {
    if let Ok(text) = std::env::var(WORK) {
        return Order::parse(&text).carry_out();
    }
    for work in [Work::Syscall, Work::Call] {
        for kind in ["first", "spinning", "reading", "futex"] {
            kill_the_tool(work, kind);
        }
    }
}

fn kill_the_tool(work: Work, kind: &str) {
    let mut victim = Victim::start();
    let process = victim.process();
    let leader = victim.pid().leader();
    let pipe = victim.ask("pipe");
    let (fd, release) = pipe.split_once(' ').unwrap();
    let blockers: Vec<Tid> = match kind {
        "reading" | "futex" => {
            victim.ask("blockers").split(' ').map(|tid| Tid(tid.parse().unwrap())).collect()
        }
        _ => Vec::new(),
    };
    let tid = match kind {
        "first" => leader,
        "spinning" => Tid(victim.ask("guard").parse().unwrap()),
        "reading" => blockers[0],
        _ => blockers[2],
    };
    if tid == leader {
        victim.wait_in_syscall(leader, libc::SYS_read as u64);
    }
    let maps = process.maps().unwrap();
    let module = maps.iter().find(|map| map.contains(victim.fact("main"))).unwrap();
    let at = near_gap(&maps, module.range.clone(), CallSite::SIZE, mmap_min_addr()).unwrap();
    let function = victim.fact("read_one");
    let order = Order { work, pid: victim.pid(), tid, site: at, function, fd: fd.parse().unwrap() };

    let mut tool = tool_at_work(&victim, &order);
    queue_signal(&victim, 41);
    tool.kill().unwrap();
    tool.wait().unwrap();
    let site = CallSite::at(at);
    assert_eq!(in_remote_work(&victim, &site), [tid], "{work:?} on the {kind} thread");
    if work == Work::Call {
        assert_eq!(site.progress(&process).unwrap(), CallProgress::Begun);
    }

    // Looking at it interrupted the read; it goes on all the same.
    let path = format!("/proc/{}/fd/{release}", victim.pid());
    std::fs::File::options().write(true).open(path).unwrap().write_all(b"x").unwrap();
    let spins = victim.word(&process, "spins");
    wait_for("the way back", || in_remote_work(&victim, &site).is_empty());
    if work == Work::Call {
        assert_eq!(site.progress(&process).unwrap(), CallProgress::Returned);
    }
    assert_eq!(victim.ask("echo on"), "echo on");
    match kind {
        "spinning" => {
            wait_for("the loop", || victim.word(&process, "spins") > spins + 2);
            assert_eq!(victim.word(&process, "bad"), 0, "{work:?}");
        }
        "reading" | "futex" => {
            victim.ask("unblock");
            let results = victim.ask("results 4");
            assert!(results.contains("futex true 1") && results.contains("read 1 120"), "{results}");
        }
        _ => {}
    }
    wait_for("the signal", || victim.ask("signals") == "1 41");
    victim.assert_well();
}

fn queue_signal(victim: &Victim, value: i32) {
    // SAFETY: sigqueue takes numbers; sival_ptr carries the int in its low half.
    unsafe {
        let value = libc::sigval { sival_ptr: value as usize as *mut libc::c_void };
        assert_eq!(libc::sigqueue(victim.pid().0, REALTIME, value), 0);
    }
}
