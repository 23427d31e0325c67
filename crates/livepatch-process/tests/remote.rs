//! Remote system calls and calls, and that the program notices nothing of them.

mod common;

use common::{Victim, soon, thread_state, wait_for};
use livepatch_patch::RunAddr;
use livepatch_process::{
    CallStack, Event, Loss, PAGE_SIZE, ProcessError, Protection, RemoteCall, RemoteError, Seized,
    StoppedThread, ThreadState, Tid, mmap_min_addr, near_gap,
};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Pages near the program: one of code that holds an `int3`, and a stack above it.
struct Pages {
    trap: RunAddr,
    stack_end: RunAddr,
}

const STACK: u64 = 64 << 10;

impl Pages {
    fn map(victim: &Victim, thread: &mut StoppedThread<'_>) -> Self {
        let maps = thread.process().maps().unwrap();
        let main = victim.fact("main");
        let module = maps.iter().find(|map| map.contains(main)).unwrap();
        let at = near_gap(&maps, module.range.clone(), PAGE_SIZE + STACK, mmap_min_addr()).unwrap();
        thread.map_at(at, PAGE_SIZE + STACK, Protection::ReadWrite, soon()).unwrap();
        thread.process().write(at, &[0xcc]).unwrap();
        thread.protect(at, PAGE_SIZE, Protection::ReadExecute, soon()).unwrap();
        Self { trap: at, stack_end: at.offset((PAGE_SIZE + STACK) as i64) }
    }

    fn call<'a>(&self, victim: &Victim, name: &'a str, args: [u64; 6]) -> RemoteCall<'a> {
        RemoteCall { name, function: victim.fact(name), args, trap: self.trap, stack: CallStack::OfThread }
    }

    fn call_on_stack<'a>(&self, victim: &Victim, name: &'a str, args: [u64; 6]) -> RemoteCall<'a> {
        RemoteCall { stack: CallStack::EndingAt(self.stack_end), ..self.call(victim, name, args) }
    }
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
    let Pages { trap, .. } = Pages::map(&victim, &mut thread);
    let perms = |at: RunAddr| {
        let maps = process.maps().unwrap();
        maps.into_iter()
            .find(|map| map.contains(at))
            .map(|map| (map.perms.read, map.perms.write, map.perms.execute))
    };
    assert_eq!(perms(trap), Some((true, false, true)));
    assert_eq!(perms(trap.offset(PAGE_SIZE as i64)), Some((true, true, false)));
    // Read-only text takes the tracer's writes.
    process.write(trap.offset(1), &[0x90; 64]).unwrap();
    assert_eq!(process.read_vec(trap, 65).unwrap(), [&[0xcc_u8][..], &[0x90; 64]].concat());
    let again = thread.map_at(trap, PAGE_SIZE, Protection::Read, soon());
    assert!(matches!(again, Err(RemoteError::Syscall { name: "mmap", errno: Errno::EEXIST })), "{again:?}");
    thread.unmap(trap, PAGE_SIZE + STACK, soon()).unwrap();
    assert_eq!(perms(trap), None);
    let read = process.read_u64(trap);
    assert!(matches!(read, Err(ProcessError::Memory { access: "read", .. })), "{read:?}");
    let write = process.write(trap, &[1]);
    assert!(matches!(write, Err(ProcessError::Memory { access: "write", .. })), "{write:?}");
    let (mut good, mut bad) = ([0; 8], [0; 8]);
    process.read_many(&mut [(victim.fact("ticks"), &mut good), (victim.fact("main"), &mut bad)]).unwrap();
    assert_eq!(bad, process.read_array(victim.fact("main")).unwrap());
    assert!(process.read_many(&mut [(victim.fact("ticks"), &mut good), (trap, &mut bad)]).is_err());
}

#[test]
fn calls_take_six_arguments_and_find_the_abi_in_order() {
    let mut victim = Victim::start();
    victim.wait_in_syscall(leader(&victim), SYS_READ);
    let mut seized = victim.seize();
    let mut thread = seized.interrupt_one(leader(&victim), soon()).unwrap();
    let pages = Pages::map(&victim, &mut thread);
    for stack in [CallStack::OfThread, CallStack::EndingAt(pages.stack_end)] {
        let mut call = |name, args| {
            let call = RemoteCall { stack, ..pages.call(&victim, name, args) };
            thread.remote_call(&call, soon()).unwrap()
        };
        assert_eq!(call("six", [1, 10, 100, 1000, 10_000, 100_000]), 3_368_421);
        let state = call("entry_state", [0; 6]);
        assert_eq!(state as u32, 64 - 8, "stack alignment at the entry");
        assert_eq!(state >> 32 & 0x4_0500, 0, "flags at the entry");
        assert_eq!(call("control_words", [0; 6]), 0x037f_0000_1f80);
    }
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
    let pages = Pages::map(&victim, &mut thread);
    drop(thread);
    for round in 0..200 {
        let mut thread = seized.interrupt_one(guard, soon()).unwrap();
        let call = match round % 2 {
            0 => pages.call(&victim, "clobber", [0; 6]),
            _ => pages.call_on_stack(&victim, "clobber", [0; 6]),
        };
        assert_eq!(thread.remote_call(&call, soon()).unwrap(), 77);
        let controls = pages.call(&victim, "control_words", [0; 6]);
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
    let pages = Pages::map(&victim, &mut thread);
    let spin = pages.call(&victim, "spin", [0; 6]);
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
    assert!(matches!(pause, Err(RemoteError::Slow { .. })), "{pause:?}");
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
    let pages = Pages::map(&victim, &mut thread);
    let before = thread.regs().unwrap();
    let fault = thread.remote_call(&pages.call(&victim, "fault", [0; 6]), soon());
    let Err(RemoteError::Fault { signal, ip, fault, .. }) = fault else { panic!("{fault:?}") };
    assert_eq!((signal, ip, fault), (libc::SIGSEGV, victim.fact("fault"), RunAddr(0x10)));
    // A jump to nowhere, and an int3 elsewhere than the return.
    let nowhere = RemoteCall { function: RunAddr(0x10), ..pages.call(&victim, "six", [0; 6]) };
    assert!(matches!(
        thread.remote_call(&nowhere, soon()),
        Err(RemoteError::Fault { signal: libc::SIGSEGV, .. })
    ));
    let trap = RemoteCall { function: pages.trap, ..pages.call(&victim, "six", [0; 6]) };
    assert!(matches!(
        thread.remote_call(&trap, soon()),
        Err(RemoteError::Fault { signal: libc::SIGTRAP, .. })
    ));
    let no_trap = RemoteCall { trap: victim.fact("hot"), ..pages.call(&victim, "six", [0; 6]) };
    assert!(matches!(thread.remote_call(&no_trap, soon()), Err(RemoteError::Unfit { .. })));
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
        let pages = Pages::map(&victim, &mut thread);
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
            let six = pages.call(&victim, "six", [1, 0, 0, 0, 0, 0]);
            assert_eq!(thread.remote_call(&six, soon()).unwrap(), 1);
            if round % 20 == 0 {
                let spin = pages.call(&victim, "spin", [0; 6]);
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
    let pages = Pages::map(&victim, &mut thread);
    // SIGTRAP is one of those that are not blocked during a call; the program has a handler for it.
    victim.kill(Signal::SIGTRAP);
    let six = pages.call(&victim, "six", [5, 0, 0, 0, 0, 0]);
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
    let pages = Pages::map(&victim, &mut thread);
    let six = pages.call(&victim, "six", [3, 0, 0, 0, 0, 0]);
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
    let pages = Pages::map(&victim, &mut thread);
    victim.kill(Signal::SIGSTOP);
    let six = pages.call(&victim, "six", [4, 0, 0, 0, 0, 0]);
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
    let pages = Pages::map(&victim, &mut thread);
    let mut call = pages.call(&victim, "vfork_and_wait", [read.parse().unwrap(), 0, 0, 0, 0, 0]);
    call.stack = CallStack::EndingAt(pages.stack_end);
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
    let pages = Pages::map(&victim, &mut thread);
    let spin = pages.call(&victim, "spin", [0; 6]);
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

#[test]
fn a_breakpoint_holds_threads_and_leaves_no_trace() {
    let mut victim = Victim::start();
    let hot = Tid(victim.ask("hot").parse().unwrap());
    let process = victim.process();
    let entry = victim.fact("hot");
    let original: [u8; 1] = process.read_array(entry).unwrap();
    let mut seized = victim.seize();
    seized.set_breakpoints(BTreeSet::from([entry]));
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

fn pump_until_held(seized: &mut Seized) -> Vec<Event> {
    let events = seized.pump(soon()).unwrap();
    events.into_iter().filter(|event| matches!(event, Event::Breakpoint { .. })).collect()
}
