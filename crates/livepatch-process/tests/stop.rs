//! Stopping and resuming all threads, and what the program notices of it.

mod common;

use common::{PATIENCE, Victim, soon, tasks, thread_state, wait_for};
use livepatch_process::{InterruptError, Loss, Process, ProcessError, Seized, ThreadState, Tid};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// Stops, checks that nothing moves, resumes and checks that it moves again.
fn stop_and_go(threads: usize) {
    let mut victim = Victim::start();
    victim.ask(&format!("tick {}", threads - 1));
    let process = victim.process();
    let mut seized = victim.seize();
    assert_eq!(seized.threads().len(), threads);
    for _ in 0..5 {
        let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
        for tid in tasks(victim.pid()) {
            assert_eq!(thread_state(victim.pid(), tid), Some(ThreadState::TracingStop));
            assert!(stopped.threads().contains(&tid));
            let regs = stopped.regs(tid).unwrap();
            assert!(process.maps().unwrap().iter().any(|map| map.perms.execute && map.contains(regs.ip())));
        }
        let before = victim.word(&process, "ticks");
        let until = Instant::now() + Duration::from_millis(10);
        while Instant::now() < until {
            assert_eq!(victim.word(&process, "ticks"), before, "a thread runs");
        }
        seized = stopped.resume_all().unwrap();
        assert!(seized.last_stop().unwrap() >= Duration::from_millis(10));
        if threads > 1 {
            wait_for("ticks", || {
                seized.pump(Instant::now()).unwrap();
                victim.word(&process, "ticks") > before + 2
            });
        }
        assert_eq!(victim.ask_traced(&mut seized, "echo traced"), "echo traced");
    }
    let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    stopped.detach().unwrap();
    victim.assert_well();
    assert_eq!(tasks(victim.pid()).len(), threads);
}

#[test]
fn one_thread() {
    stop_and_go(1);
}

#[test]
fn ten_threads() {
    stop_and_go(10);
}

#[test]
fn two_hundred_threads() {
    stop_and_go(200);
}

#[test]
fn threads_that_come_and_go_all_the_time() {
    let mut victim = Victim::start();
    victim.ask("churn 6");
    let process = victim.process();
    let mut seized = victim.seize();
    for round in 0..100 {
        let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
        let mut known = stopped.threads();
        let mut tasks: Vec<Tid> = tasks(victim.pid());
        tasks.retain(|&tid| thread_state(victim.pid(), tid) != Some(ThreadState::Zombie));
        known.sort();
        tasks.sort();
        assert_eq!(known, tasks, "round {round}");
        for &tid in &tasks {
            assert_eq!(thread_state(victim.pid(), tid), Some(ThreadState::TracingStop));
        }
        let before = victim.word(&process, "ticks");
        seized = stopped.resume_all().unwrap();
        wait_for("ticks", || {
            seized.pump(Instant::now()).unwrap();
            victim.word(&process, "ticks") > before + 20
        });
    }
    seized.detach().unwrap();
    victim.assert_well();
}

#[test]
fn blocked_calls_go_on() {
    const STOPS: u64 = 20;
    let mut victim = Victim::start();
    let tids = victim.ask("blockers");
    let tids: Vec<Tid> = tids.split(' ').map(|tid| Tid(tid.parse().unwrap())).collect();
    for (&tid, number) in tids.iter().zip([0, 230, 202, 232]) {
        victim.wait_in_syscall(tid, number);
    }
    let mut seized = victim.seize();
    for _ in 0..STOPS {
        let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
        seized = stopped.resume_all().unwrap();
        seized.pump(Instant::now() + Duration::from_millis(1)).unwrap();
    }
    let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    stopped.detach().unwrap();
    assert_eq!(victim.ask("unblock"), "ok");
    let results = victim.ask("results 4");
    let (epoll, rest) = results.split_once(',').unwrap();
    assert_eq!(rest, "futex true 1,nanosleep 0 true,read 1 120");
    let interrupted: u64 = epoll.strip_prefix("epoll_wait 1 ").unwrap().parse().unwrap();
    assert!(interrupted <= STOPS + 1, "{interrupted}");
}

#[test]
fn a_stopped_program_stays_stopped() {
    let mut victim = Victim::start();
    victim.ask("tick 3");
    victim.kill(Signal::SIGSTOP);
    wait_for("the stop", || all_in(&victim, ThreadState::Stopped));
    let mut seized = victim.seize();
    for _ in 0..3 {
        let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
        seized = stopped.resume_all().unwrap();
    }
    assert!(seized.is_stopped_by_program());
    seized.detach().unwrap();
    wait_for("the stop again", || all_in(&victim, ThreadState::Stopped));
    victim.kill(Signal::SIGCONT);
    victim.assert_well();
}

#[test]
fn a_program_stopped_and_continued_under_tracing() {
    let mut victim = Victim::start();
    victim.ask("tick 3");
    let process = victim.process();
    let mut seized = victim.seize();
    victim.kill(Signal::SIGSTOP);
    let mut quiet = 0;
    let mut last = victim.word(&process, "ticks");
    wait_for("silence", || {
        seized.pump(Instant::now() + Duration::from_millis(5)).unwrap();
        let ticks = victim.word(&process, "ticks");
        quiet = if ticks == last { quiet + 1 } else { 0 };
        last = ticks;
        quiet == 10
    });
    assert!(seized.is_stopped_by_program());
    // Continued while all are held: they run afterwards.
    let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    victim.kill(Signal::SIGCONT);
    let mut seized = stopped.resume_all().unwrap();
    assert_eq!(victim.ask_traced(&mut seized, "echo on"), "echo on");
    assert!(!seized.is_stopped_by_program());
    // Stopped while all are held: they stop afterwards and stay so when let go.
    let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    victim.kill(Signal::SIGSTOP);
    stopped.detach().unwrap();
    wait_for("the stop", || all_in(&victim, ThreadState::Stopped));
    victim.kill(Signal::SIGCONT);
    victim.assert_well();
}

fn all_in(victim: &Victim, state: ThreadState) -> bool {
    victim.tasks().into_iter().all(|tid| thread_state(victim.pid(), tid) == Some(state))
}

#[test]
fn a_vfork_parent_is_named_and_everything_runs_on() {
    let mut victim = Victim::start();
    victim.ask("tick 3");
    let answer = victim.ask("vfork");
    let (parent, release) = answer.split_once(' ').unwrap();
    let parent = Tid(parent.parse().unwrap());
    let process = victim.process();
    let sharers = process.address_space_sharers().unwrap();
    assert_eq!(sharers.len(), 1, "{sharers:?}");
    let seized = victim.seize();
    let deadline = Instant::now() + Duration::from_millis(200);
    let (mut seized, error) = seized.interrupt_all(deadline).expect_err("a vfork parent cannot stop");
    let InterruptError::Stuck { threads, .. } = &error else { panic!("{error}") };
    assert_eq!(threads.len(), 1, "{error}");
    assert_eq!((threads[0].tid, threads[0].state), (parent, Some(ThreadState::Uninterruptible)));
    let before = victim.word(&process, "ticks");
    wait_for("ticks", || {
        seized.pump(Instant::now()).unwrap();
        victim.word(&process, "ticks") > before
    });
    assert_eq!(victim.ask_traced(&mut seized, &format!("release {release}")), "ok");
    assert_eq!(victim.ask_traced(&mut seized, "results 1"), "vfork done");
    assert_eq!(process.address_space_sharers().unwrap(), []);
    let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    stopped.detach().unwrap();
    victim.assert_well();
}

#[test]
fn the_first_thread_has_exited() {
    let mut victim = Victim::start();
    victim.ask("tick 2");
    assert_eq!(victim.ask("leave"), "ok");
    wait_for("the exit", || victim.state() == Some(ThreadState::Zombie));
    let process = victim.process();
    assert!(!process.maps().unwrap().is_empty());
    let leader = victim.pid().leader();
    assert!(!process.threads().unwrap().contains(&leader));
    let stopped = victim.seize().interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    assert_eq!(stopped.threads().len(), 3);
    let started = Instant::now();
    stopped.detach().unwrap();
    assert!(started.elapsed() < PATIENCE / 10);
    assert_eq!(victim.ask("echo still"), "echo still");
}

#[test]
fn the_first_thread_exits_while_traced() {
    let mut victim = Victim::start();
    victim.ask("tick 2");
    let mut seized = victim.seize();
    assert_eq!(victim.ask_traced(&mut seized, "leave"), "ok");
    assert_eq!(victim.ask_traced(&mut seized, "echo on"), "echo on");
    let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    assert_eq!(stopped.threads().len(), 3);
    stopped.detach().unwrap();
    assert_eq!(victim.ask("echo still"), "echo still");
}

#[test]
fn killed_while_stopped() {
    let mut victim = Victim::start();
    victim.ask("tick 3");
    let mut stopped = victim.seize().interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    victim.kill(Signal::SIGKILL);
    wait_for("the end", || !stopped.process().is_alive());
    let leader = victim.pid().leader();
    assert!(matches!(stopped.regs(leader), Err(ProcessError::Lost { how: Loss::Ended, .. })));
    assert!(matches!(stopped.process().maps(), Err(ProcessError::Lost { .. })));
    let read = stopped.process().read_u64(victim.fact("ticks"));
    assert!(matches!(read, Err(ProcessError::Lost { .. })), "{read:?}");
    let write = stopped.process().write(victim.fact("ticks"), &[0]);
    assert!(matches!(write, Err(ProcessError::Lost { .. })), "{write:?}");
    let remote = stopped.thread(leader).unwrap().remote_syscall(39, [0; 6], soon());
    assert!(remote.is_err_and(|error| error.to_string().contains("ended")));
    assert!(
        matches!(stopped.resume_all().map(drop).and_then(|()| Process::open(victim.pid()).map(drop)), Err(error) if error.is_lost())
    );
}

#[test]
fn killed_while_seized() {
    let mut victim = Victim::start();
    victim.ask("tick 3");
    let seized = victim.seize();
    victim.kill(Signal::SIGKILL);
    let (mut seized, error) = seized.interrupt_all(soon()).expect_err("there is nothing to stop");
    assert!(
        matches!(&error, InterruptError::Process(ProcessError::Lost { how: Loss::Ended, .. })),
        "{error}"
    );
    assert!(seized.pump(Instant::now()).is_err_and(|error| error.is_lost()));
    assert!(seized.detach().is_err_and(|error| error.is_lost()));
}

#[test]
fn another_program_takes_its_place() {
    let mut victim = Victim::start();
    victim.ask("tick 3");
    let process = victim.process();
    let seized = victim.seize();
    victim.send("exec");
    let mut seized = Some(seized);
    let error = loop {
        let mut running = seized.take().unwrap();
        match running.pump(Instant::now() + Duration::from_millis(10)) {
            Ok(_) => seized = Some(running),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ProcessError::Lost { how: Loss::Exec, .. }), "{error}");
    let read = process.read_u64(victim.fact("ticks"));
    assert!(matches!(read, Err(ProcessError::Lost { how: Loss::Exec, .. })), "{read:?}");
    // It is `cat` now, and untraced.
    victim.assert_well();
}

#[test]
fn a_dropped_value_lets_everything_go() {
    let mut victim = Victim::start();
    victim.ask("tick 3");
    drop(victim.seize());
    victim.assert_well();
    drop(victim.seize().interrupt_all(soon()));
    victim.assert_well();
    let panicked = std::panic::catch_unwind(|| {
        let _stopped = victim.seize().interrupt_all(soon());
        panic!("on purpose");
    });
    assert!(panicked.is_err());
    victim.assert_well();
}

#[test]
fn two_processes_traced_by_one_thread() {
    let (mut one, mut two) = (Victim::start(), Victim::start());
    one.ask("churn 2");
    two.ask("churn 2");
    let (mut first, mut second) = (one.seize(), two.seize());
    for _ in 0..20 {
        let stopped = first.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
        let other = second.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
        first = stopped.resume_all().unwrap();
        second = other.resume_all().unwrap();
        let mut seen = [0; 2];
        wait_for("both", || {
            seen[0] += first.pump(Instant::now()).unwrap().len();
            seen[1] += second.pump(Instant::now()).unwrap().len();
            seen[0] > 5 && seen[1] > 5
        });
    }
    drop(first);
    second.detach().unwrap();
    one.assert_well();
    two.assert_well();
}

#[test]
fn one_thread_is_held_while_the_others_run() {
    let mut victim = Victim::start();
    victim.ask("tick 3");
    let process = victim.process();
    let mut seized = victim.seize();
    let leader = victim.pid().leader();
    seized.interrupt_one(leader, soon()).unwrap().keep();
    let before = victim.word(&process, "ticks");
    wait_for("ticks", || {
        seized.pump(Instant::now()).unwrap();
        victim.word(&process, "ticks") > before
    });
    assert_eq!(victim.state(), Some(ThreadState::TracingStop));
    assert!(seized.held(Tid(leader.0 + 1_000_000)).is_none());
    seized.held(leader).unwrap().resume().unwrap();
    assert!(seized.held(leader).is_none());
    assert_eq!(victim.ask_traced(&mut seized, "echo on"), "echo on");
    let gone = seized.interrupt_one(Tid(1), soon()).map(drop);
    assert!(matches!(gone, Err(InterruptError::NoThread { tid: Tid(1) })));
    drop(seized.interrupt_one(leader, soon()).unwrap());
    assert_eq!(victim.ask_traced(&mut seized, "echo on"), "echo on");
    seized.detach().unwrap();
    victim.assert_well();
}

#[test]
fn a_trap_of_its_own_waits_until_the_process_catches_it() {
    let mut victim = Victim::start();
    victim.ask("default 5");
    let mut seized = victim.seize();
    seized.hold_own_traps(true);
    victim.ask_traced(&mut seized, "trap");
    wait_for("the trap", || {
        seized.pump(Instant::now()).unwrap();
        seized.has_own_traps()
    });
    assert_eq!(victim.ask_traced(&mut seized, "catch 5"), "ok");
    assert!(seized.has_own_traps());
    assert_eq!(victim.ask_traced(&mut seized, "signals"), "0 0");
    seized.deliver_own_traps();
    wait_for("the signal", || victim.ask_traced(&mut seized, "signals").starts_with("1 "));
    // Caught, the next one has nothing to wait for.
    victim.ask_traced(&mut seized, "trap");
    wait_for("the signal", || victim.ask_traced(&mut seized, "signals").starts_with("2 "));
    assert!(!seized.has_own_traps());
    seized.hold_own_traps(false);
    seized.detach().unwrap();
    victim.assert_well();
}

#[test]
fn an_already_traced_process_is_refused() {
    let victim = Victim::start();
    let process = victim.process();
    let seized = victim.seize();
    let own = std::process::id() as i32;
    let refused = |result: Result<(), ProcessError>| match result {
        Err(ProcessError::AlreadyTraced { tracer, .. }) => assert_eq!(tracer.pid.0, own),
        other => panic!("{other:?}"),
    };
    refused(Process::open(victim.pid()).map(drop));
    // By another OS thread, which finds out in the attempt.
    std::thread::scope(|scope| {
        scope.spawn(|| refused(Seized::seize_all(&process, soon()).map(drop)));
    });
    seized.detach().unwrap();
    Process::open(victim.pid()).unwrap();
}

#[test]
fn a_held_thread_stays_held_after_work_on_it() {
    let mut victim = Victim::start();
    victim.ask("tick 1");
    let mut seized = victim.seize();
    let leader = victim.pid().leader();
    seized.interrupt_one(leader, soon()).unwrap().keep();
    drop(seized.interrupt_one(leader, soon()).unwrap());
    assert!(seized.held(leader).is_some(), "it runs again");
    seized.held(leader).unwrap().resume().unwrap();
    drop(seized.interrupt_one(leader, soon()).unwrap());
    assert!(seized.held(leader).is_none(), "a thread that ran runs again");
    seized.detach().unwrap();
    victim.assert_well();
}
