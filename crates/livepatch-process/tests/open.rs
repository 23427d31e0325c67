//! Which processes can be opened.

mod common;

use common::{Victim, thread_state, wait_for};
use livepatch_patch::RunAddr;
use livepatch_process::{Pid, Process, ProcessError, ThreadState};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

#[test]
fn facts_of_a_process() {
    let mut victim = Victim::start();
    victim.ask("tick 4");
    let process = victim.process();
    assert_eq!(process.pid(), victim.pid());
    let status = process.status().unwrap();
    assert_eq!((status.threads, status.tracer), (5, None));
    assert_eq!(status.parent.0 as u32, std::process::id());
    assert_eq!(process.threads().unwrap().len(), 5);
    let main = victim.fact("main");
    let maps = process.maps().unwrap();
    let text = maps.iter().find(|map| map.contains(main)).unwrap();
    assert_eq!(text.path().unwrap(), process.exe().unwrap());
    assert!(text.perms.execute && !text.perms.write && !text.deleted);
    // A thread may still be giving back memory that it started with; the rest stays.
    for mapping in
        maps.iter().filter(|map| map.inode != 0 || map.is_special("[stack]") || map.is_special("[vdso]"))
    {
        let last = mapping.range.end.offset(-1);
        assert_eq!(process.mapping_at(last).unwrap().as_ref(), Some(mapping));
    }
    assert_eq!(process.mapping_at(RunAddr(0)).unwrap(), None);
    let in_file = text.file_offset + (main.0 - text.range.start.0);
    let file = std::fs::read(process.exe().unwrap()).unwrap();
    assert_eq!(process.read_vec(main, 64).unwrap(), file[in_file as usize..][..64]);
    assert_eq!(process.thread_name(victim.pid().leader()).as_deref(), Some("victim-open"));
}

#[test]
fn what_was_written_over_a_mapped_file_is_read() {
    let victim = Victim::start();
    let process = victim.process();
    let text = process.mapping_at(victim.fact("main")).unwrap().unwrap();
    let (at, len) = (text.range.start, text.len() as usize);
    let file = process.read_mapped(at, len).unwrap();
    assert_eq!(file, process.read_vec(at, len).unwrap());
    // Padding behind the code, or code that never runs: the program ends before it runs again.
    let seized = victim.seize();
    let last = len - 1;
    process.write(at.offset(last as i64), &[file[last] ^ 1]).unwrap();
    let now = process.read_mapped(at, len).unwrap();
    assert_eq!((now[last], &now[..last]), (file[last] ^ 1, &file[..last]));
    drop(seized);
}

#[test]
fn no_such_process() {
    for pid in [Pid(i32::MAX), Pid(-1), Pid(0)] {
        let result = Process::open(pid);
        assert!(matches!(result, Err(ProcessError::NoSuchProcess { .. })), "{result:?}");
    }
}

#[test]
fn a_thread_is_no_process() {
    let mut victim = Victim::start();
    victim.ask("tick 1");
    let other = victim.tasks().into_iter().find(|&tid| tid != victim.pid().leader()).unwrap();
    let result = Process::open(Pid(other.0));
    assert!(matches!(result, Err(ProcessError::NoSuchProcess { .. })), "{result:?}");
}

#[test]
fn a_zombie_is_no_process() {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = Pid(child.id() as i32);
    wait_for("the end", || thread_state(pid, pid.leader()) == Some(ThreadState::Zombie));
    let result = Process::open(pid);
    assert!(matches!(result, Err(ProcessError::NoSuchProcess { .. })), "{result:?}");
    child.wait().unwrap();
}

#[test]
fn itself() {
    let result = Process::open(Pid(std::process::id() as i32));
    assert!(matches!(result, Err(ProcessError::Permission { .. })), "{result:?}");
}

#[test]
fn another_user_is_told_what_to_grant() {
    const NOBODY: u32 = 65534;
    let root = nix::unistd::geteuid().is_root();
    if !root {
        return open_init();
    }
    // Root may trace everything: the same check as user nobody, with a copy of this program that nobody can read.
    let folder = tempfile::tempdir().unwrap();
    let tool = folder.path().join("tool");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // A process of its own writes it: the kernel executes nothing that a child of another test may have open for writing.
    let own = std::env::current_exe().unwrap();
    let copied = Command::new("install").args(["-m", "755"]).args([&own, &tool]).status().unwrap();
    assert!(copied.success());
    let args = ["--exact", "another_user_is_told_what_to_grant", "--nocapture"];
    let output = Command::new(&tool).args(args).uid(NOBODY).gid(NOBODY).current_dir("/").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("refused as user 65534"), "{text}");
}

/// The first process of the machine or container, which is root's.
fn open_init() {
    let error = Process::open(Pid(1)).unwrap_err();
    let ProcessError::Permission { hint, .. } = &error else { panic!("{error:?}") };
    assert!(hint.contains("CAP_SYS_PTRACE"), "{hint}");
    println!("refused as user {}", nix::unistd::geteuid());
}
