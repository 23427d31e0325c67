//! A program that patches itself on command: each line that it reads is a command, each answer is one line.

mod api;
mod children;
mod sandbox;

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Runs at each ordinary start, before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    let beside = std::env::current_exe().unwrap().with_extension("constructed");
    let mut file = std::fs::File::options().create(true).append(true).open(beside).unwrap();
    file.write_all(b"x").unwrap();
}

static CALLS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// Changed by the patch.
#[inline(never)]
fn word() -> &'static str {
    CALLS.fetch_add(1, Ordering::Relaxed);
    black_box("old") //-
    black_box("new") //+
}

/// Changed by the patch, and on the stack while `inner` runs.
#[inline(never)]
fn around(inner: &mut dyn FnMut() -> String) -> String {
    let mut text = inner();
    text.insert_str(0, black_box("around ")); //-
    text.insert_str(0, black_box("AROUND ")); //+
    text
}

/// Changed by the patch, and on the stack until told to leave.
#[inline(never)]
fn stay(leave: &Receiver<()>) -> u64 {
    let _ = leave.recv();
    CALLS.load(Ordering::Relaxed) //-
    CALLS.load(Ordering::Relaxed) + 1 //+
}

/// Not changed; calls what is changed before and after it runs `inner`.
#[inline(never)]
fn unchanged_caller(inner: &mut dyn FnMut() -> String) -> String {
    let before = word();
    let text = inner();
    format!("{before} {text} {}", word())
}

fn load() {
    while !STOP.load(Ordering::Relaxed) {
        if !["old", "new"].contains(&word()) {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct Program {
    settings: api::Settings,
    leave: Option<(Sender<()>, std::thread::JoinHandle<u64>)>,
}

impl Program {
    /// Not inlined, so that `main`, which never ends, is not changed.
    #[inline(never)]
    fn command(&mut self, line: &str) -> String {
        let (name, argument) = line.split_once(' ').unwrap_or((line, ""));
        let settings = self.settings.clone();
        match name {
            "say" => word().to_owned(),
            "apply" | "bytes" | "check" | "rollback" | "rollback-of" | "all" | "status" => settings.run(name, argument),
            "within" => unchanged_caller(&mut || settings.run("apply", argument)),
            "inside" => around(&mut || settings.run("apply", argument)),
            "inside-rollback" => around(&mut || settings.run("rollback", "")),
            "thread" => std::thread::spawn({
                let argument = argument.to_owned();
                move || println!("{}", settings.run("apply", &argument))
            })
            .join()
            .map_or_else(|_| "panicked".into(), |()| "joined".into()),
            "race" => settings.race(argument),
            "load" => {
                for _ in 0..argument.parse().unwrap() {
                    std::thread::spawn(load);
                }
                "loaded".into()
            }
            "unload" => {
                STOP.store(true, Ordering::Relaxed);
                format!("{} wrong", WRONG.load(Ordering::Relaxed))
            }
            "occupy" => {
                let (sender, receiver) = channel();
                let (entered, inside) = channel();
                let thread = std::thread::spawn(move || {
                    entered.send(()).unwrap();
                    stay(&receiver)
                });
                inside.recv().unwrap();
                self.leave = Some((sender, thread));
                "occupied".into()
            }
            "leave" => {
                let (sender, thread) = self.leave.take().unwrap();
                sender.send(()).unwrap();
                thread.join().unwrap();
                "left".into()
            }
            // Its answer comes some time later, after those of other commands.
            "behind" => {
                let argument = argument.to_owned();
                std::thread::spawn(move || println!("behind: {}", settings.run("apply", &argument)));
                "begun".into()
            }
            "deadline" | "select" | "module" | "policy" | "tool" => {
                self.settings.set(name, argument);
                "set".into()
            }
            "children" => children::command(argument),
            "sandbox" => sandbox::enter(),
            "forbid" => sandbox::forbid_ptrace(),
            "hang" => sandbox::hang_helpers(),
            "dumpable" => sandbox::dumpable(argument == "yes"),
            "watch-permits" => sandbox::watch_permits(),
            "permits" => sandbox::permits(),
            "resources" => {
                let count = |dir: &str| std::fs::read_dir(dir).unwrap().count();
                format!("{} descriptors {} threads", count("/proc/self/fd"), count("/proc/self/task"))
            }
            _ => format!("unknown command {name}"),
        }
    }
}

fn main() {
    println!("ready");
    let mut program = Program::default();
    for line in std::io::stdin().lock().lines() {
        println!("{}", program.command(&line.unwrap()));
    }
}
