//! Remote system calls and calls, and that the program notices nothing of them.

mod common;

use common::{Victim, soon, thread_state, wait_for};
use livepatch_patch::RunAddr;
use livepatch_process::{
    Breakpoints, CallProgress, CallSite, Event, Loss, PAGE_SIZE, ProcessError, Protection, RemoteCall,
    RemoteError, Seized, StoppedThread, ThreadState, Tid, mmap_min_addr, near_gap,
};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// A call site near the program.
fn call_site(victim: &Victim, thread: &mut StoppedThread<'_>) -> CallSite {
    let at = map_near(victim, thread, CallSite::SIZE);
    let site = CallSite::at(at);
    site.prepare(thread, soon()).unwrap();
    site
}

fn map_near(victim: &Victim, thread: &mut StoppedThread<'_>, size: u64) -> RunAddr {
    let maps = thread.process().maps().unwrap();
    let main = victim.fact("main");
    let module = maps.iter().find(|map| map.contains(main)).unwrap();
    let at = near_gap(&maps, module.range.clone(), size, mmap_min_addr()).unwrap();
    thread.map_at(at, size, Protection::ReadWrite, soon()).unwrap();
    at
}

fn call<'a>(site: CallSite, victim: &Victim, name: &'a str, args: [u64; 6]) -> RemoteCall<'a> {
    RemoteCall { name, function: victim.fact(name), args, site }
}

fn leader(victim: &Victim) -> Tid {
    victim.pid().leader()
}

const SYS_READ: u64 = libc::SYS_read as u64;

#[test]
fn system_calls_while_blocked_in_read() {
    let mut victim = Victim::start();
    victim.wait_in_syscall(leader(&victim), SYS_READ);
    let mut seized = victim.seize();
    for round in 0..20 {
        let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
        let before = (thread.regs().unwrap(), thread.xstate().unwrap(), thread.signal_mask().unwrap());
        let pid = thread.remote_syscall(libc::SYS_getpid, [0; 6], soon()).unwrap();
        assert_eq!(pid, Ok(victim.pid().0 as u64));
        let closed = thread.remote_syscall(libc::SYS_close, [12345, 0, 0, 0, 0, 0], soon()).unwrap();
        assert_eq!(closed, Err(Errno::EBADF));
        let after = (thread.regs().unwrap(), thread.xstate().unwrap(), thread.signal_mask().unwrap());
        assert_eq!((before.0, before.2), (after.0, after.2));
        // XSTATE_BV at 512 may show a component of zeros as initial or not, as the processor likes.
        let (before, after) = (before.1.bytes(), after.1.bytes());
        assert!(before[..512] == after[..512] && before[520..] == after[520..]);
        drop(thread);
        if round % 2 == 0 {
            let line = format!("echo {round}");
            assert_eq!(victim.ask_traced(&mut seized, &line), line);
        }
    }
    seized.detach().unwrap();
    victim.assert_well();
}

#[test]
fn memory_is_mapped_protected_and_unmapped() {
    let victim = Victim::start();
    let process = victim.process();
    let mut stopped = victim.seize().interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    let mut thread = stopped.thread(leader(&victim)).unwrap();
    let site = call_site(&victim, &mut thread);
    let code = site.range().start;
    let perms = |at: RunAddr| {
        let maps = process.maps().unwrap();
        maps.into_iter()
            .find(|map| map.contains(at))
            .map(|map| (map.perms.read, map.perms.write, map.perms.execute))
    };
    assert_eq!(perms(code), Some((true, false, true)));
    assert_eq!(perms(code.offset(PAGE_SIZE as i64)), Some((true, true, false)));
    assert!(site.is_ready(&process));
    // Read-only text takes the tracer's writes.
    let free = code.offset(0x100);
    process.write(free, &[0x90; 64]).unwrap();
    assert_eq!(process.read_vec(free, 64).unwrap(), [0x90; 64]);
    let again = thread.map_at(code, PAGE_SIZE, Protection::Read, soon());
    let Err(RemoteError::Syscall { name: "mmap", source }) = again else { panic!("{again:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::AlreadyExists);
    thread.unmap(code, CallSite::SIZE, soon()).unwrap();
    assert_eq!(perms(code), None);
    let read = process.read_u64(code);
    assert!(matches!(read, Err(ProcessError::Memory { access: "read", .. })), "{read:?}");
    let write = process.write(code, &[1]);
    assert!(matches!(write, Err(ProcessError::Memory { access: "write", .. })), "{write:?}");
    let (mut good, mut bad) = ([0; 8], [0; 8]);
    process.read_many(&mut [(victim.fact("ticks"), &mut good), (victim.fact("main"), &mut bad)]).unwrap();
    assert_eq!(bad, process.read_array(victim.fact("main")).unwrap());
    assert!(process.read_many(&mut [(victim.fact("ticks"), &mut good), (code, &mut bad)]).is_err());
}

#[test]
fn calls_take_six_arguments_and_find_the_abi_in_order() {
    let mut victim = Victim::start();
    victim.wait_in_syscall(leader(&victim), SYS_READ);
    let mut seized = victim.seize();
    let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
    let site = call_site(&victim, &mut thread);
    let mut called = |name, args| thread.remote_call(&call(site, &victim, name, args), soon()).unwrap();
    assert_eq!(called("six", [1, 10, 100, 1000, 10_000, 100_000]), 3_368_421);
    let state = called("entry_state", [0; 6]);
    assert_eq!(state as u32, 64 - 8, "stack alignment at the entry");
    assert_eq!(state >> 32 & 0x4_0500, 0, "flags at the entry");
    assert_eq!(called("control_words", [0; 6]), 0x037f_0000_1f80);
    drop(thread);
    assert_eq!(victim.ask_traced(&mut seized, "echo on"), "echo on");
    seized.detach().unwrap();
    victim.assert_well();
}

#[test]
fn a_running_thread_keeps_its_registers() {
    let mut victim = Victim::start();
    victim.ask("tick 2");
    let guard = Tid(victim.ask("guard").parse().unwrap());
    let process = victim.process();
    let mut seized = victim.seize();
    let mut thread = seized.interrupt_one(guard, soon()).unwrap();
    let site = call_site(&victim, &mut thread);
    drop(thread);
    for _ in 0..200 {
        let mut thread = seized.interrupt_one(guard, soon()).unwrap();
        let clobber = call(site, &victim, "clobber", [0; 6]);
        assert_eq!(thread.remote_call(&clobber, soon()).unwrap(), 77);
        assert_eq!(site.progress(&process).unwrap(), CallProgress::Returned);
        let controls = call(site, &victim, "control_words", [0; 6]);
        assert_eq!(thread.remote_call(&controls, soon()).unwrap() & 0xffff, 0x1f80);
        thread.remote_syscall(libc::SYS_getppid, [0; 6], soon()).unwrap().unwrap();
        drop(thread);
        let before = victim.word(&process, "spins");
        wait_for("the loop", || {
            seized.pump(Instant::now()).unwrap();
            victim.word(&process, "spins") > before
        });
    }
    assert_eq!(victim.word(&process, "bad"), 0);
    seized.detach().unwrap();
    victim.assert_well();
}

#[test]
fn the_others_run_during_a_call_or_stand() {
    let mut victim = Victim::start();
    victim.ask("tick 2");
    let process = victim.process();
    let mut seized = victim.seize();
    let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
    let site = call_site(&victim, &mut thread);
    let spin = call(site, &victim, "spin", [0; 6]);
    let in_50_ms = || Instant::now() + Duration::from_millis(50);
    let before = victim.word(&process, "ticks");
    let timeout = thread.remote_call(&spin, in_50_ms());
    assert!(matches!(&timeout, Err(RemoteError::Timeout { what, .. }) if what == "spin"), "{timeout:?}");
    assert!(victim.word(&process, "ticks") > before);
    drop(thread);
    let mut stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    let before = victim.word(&process, "ticks");
    let mut thread = stopped.thread(leader(&victim)).unwrap();
    let timeout = thread.remote_call(&spin, in_50_ms());
    assert!(matches!(timeout, Err(RemoteError::Timeout { .. })), "{timeout:?}");
    assert_eq!(victim.word(&process, "ticks"), before);
    let pause = thread.remote_syscall(libc::SYS_pause, [0; 6], in_50_ms());
    let Err(slow @ RemoteError::Slow { .. }) = &pause else { panic!("{pause:?}") };
    let named =
        format!("thread {} ({}) did not get", leader(&victim), process.thread_name(leader(&victim)).unwrap());
    assert!(slow.to_string().starts_with(&named), "{slow}");
    assert_eq!(thread.remote_syscall(libc::SYS_getpid, [0; 6], soon()).unwrap(), Ok(victim.pid().0 as u64));
    drop(thread);
    stopped.detach().unwrap();
    victim.assert_well();
}

#[test]
fn a_fault_in_a_call_is_an_error_and_no_signal() {
    let mut victim = Victim::start();
    let mut seized = victim.seize();
    let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
    let site = call_site(&victim, &mut thread);
    let before = thread.regs().unwrap();
    let fault = thread.remote_call(&call(site, &victim, "fault", [0; 6]), soon());
    let Err(RemoteError::Fault { signal, ip, fault, .. }) = fault else { panic!("{fault:?}") };
    assert_eq!((signal, ip, fault), (libc::SIGSEGV, victim.fact("fault"), RunAddr(0x10)));
    assert_eq!(site.progress(thread.process()).unwrap(), CallProgress::BrokenOff);
    // A jump to nowhere, and an int3.
    let nowhere = RemoteCall { function: RunAddr(0x10), ..call(site, &victim, "six", [0; 6]) };
    assert!(matches!(
        thread.remote_call(&nowhere, soon()),
        Err(RemoteError::Fault { signal: libc::SIGSEGV, .. })
    ));
    let free = site.range().start.offset(0x100);
    thread.process().write(free, &[0xcc]).unwrap();
    let trap = RemoteCall { function: free, ..call(site, &victim, "six", [0; 6]) };
    assert!(matches!(
        thread.remote_call(&trap, soon()),
        Err(RemoteError::Fault { signal: libc::SIGTRAP, .. })
    ));
    let no_site = RemoteCall { site: CallSite::at(victim.fact("hot")), ..trap };
    assert!(matches!(thread.remote_call(&no_site, soon()), Err(RemoteError::Unfit { .. })));
    assert_eq!(thread.regs().unwrap(), before);
    drop(thread);
    assert_eq!(victim.ask_traced(&mut seized, "signals"), "0 0");
    seized.detach().unwrap();
    victim.assert_well();
}

/// Queues a realtime signal with a value.
fn queue(victim: &Victim, value: i32) {
    // SAFETY: sigqueue takes numbers; sival_ptr carries the int in its low half.
    unsafe {
        let value = libc::sigval { sival_ptr: value as usize as *mut libc::c_void };
        assert_eq!(libc::sigqueue(victim.pid().0, REALTIME, value), 0);
    }
}

const REALTIME: i32 = 36;

#[test]
fn signals_arrive_once_whatever_goes_on() {
    for threads in [0, 4] {
        let mut victim = Victim::start();
        victim.ask(&format!("tick {threads}"));
        let mut seized = victim.seize();
        let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
        let site = call_site(&victim, &mut thread);
        drop(thread);
        let (mut sent, mut sum) = (0, 0_i64);
        let mut send = |victim: &Victim| {
            sent += 1;
            sum += i64::from(sent);
            queue(victim, sent);
        };
        for round in 0..60 {
            send(&victim);
            let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
            send(&victim);
            thread.remote_syscall(libc::SYS_getpid, [0; 6], soon()).unwrap().unwrap();
            send(&victim);
            let six = call(site, &victim, "six", [1, 0, 0, 0, 0, 0]);
            assert_eq!(thread.remote_call(&six, soon()).unwrap(), 1);
            if round % 20 == 0 {
                let spin = call(site, &victim, "spin", [0; 6]);
                std::thread::scope(|scope| {
                    scope.spawn(|| send(&victim));
                    let end = Instant::now() + Duration::from_millis(20);
                    assert!(matches!(thread.remote_call(&spin, end), Err(RemoteError::Timeout { .. })));
                });
            }
            drop(thread);
            send(&victim);
            let stopped = seized.interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
            send(&victim);
            seized = stopped.resume_all().unwrap();
            send(&victim);
            seized.pump(Instant::now()).unwrap();
        }
        send(&victim);
        seized.detach().unwrap();
        let expected = format!("{sent} {sum}");
        wait_for("all signals", || victim.ask("signals").split(' ').next() == Some(&sent.to_string()));
        assert_eq!(victim.ask("signals"), expected);
        victim.assert_well();
    }
}

#[test]
fn a_fault_signal_sent_by_a_process_is_delivered_after_the_call() {
    let mut victim = Victim::start();
    let mut seized = victim.seize();
    let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
    let site = call_site(&victim, &mut thread);
    // SIGTRAP is one of those that are not blocked during a call; the program has a handler for it.
    victim.kill(Signal::SIGTRAP);
    let six = call(site, &victim, "six", [5, 0, 0, 0, 0, 0]);
    assert_eq!(thread.remote_call(&six, soon()).unwrap(), 5);
    thread.remote_syscall(libc::SYS_getpid, [0; 6], soon()).unwrap().unwrap();
    drop(thread);
    wait_for("the signal", || victim.ask_traced(&mut seized, "signals").starts_with("1 "));
    seized.detach().unwrap();
    victim.assert_well();
}

#[test]
fn remote_work_in_a_stopped_program_leaves_it_stopped() {
    let mut victim = Victim::start();
    victim.ask("tick 2");
    victim.kill(Signal::SIGSTOP);
    let all_stopped = |victim: &Victim| {
        victim.tasks().into_iter().all(|tid| thread_state(victim.pid(), tid) == Some(ThreadState::Stopped))
    };
    wait_for("the stop", || all_stopped(&victim));
    let mut stopped = victim.seize().interrupt_all(soon()).map_err(|(_, error)| error).unwrap();
    let mut thread = stopped.thread(leader(&victim)).unwrap();
    let site = call_site(&victim, &mut thread);
    let six = call(site, &victim, "six", [3, 0, 0, 0, 0, 0]);
    assert_eq!(thread.remote_call(&six, soon()).unwrap(), 3);
    drop(thread);
    let mut seized = stopped.resume_all().unwrap();
    seized.pump(Instant::now() + Duration::from_millis(20)).unwrap();
    let before = victim.word(seized.process(), "ticks");
    seized.pump(Instant::now() + Duration::from_millis(20)).unwrap();
    assert_eq!(victim.word(seized.process(), "ticks"), before);
    seized.detach().unwrap();
    wait_for("the stop", || all_stopped(&victim));
    victim.kill(Signal::SIGCONT);
    victim.assert_well();
}

#[test]
fn stopped_by_a_signal_during_a_call() {
    let mut victim = Victim::start();
    let mut seized = victim.seize();
    let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
    let site = call_site(&victim, &mut thread);
    victim.kill(Signal::SIGSTOP);
    let six = call(site, &victim, "six", [4, 0, 0, 0, 0, 0]);
    assert_eq!(thread.remote_call(&six, soon()).unwrap(), 4);
    drop(thread);
    seized.detach().unwrap();
    wait_for("the stop", || victim.state() == Some(ThreadState::Stopped));
    victim.kill(Signal::SIGCONT);
    victim.assert_well();
}

#[test]
fn what_a_seccomp_filter_forbids_is_not_tried() {
    let mut victim = Victim::start();
    victim.ask("filter");
    let mut seized = victim.seize();
    let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
    let before = thread.regs().unwrap();
    let mut call = |number| thread.remote_syscall(number, [0; 6], soon());
    for (number, action) in
        [(libc::SYS_getuid, "error"), (libc::SYS_getppid, "SIGSYS"), (libc::SYS_getgid, "killing")]
    {
        match call(number) {
            Err(RemoteError::Forbidden { answer, .. }) => assert!(answer.contains(action), "{answer}"),
            other => panic!("system call {number}: {other:?}"),
        }
    }
    assert_eq!(call(libc::SYS_getpid).unwrap(), Ok(victim.pid().0 as u64));
    assert_eq!(thread.regs().unwrap(), before);
    drop(thread);
    assert_eq!(victim.ask_traced(&mut seized, "echo on"), "echo on");
    seized.detach().unwrap();
    victim.assert_well();
}

#[test]
fn a_thread_stuck_in_a_call_is_put_back_when_it_stops() {
    let mut victim = Victim::start();
    let answer = victim.ask("pipe");
    let (read, write) = answer.split_once(' ').unwrap();
    let guard = Tid(victim.ask("guard").parse().unwrap());
    let process = victim.process();
    let mut seized = victim.seize();
    let mut thread = seized.interrupt_one(guard, soon()).unwrap();
    let site = call_site(&victim, &mut thread);
    let call = call(site, &victim, "vfork_and_wait", [read.parse().unwrap(), 0, 0, 0, 0, 0]);
    let stuck = thread.remote_call(&call, Instant::now() + Duration::from_millis(20));
    assert!(matches!(stuck, Err(RemoteError::Stuck { .. })), "{stuck:?}");
    assert!(matches!(thread.remote_call(&call, soon()), Err(RemoteError::Unfit { .. })));
    drop(thread);
    let before = victim.word(&process, "spins");
    assert_eq!(victim.ask_traced(&mut seized, &format!("release {write}")), "ok");
    wait_for("the loop", || {
        seized.pump(Instant::now()).unwrap();
        victim.word(&process, "spins") > before + 2
    });
    assert_eq!(victim.word(&process, "bad"), 0);
    seized.detach().unwrap();
    victim.assert_well();
}

#[test]
fn killed_during_a_call() {
    let mut victim = Victim::start();
    victim.ask("tick 2");
    let mut seized = victim.seize();
    let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
    let site = call_site(&victim, &mut thread);
    let spin = call(site, &victim, "spin", [0; 6]);
    let lost = std::thread::scope(|scope| {
        let victim = &victim;
        scope.spawn(|| {
            wait_for("the call", || victim.state() == Some(ThreadState::Running));
            victim.kill(Signal::SIGKILL);
        });
        thread.remote_call(&spin, soon())
    });
    let ended = matches!(lost, Err(RemoteError::Process(ProcessError::Lost { how: Loss::Ended, .. })));
    assert!(ended, "{lost:?}");
}

/// A thread that calls a function without pause, the function, and its first byte.
fn calls_hot(victim: &mut Victim) -> (Tid, RunAddr, [u8; 1]) {
    let hot = Tid(victim.ask("hot").parse().unwrap());
    let entry = victim.fact("hot");
    (hot, entry, victim.process().read_array(entry).unwrap())
}

#[test]
fn a_breakpoint_holds_threads_and_leaves_no_trace() {
    let mut victim = Victim::start();
    let (hot, entry, original) = calls_hot(&mut victim);
    let process = victim.process();
    let mut seized = victim.seize();
    seized.set_breakpoints(Breakpoints::from([(entry, None)]));
    for _ in 0..50 {
        process.write(entry, &[0xcc]).unwrap();
        let events = pump_until_held(&mut seized);
        assert_eq!(events, [Event::Breakpoint { tid: hot, addr: entry }]);
        process.write(entry, &original).unwrap();
        let thread = seized.held(hot).unwrap();
        assert_eq!(thread.regs().unwrap().ip(), entry);
        thread.resume().unwrap();
        let before = victim.word(&process, "ticks");
        wait_for("calls", || {
            seized.pump(Instant::now()).unwrap();
            victim.word(&process, "ticks") > before
        });
    }
    // Let go while held: the thread finds the original bytes and goes on.
    process.write(entry, &[0xcc]).unwrap();
    pump_until_held(&mut seized);
    process.write(entry, &original).unwrap();
    seized.detach().unwrap();
    let before = victim.word(&process, "ticks");
    wait_for("calls", || victim.word(&process, "ticks") > before);
    assert_eq!(victim.word(&process, "bad"), 0);
    assert_eq!(victim.ask("signals"), "0 0");
    victim.assert_well();
}

/// Work inside the process takes the thread that came to a breakpoint, or was asked to stop, before anybody heard of that.
#[test]
fn a_thread_whose_stop_is_told_is_found_there() {
    let mut victim = Victim::start();
    let (hot, entry, original) = calls_hot(&mut victim);
    let process = victim.process();
    let mut seized = victim.seize();
    seized.set_breakpoints(Breakpoints::from([(entry, None)]));
    process.write(entry, &[0xcc]).unwrap();
    for work in [false, true] {
        wait_for("the breakpoint", || process.thread_state(hot) == Some(ThreadState::TracingStop));
        let mut thread = seized.interrupt_one(hot, soon()).unwrap();
        assert_eq!(thread.regs().unwrap().ip(), entry);
        if work {
            thread.remote_syscall(libc::SYS_gettid, [0; 6], soon()).unwrap().unwrap();
        }
        drop(thread);
        drop(seized.interrupt_one(hot, soon()).unwrap());
        seized.attend(Instant::now() + Duration::from_millis(1)).unwrap();
        assert_eq!(seized.held(hot).expect("it is held").regs().unwrap().ip(), entry);
        assert_eq!(seized.pump(soon()).unwrap(), [Event::Breakpoint { tid: hot, addr: entry }]);
        assert_eq!(seized.pump(Instant::now()).unwrap(), []);
        seized.held(hot).unwrap().resume().unwrap();
    }
    pump_until_held(&mut seized);
    process.write(entry, &original).unwrap();
    seized.held(hot).unwrap().resume().unwrap();
    seized.request_stop(hot).unwrap();
    drop(seized.interrupt_one(hot, soon()).unwrap());
    assert!(seized.held(hot).is_some(), "it was let go on");
    assert_eq!(seized.poll([hot]).unwrap(), [Event::Stopped { tid: hot }]);
    // Nobody looks after it.
    seized.let_all_run().unwrap();
    assert!(seized.held(hot).is_none());
    seized.request_stop(hot).unwrap();
    seized.let_all_run().unwrap();
    drop(seized.interrupt_one(hot, soon()).unwrap());
    assert!(seized.held(hot).is_none());
    assert_eq!(seized.pump(Instant::now()).unwrap(), []);
    seized.detach().unwrap();
    assert_eq!(victim.ask("signals"), "0 0");
    victim.assert_well();
}

#[test]
fn a_thread_passes_on_sight_so_many_times_and_no_more() {
    let mut victim = Victim::start();
    let (hot, entry, original) = calls_hot(&mut victim);
    let process = victim.process();
    let mut seized = victim.seize();
    // It is sent to where it was, and comes to the breakpoint again at once.
    seized.set_breakpoints(Breakpoints::from([(entry, Some(entry))]));
    process.write(entry, &[0xcc]).unwrap();
    let held = [Event::Breakpoint { tid: hot, addr: entry }];
    assert_eq!(pump_until_held(&mut seized), held);
    assert_eq!(seized.passed(), []);
    let thread = seized.held(hot).unwrap();
    let sp = thread.regs().unwrap().sp();
    thread.resume().unwrap();
    for (below, passes) in [(sp.offset(8), false), (sp.offset(9), true)] {
        pump_until_held(&mut seized);
        seized.let_pass(hot, below, 3);
        seized.held(hot).unwrap().resume().unwrap();
        assert_eq!(pump_until_held(&mut seized), held);
        assert_eq!(seized.passed(), if passes { vec![(hot, sp)] } else { vec![] });
        assert_eq!(seized.passed(), []);
        seized.held(hot).unwrap().resume().unwrap();
    }
    pump_until_held(&mut seized);
    process.write(entry, &original).unwrap();
    seized.detach().unwrap();
    let before = victim.word(&process, "ticks");
    wait_for("calls", || victim.word(&process, "ticks") > before);
    assert_eq!(victim.ask("signals"), "0 0");
    victim.assert_well();
}

fn pump_until_held(seized: &mut Seized) -> Vec<Event> {
    let events = seized.pump(soon()).unwrap();
    events.into_iter().filter(|event| matches!(event, Event::Breakpoint { .. })).collect()
}
