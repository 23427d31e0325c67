//! Patches on running programs.

mod support;

use livepatch_apply::registry::{FunctionRecord, PatchState};
use livepatch_apply::{
    ApplyError, ApplyOptions, LeaveRunning, Mismatch, Policy, RollbackOptions, SelectError, Selector, apply,
    check, rollback, status,
};
use livepatch_patch::item::ItemName;
use livepatch_patch::{
    BuildId, Digest, NewItem, NewItemKind, Origin, Place, Reloc, RelocKind, SectionKind, SymbolId,
};
use std::sync::OnceLock;
use std::time::Duration;
use support::{Program, Running, returns};

fn server() -> &'static Program {
    static SERVER: OnceLock<Program> = OnceLock::new();
    SERVER.get_or_init(|| Program::build("server", &[]))
}

fn value_patch(value: u32) -> Vec<u8> {
    server().patch(&format!("value-{value}")).redirect(server(), "value", &returns(value), vec![]).finish()
}

fn options() -> ApplyOptions {
    ApplyOptions { deadline: Duration::from_secs(20), ..ApplyOptions::default() }
}

fn roll_back(target: &Running) -> Result<livepatch_apply::RollbackReport, ApplyError> {
    rollback(target.pid(), &Selector::Last, &RollbackOptions::default())
}

#[test]
fn apply_and_roll_back() {
    let mut target = server().run();
    assert_eq!(target.ask("value"), "1");
    let report = apply(target.pid(), &value_patch(7), &options()).unwrap();
    assert!(!report.already_applied && report.holds.threads >= 1 && report.holds.worker_us > 0);
    assert_eq!(target.ask("value"), "7");
    let seen = status(target.pid()).unwrap();
    assert_eq!(seen.patches.len(), 1);
    assert_eq!(serde_json::to_value(seen.patches[0].state).unwrap(), "applied");
    assert_eq!(seen.patches[0].functions[0].path, "server::value");

    let again = apply(target.pid(), &value_patch(7), &options()).unwrap();
    assert!(again.already_applied);

    roll_back(&target).unwrap();
    assert_eq!(target.ask("value"), "1");
    assert!(matches!(roll_back(&target), Err(ApplyError::NothingToRollBack(_))));

    let reapplied = apply(target.pid(), &value_patch(7), &options()).unwrap();
    assert_eq!(reapplied.mapped_bytes, 0, "the memory of the first time is used again");
    assert_eq!(target.ask("value"), "7");
    target.end();
}

/// `mov rax, [rip+got(symbol)]; add qword [rax], 2; mov eax, result; ret`
fn count_and_return(result: u8) -> (Vec<u8>, u64) {
    (vec![0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x48, 0x83, 0x00, 2, 0xb8, result, 0, 0, 0, 0xc3], 3)
}

fn got(offset: u64, symbol: SymbolId) -> Reloc {
    Reloc { offset, kind: RelocKind::GotPcRel, symbol, addend: -4 }
}

#[test]
fn running_statics_are_shared() {
    let mut target = server().run();
    let mut patch = server().patch("counting");
    let (addr, size) = server().symbol("COUNTER");
    let counter = patch.symbol("COUNTER", Place::Image { addr, size });
    let (code, at) = count_and_return(8);
    let bytes = patch.redirect(server(), "value", &code, vec![got(at, counter)]).finish();
    apply(target.pid(), &bytes, &options()).unwrap();
    assert_eq!((target.ask("value"), target.ask("value")), ("8".into(), "8".into()));
    assert_eq!(target.ask("counter"), "9");
    target.end();
}

/// A patch whose `value` adds 2 to a static of its own and returns what it then is.
fn own_static(name: &str, kind: NewItemKind, type_digest: &[u8], extra: bool) -> Vec<u8> {
    let mut patch = server().patch(name);
    let data = patch.section(".data", SectionKind::Data, &100u64.to_le_bytes(), vec![]);
    let symbol = patch.symbol("server::HITS", Place::Section { section: data, offset: 0, size: 8 });
    patch.patch.meta.new_items.push(NewItem {
        path: "server::HITS".into(),
        symbol,
        kind,
        type_digest: Some(Digest::of(type_digest)),
        identity: None,
        sole: true,
        call_site: false,
        also: Vec::new(),
    });
    // mov rax, [rip+got]; add qword [rax], 2; mov rax, [rax]; ret
    let code = [0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x48, 0x83, 0x00, 2, 0x48, 0x8b, 0x00, 0xc3];
    let mut patch = patch.redirect(server(), "value", &code, vec![got(3, symbol)]);
    if extra {
        patch = patch.redirect(server(), "other", &returns(11), vec![]);
    }
    patch.finish()
}

#[test]
fn a_newer_patch_replaces_the_older_and_keeps_its_statics() {
    let mut target = server().run();
    let first = own_static("first", NewItemKind::Static, b"u64", true);
    apply(target.pid(), &first, &options()).unwrap();
    assert_eq!(
        (target.ask("value"), target.ask("value"), target.ask("other")),
        ("102".into(), "104".into(), "11".into())
    );

    let changed = own_static("changed", NewItemKind::Static, b"i64", false);
    let refused = apply(target.pid(), &changed, &options()).unwrap_err();
    assert!(
        matches!(&refused, ApplyError::Refused { reason } if reason.contains("server::HITS")),
        "{refused}"
    );

    let second = own_static("second", NewItemKind::Static, b"u64", false);
    let report = apply(target.pid(), &second, &options()).unwrap();
    assert_eq!(report.replaced.len(), 1);
    assert_eq!((target.ask("value"), target.ask("other")), ("106".into(), "10".into()));
    let states: Vec<_> = status(target.pid()).unwrap().patches.iter().map(|p| p.state).collect();
    assert_eq!(states, [PatchState::Replaced, PatchState::Applied]);

    roll_back(&target).unwrap();
    assert_eq!((target.ask("value"), target.ask("other")), ("1".into(), "10".into()));
    // with no patch applied nobody uses the old instance, and a static of another type starts anew
    apply(target.pid(), &changed, &options()).unwrap();
    assert_eq!(target.ask("value"), "102");
    target.end();
}

#[test]
fn imports_are_found_without_a_slot() {
    let mut target = server().run();
    let mut patch = server().patch("import");
    let getpid = patch.symbol("getpid", Place::Import { got: None, weak: false });
    // jmp getpid
    let reloc = Reloc { offset: 1, kind: RelocKind::Plt32, symbol: getpid, addend: -4 };
    let bytes = patch.redirect(server(), "value", &[0xe9, 0, 0, 0, 0], vec![reloc]).finish();
    apply(target.pid(), &bytes, &options()).unwrap();
    assert_eq!(target.ask("value"), target.pid().to_string());

    let mut patch = server().patch("ifunc");
    let strlen = patch.symbol("strlen", Place::Import { got: None, weak: false });
    let text = patch.section(".rodata", SectionKind::ReadOnly, b"12345\0", vec![]);
    let text = patch.symbol("text", Place::Section { section: text, offset: 0, size: 6 });
    let relocs = vec![
        Reloc { offset: 3, kind: RelocKind::Pc32, symbol: text, addend: -4 },
        Reloc { offset: 8, kind: RelocKind::Plt32, symbol: strlen, addend: -4 },
    ];
    // lea rdi, [rip+text]; jmp strlen
    let code = [0x48, 0x8d, 0x3d, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0];
    let bytes = patch.redirect(server(), "value", &code, relocs).finish();
    apply(target.pid(), &bytes, &options()).unwrap();
    assert_eq!(target.ask("value"), "5");

    let mut patch = server().patch("missing");
    let nothing = patch.symbol("no_such_function_anywhere", Place::Import { got: None, weak: false });
    let reloc = Reloc { offset: 1, kind: RelocKind::Plt32, symbol: nothing, addend: -4 };
    let bytes = patch.redirect(server(), "value", &[0xe9, 0, 0, 0, 0], vec![reloc]).finish();
    let error = apply(target.pid(), &bytes, &options()).unwrap_err();
    assert!(
        matches!(&error, ApplyError::Refused { reason } if reason.contains("no_such_function")),
        "{error}"
    );
    assert_eq!(target.ask("value"), "5");

    let mut patch = server().patch("perhaps");
    let nothing = patch.symbol("no_such_function_anywhere", Place::Import { got: None, weak: true });
    let reloc = Reloc { offset: 3, kind: RelocKind::GotPcRel, symbol: nothing, addend: -4 };
    // mov rax, [rip+its entry]; ret
    let code = [0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xc3];
    let bytes = patch.redirect(server(), "value", &code, vec![reloc]).finish();
    apply(target.pid(), &bytes, &options()).unwrap();
    assert_eq!(target.ask("value"), "0");
    target.end();
}

/// A patch whose `value` returns `ilogb(8.0)`, which is in libm, and says that it needs these libraries.
fn logarithm(name: &str, libraries: &[&str]) -> Vec<u8> {
    let mut patch = server().patch(name);
    let ilogb = patch.symbol("ilogb", Place::Import { got: None, weak: false });
    patch.patch.meta.libraries = libraries.iter().map(|name| (*name).to_owned()).collect();
    // movabs rax, 8.0; movq xmm0, rax; jmp ilogb
    let code = [0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0x20, 0x40, 0x66, 0x48, 0x0f, 0x6e, 0xc0, 0xe9, 0, 0, 0, 0];
    let reloc = Reloc { offset: 16, kind: RelocKind::Plt32, symbol: ilogb, addend: -4 };
    patch.redirect(server(), "value", &code, vec![reloc]).finish()
}

#[test]
fn a_library_that_the_program_has_not_loaded_is_brought_in() {
    let mut target = server().run();
    let has_libm = |target: &Running| maps(target).iter().any(|line| line.contains("libm.so.6"));
    assert!(!has_libm(&target), "the program is not to need it");
    let refused = |libraries: &[&str], word: &str| {
        let error = apply(target.pid(), &logarithm("refused", libraries), &options()).unwrap_err();
        assert!(matches!(&error, ApplyError::Refused { reason } if reason.contains(word)), "{error}");
    };
    refused(&[], "`ilogb`");
    refused(&["libnobody-has-this.so.7"], "libnobody-has-this.so.7");
    // one that is there but has no such function
    refused(&["libdl.so.2"], "another version");
    assert_eq!(target.ask("value"), "1");

    let patch = logarithm("libm", &["libm.so.6"]);
    let checked = check(target.pid(), &patch, &options()).unwrap();
    assert_eq!((checked.libraries, has_libm(&target)), (vec!["libm.so.6".to_owned()], false));
    let report = apply(target.pid(), &patch, &options()).unwrap();
    assert_eq!((report.libraries, has_libm(&target)), (vec!["libm.so.6".to_owned()], true));
    assert_eq!((target.ask("value"), target.ask("value in a thread")), ("3".into(), "3".into()));
    roll_back(&target).unwrap();
    assert_eq!((target.ask("value"), has_libm(&target)), ("1".into(), true));
    let again = apply(target.pid(), &patch, &options()).unwrap();
    assert_eq!((again.mapped_bytes, target.ask("value")), (0, "3".into()));
    // a later patch finds it in the process
    apply(target.pid(), &logarithm("libm again", &["libm.so.6"]), &options()).unwrap();
    assert_eq!(target.ask("value"), "3");
    target.end();
}

/// A patch whose `value` adds 2 to a thread-local of its own and returns what it then is.
fn own_thread_local(name: &str, is_static: bool) -> Vec<u8> {
    let mut patch = server().patch(name);
    let data = patch.section(".tdata", SectionKind::TlsData, &200u64.to_le_bytes(), vec![]);
    let symbol = patch.symbol("server::MINE", Place::Section { section: data, offset: 0, size: 8 });
    patch.patch.meta.new_items.push(NewItem {
        path: "server::MINE".into(),
        symbol,
        kind: NewItemKind::ThreadLocal,
        type_digest: Some(Digest::of(b"u64")),
        identity: None,
        sole: true,
        call_site: false,
        also: Vec::new(),
    });
    if is_static {
        // mov rax, [rip+gottpoff]; add qword fs:[rax], 2; mov rax, fs:[rax]; ret
        let code = [0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x64, 0x48, 0x83, 0x00, 2, 0x64, 0x48, 0x8b, 0x00, 0xc3];
        let reloc = Reloc { offset: 3, kind: RelocKind::GotTpOff, symbol, addend: -4 };
        return patch.redirect(server(), "value", &code, vec![reloc]).finish();
    }
    let resolver = patch.symbol("__tls_get_addr", Place::Import { got: None, weak: false });
    // push rbx; data16 lea rdi, [rip+tlsgd]; data16 data16 rex.W call __tls_get_addr; add qword [rax], 2; mov rax, [rax]; pop rbx; ret
    let code = [
        0x53, 0x66, 0x48, 0x8d, 0x3d, 0, 0, 0, 0, 0x66, 0x66, 0x48, 0xe8, 0, 0, 0, 0, 0x48, 0x83, 0x00, 2,
        0x48, 0x8b, 0x00, 0x5b, 0xc3,
    ];
    let relocs = vec![
        Reloc { offset: 5, kind: RelocKind::TlsGd, symbol, addend: -4 },
        Reloc { offset: 13, kind: RelocKind::Plt32, symbol: resolver, addend: -4 },
    ];
    patch.redirect(server(), "value", &code, relocs).finish()
}

#[test]
fn new_thread_locals_exist_in_running_threads() {
    for is_static in [false, true] {
        let mut target = server().run();
        apply(target.pid(), &own_thread_local("tls", is_static), &options()).unwrap();
        assert_eq!(
            (target.ask("value"), target.ask("value")),
            ("202".into(), "204".into()),
            "static: {is_static}"
        );
        assert_eq!(target.ask("value in a thread"), "202");
        // the same thread-local in a newer patch keeps its values
        apply(target.pid(), &own_thread_local("tls again", is_static), &options()).unwrap();
        assert_eq!((target.ask("value"), target.ask("value in a thread")), ("206".into(), "202".into()));
        roll_back(&target).unwrap();
        assert_eq!(target.ask("value"), "1");
        target.end();
    }
}

#[test]
fn a_thread_inside_for_ever_is_named() {
    let mut target = server().run();
    let patch = server().patch("hold").redirect(server(), "hold", &returns(4), vec![]).finish();
    assert_eq!(target.ask("hold"), "held");
    let before = maps(&target);
    let short = ApplyOptions { deadline: Duration::from_secs(2), ..options() };
    for attempt in [apply(target.pid(), &patch, &short), check(target.pid(), &patch, &short)] {
        let Err(ApplyError::Busy { inside, .. }) = attempt else { panic!("{attempt:?}") };
        assert_eq!((inside.len(), inside[0].name.as_str()), (1, "holder"));
        assert_eq!(inside[0].function.as_deref(), Some("server::hold"));
        let way_out = LeaveRunning { path: "server::hold".into(), objection: None };
        assert_eq!(inside[0].leave_running, Some(way_out));
        assert!(inside[0].backtrace.iter().any(|frame| frame == "server::hold"), "{:?}", inside[0].backtrace);
        assert!(inside[0].backtrace.iter().any(|frame| frame.contains("park")), "{:?}", inside[0].backtrace);
    }
    // of the failed attempt only the registry remains, with its landing area and call site
    let text = |maps: &[String]| maps.iter().filter(|line| line.contains("r-xp")).count();
    assert_eq!(text(&maps(&target)), text(&before) + 2);
    // other functions can be patched meanwhile
    apply(target.pid(), &value_patch(3), &options()).unwrap();
    assert_eq!(target.ask("value"), "3");
    // and with the immediate policy the old call ends in old code
    let immediate = ApplyOptions { policy: Policy::Immediate, ..options() };
    apply(target.pid(), &patch, &immediate).unwrap();
    assert_eq!(target.ask("release"), "released");
    assert_eq!(target.ask("value"), "1", "the cumulative patch does not hold value");
    target.end();
}

#[test]
fn calls_that_never_end_can_be_left_running() {
    let mut target = server().run();
    let patch = server().patch("hold and value").redirect(server(), "hold", &returns(4), vec![]);
    let patch = patch.redirect(server(), "value", &returns(2), vec![]).finish();
    assert_eq!(target.ask("hold"), "held");
    let short = ApplyOptions { deadline: Duration::from_secs(2), ..options() };
    assert!(matches!(apply(target.pid(), &patch, &short), Err(ApplyError::Busy { .. })));
    // another function's calls may not go on because this one's may
    let left = |name: &str| ApplyOptions { leave_running: vec![name.into()], ..short.clone() };
    let value = left("server::value");
    assert!(matches!(apply(target.pid(), &patch, &value), Err(ApplyError::Busy { .. })));
    let wrong = left("server::main");
    assert!(matches!(
        apply(target.pid(), &patch, &wrong),
        Err(ApplyError::Selection(SelectError::NotHeld { .. }))
    ));
    let hold = left("server::hold");
    let mut tied = server().patch("tied").redirect(server(), "hold", &returns(4), vec![]);
    tied = tied.redirect(server(), "value", &returns(2), vec![]);
    for (at, redirect) in tied.patch.meta.redirects.iter_mut().enumerate() {
        let item = ItemName::new(&redirect.path, Default::default());
        redirect.origin =
            Some(Origin { holds: vec![item.clone()], item, tied: vec![1 - at as u32], merged: vec![] });
    }
    let tied = tied.finish();
    let refused = apply(target.pid(), &tied, &hold);
    assert!(matches!(refused, Err(ApplyError::Refused { .. })), "{refused:?}");
    let Err(ApplyError::Busy { inside, .. }) = check(target.pid(), &tied, &short) else { panic!("not busy") };
    let objection = inside[0].leave_running.as_ref().and_then(|function| function.objection.as_ref());
    assert!(objection.is_some_and(|why| why.contains("server::value")), "{inside:?}");
    check(target.pid(), &patch, &hold).unwrap();
    assert_eq!(target.ask("value"), "1");
    apply(target.pid(), &patch, &hold).unwrap();
    assert_eq!(target.ask("value"), "2");
    assert_eq!(target.ask("panic"), "caught false", "a new call of `hold` runs new code");
    assert_eq!(target.ask("release"), "released");
    roll_back(&target).unwrap();
    assert_eq!((target.ask("value"), target.ask("panic")), ("1".into(), "caught true".into()));
    target.end();
}

#[test]
fn calls_that_would_meet_the_jump_cannot_be_left_running() {
    let mut target = server().run();
    assert_eq!(target.ask("looping"), "3");
    let patch = server().patch("looping").redirect(server(), "looping", &returns(5), vec![]).finish();
    let left = ApplyOptions { leave_running: vec!["server::looping".into()], ..options() };
    let Err(ApplyError::Refused { reason }) = apply(target.pid(), &patch, &left) else {
        panic!("not refused")
    };
    assert!(reason.contains("cannot be left running"), "{reason}");
    assert_eq!(target.ask("looping"), "3");
    apply(target.pid(), &patch, &options()).unwrap();
    assert_eq!(target.ask("looping"), "5");
    target.end();
}

fn maps(target: &Running) -> Vec<String> {
    std::fs::read_to_string(format!("/proc/{}/maps", target.pid()))
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn hot_function_under_load() {
    let mut target = server().run();
    for _ in 0..4 {
        target.ask("spin");
    }
    for round in 0..20 {
        apply(target.pid(), &value_patch(50 + round % 2), &options()).unwrap();
        assert_eq!(target.ask("value"), (50 + round % 2).to_string());
        roll_back(&target).unwrap();
        assert_eq!(target.ask("value"), "1");
    }
    target.end();
}

#[test]
fn panics_unwind_past_patched_processes() {
    let mut target = server().run();
    apply(target.pid(), &value_patch(7), &options()).unwrap();
    assert_eq!(target.ask("panic"), "caught true");
    target.end();
}

#[test]
fn what_does_not_fit_is_a_mismatch() {
    let mut target = server().run();
    let before = maps(&target);
    let mut other = server().patch("other build");
    other.patch.meta.target.build_id = BuildId::new([1; 20]);
    let other = other.redirect(server(), "value", &returns(2), vec![]).finish();
    let mut changed = server().patch("other code").redirect(server(), "value", &returns(2), vec![]);
    changed.patch.meta.redirects[0].old_digest = Digest::of(b"something else");
    let changed = changed.finish();
    let mut cut = value_patch(2);
    cut.truncate(cut.len() - 1);
    let mut flipped = value_patch(2);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (what, bytes) in
        [("build", &other), ("code", &changed), ("cut", &cut), ("flipped", &flipped), ("empty", &vec![])]
    {
        let error = apply(target.pid(), bytes, &options()).unwrap_err();
        assert!(matches!(error, ApplyError::Mismatch(_)), "{what}: {error}");
    }
    assert_eq!(maps(&target), before);
    assert_eq!(target.ask("value"), "1");
    target.end();
}

#[test]
fn check_changes_nothing() {
    let mut target = server().run();
    let before = maps(&target);
    let report = check(target.pid(), &value_patch(2), &options()).unwrap();
    assert!(report.dry_run && report.patches.is_empty());
    assert_eq!(maps(&target), before);
    assert_eq!(target.ask("value"), "1");
    target.end();
}

/// `mmap`, `mprotect` and `munmap` of x86-64.
const MEMORY_CALLS: [u32; 3] = [9, 10, 11];

#[test]
fn a_filter_that_would_kill_the_process_is_heeded() {
    for number in MEMORY_CALLS {
        let mut target = server().run();
        assert_eq!(target.ask(&format!("kill for {number}")), "0");
        let before = maps(&target);
        for attempt in [check, apply] {
            let refused = attempt(target.pid(), &value_patch(2), &options());
            assert!(
                matches!(&refused, Err(ApplyError::Refused { reason }) if reason.contains("seccomp")),
                "{refused:?}"
            );
        }
        assert_eq!(maps(&target), before);
        assert_eq!(target.ask("value"), "1");
        // Its own end would be a forbidden call, too.
        target.kill();
    }
}

#[test]
fn a_filter_that_lets_the_work_pass_does_not_matter() {
    let mut target = server().run();
    // `prctl`, which would name the registry.
    assert_eq!(target.ask("kill for 157"), "0");
    apply(target.pid(), &value_patch(2), &options()).unwrap();
    assert_eq!(target.ask("value"), "2");
    roll_back(&target).unwrap();
    assert_eq!(target.ask("value"), "1");
    target.end();
}

#[test]
fn a_dead_target_is_lost() {
    let mut target = server().run();
    let pid = target.pid();
    target.kill();
    for error in [
        apply(pid, &value_patch(2), &options()).unwrap_err(),
        rollback(pid, &Selector::All, &RollbackOptions::default()).unwrap_err(),
        status(pid).unwrap_err(),
    ] {
        assert!(matches!(error, ApplyError::Lost(_)), "{error}");
    }
}

#[test]
fn a_stripped_program_is_patched_alike() {
    let stripped = server().stripped();
    let mut target = stripped.run();
    apply(target.pid(), &value_patch(7), &options()).unwrap();
    assert_eq!(target.ask("value"), "7");
    target.end();
}

#[test]
fn ps_lists_patched_processes_only() {
    let (patched, plain) = (server().run(), server().run());
    apply(patched.pid(), &value_patch(7), &options()).unwrap();
    let pids: Vec<i32> = livepatch_apply::ps().unwrap().iter().map(|status| status.pid).collect();
    assert!(pids.contains(&patched.pid()) && !pids.contains(&plain.pid()));
}

/// Overwrites the registry of a target and returns the address that was hit.
fn spoil_registry(target: &Running, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let line = maps(target)
        .into_iter()
        .find(|line| line.contains("r--p 00000000 00:00 0") && is_registry(target, line));
    let at = u64::from_str_radix(line.unwrap().split('-').next().unwrap(), 16).unwrap();
    let memory = std::fs::File::options().write(true).open(format!("/proc/{}/mem", target.pid())).unwrap();
    memory.write_all_at(bytes, at + offset).unwrap();
}

fn is_registry(target: &Running, line: &str) -> bool {
    use std::os::unix::fs::FileExt;
    let at = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let memory = std::fs::File::open(format!("/proc/{}/mem", target.pid())).unwrap();
    let mut magic = [0; 9];
    memory.read_exact_at(&mut magic, at).is_ok() && &magic == b"livepatch"
}

#[test]
fn a_damaged_registry_is_refused() {
    for (offset, bytes) in [
        (0x20, &[0xff; 4][..]),
        (0x10, &[9; 4][..]),
        (0x80, &[0xff; 8][..]),
        (0x1000 + 8, &[0xff; 8][..]),
        (0x1000 + (4 << 20) + 8, &[0xff; 8][..]),
        (0x1000 + 60, b"}}}}"),
        (0x1000 + (4 << 20) + 60, b"}}}}"),
    ] {
        let mut target = server().run();
        apply(target.pid(), &value_patch(7), &options()).unwrap();
        let good = status(target.pid()).unwrap();
        spoil_registry(&target, offset, bytes);
        match status(target.pid()) {
            // the slot that is not current may hold anything
            Ok(status) => assert_eq!(status, good),
            Err(error) => {
                assert!(matches!(error, ApplyError::Refused { .. }), "{offset:#x}: {error}");
                let error = roll_back(&target).unwrap_err();
                assert!(matches!(error, ApplyError::Refused { .. }), "{offset:#x}: {error}");
            }
        }
        assert_eq!(target.ask("value"), "7");
        target.end();
    }
}

#[test]
fn foreign_bytes_at_an_entry_are_a_mismatch() {
    use std::os::unix::fs::FileExt;
    let mut target = server().run();
    apply(target.pid(), &value_patch(7), &options()).unwrap();
    let at = status(target.pid()).unwrap().patches[0].functions[0].address;
    let memory = std::fs::File::options().write(true).open(format!("/proc/{}/mem", target.pid())).unwrap();
    // somebody else's breakpoint
    memory.write_all_at(&[0xcc], at.0).unwrap();
    let error = apply(target.pid(), &value_patch(8), &options()).unwrap_err();
    assert!(matches!(error, ApplyError::Mismatch(Mismatch::Code { .. })), "{error}");
    roll_back(&target).unwrap_err();
    memory.write_all_at(&[0xe9], at.0).unwrap();
    assert_eq!(target.ask("value"), "7");
    roll_back(&target).unwrap();
    assert_eq!(target.ask("value"), "1");
    target.end();
}

/// What is left in the registry and in the entries when the tool is killed in the middle of a switch.
#[test]
fn a_killed_switch_is_repaired() {
    use livepatch_apply::registry::{EntryWrite, Journal, live};
    use livepatch_process::{Pid, Process};
    let two = || {
        let patch = server().patch("two").redirect(server(), "value", &returns(7), vec![]);
        patch.redirect(server(), "other", &returns(70), vec![]).finish()
    };
    for (written, value, other) in [(0, "1", "10"), (1, "1", "10"), (2, "7", "70")] {
        let mut target = server().run();
        apply(target.pid(), &two(), &options()).unwrap();
        roll_back(&target).unwrap();
        let process = Process::open(Pid(target.pid())).unwrap();
        let found = live::find_all(&process, &process.maps().unwrap()).unwrap().remove(0);
        let mut state = found.state.unwrap();
        let functions = &state.patches[0].functions;
        let writes: Vec<EntryWrite> =
            functions.iter().map(|f| EntryWrite { at: f.old, before: f.saved, after: f.jump }).collect();
        for write in &writes[..written] {
            process.write(write.at, &write.after.0).unwrap();
        }
        state.patches[0].state = PatchState::RolledBack;
        let (before, after) = (vec![(0, PatchState::RolledBack)], vec![(0, PatchState::Applied)]);
        state.journal = Some(Journal::Switching { writes, before, after, by_breakpoints: false });
        found.location.commit(&mut &process, &state).unwrap();
        drop(process);

        assert!(status(target.pid()).unwrap().interrupted);
        // Rolling back what is, after the repair, applied or not.
        match roll_back(&target) {
            Ok(report) => {
                assert_eq!((written, report.repaired.is_some()), (2, true));
                apply(target.pid(), &two(), &options()).unwrap();
            }
            Err(error) => {
                assert!(written < 2 && matches!(error, ApplyError::NothingToRollBack(_)), "{error}")
            }
        }
        assert!(!status(target.pid()).unwrap().interrupted);
        assert_eq!(
            (target.ask("value"), target.ask("other")),
            (value.into(), other.into()),
            "{written} written"
        );
        let report = apply(target.pid(), &two(), &options()).unwrap();
        assert_eq!(report.already_applied, written == 2);
        assert_eq!((target.ask("value"), target.ask("other")), ("7".into(), "70".into()));
        target.end();
    }
}

/// Some entries are written, and a thread is where they cannot be put back: that stays known until it is done.
#[test]
fn a_killed_switch_is_repaired_once_nobody_is_inside() {
    use livepatch_apply::registry::{EntryWrite, Journal, live};
    use livepatch_process::{Pid, Process};
    let mut target = server().run();
    let patch = server().patch("two").redirect(server(), "value", &returns(7), vec![]);
    let patch = patch.redirect(server(), "hold", &returns(70), vec![]).finish();
    apply(target.pid(), &patch, &options()).unwrap();
    roll_back(&target).unwrap();
    assert_eq!(target.ask("hold"), "held");
    let process = Process::open(Pid(target.pid())).unwrap();
    let found = live::find_all(&process, &process.maps().unwrap()).unwrap().remove(0);
    let mut state = found.state.unwrap();
    let functions = &state.patches[0].functions;
    let entry = |f: &FunctionRecord| EntryWrite { at: f.old, before: f.saved, after: f.jump };
    let writes: Vec<EntryWrite> = functions.iter().map(entry).collect();
    let hold = functions.iter().find(|function| function.path.ends_with("hold")).unwrap();
    process.write(hold.old, &hold.jump.0).unwrap();
    let (hold, saved) = (hold.old, hold.saved.0);
    state.patches[0].state = PatchState::Applying;
    let (before, after) = (vec![(0, PatchState::RolledBack)], vec![(0, PatchState::Applied)]);
    state.journal = Some(Journal::Switching { writes, before, after, by_breakpoints: false });
    found.location.commit(&mut &process, &state).unwrap();

    let short = RollbackOptions { deadline: Duration::from_millis(200), ..RollbackOptions::default() };
    for _ in 0..2 {
        let error = rollback(target.pid(), &Selector::Last, &short).unwrap_err();
        assert!(matches!(error, ApplyError::Busy { .. }), "{error}");
        assert!(status(target.pid()).unwrap().interrupted);
    }
    assert_eq!(target.ask("release"), "released");
    let error = roll_back(&target).unwrap_err();
    assert!(matches!(error, ApplyError::NothingToRollBack(_)), "{error}");
    assert_eq!(process.read_array(hold).unwrap(), saved);
    // Its code could be reached, so the patch is not forgotten.
    let status = status(target.pid()).unwrap();
    assert!(!status.interrupted);
    assert_eq!(status.patches[0].state, PatchState::RolledBack);
    target.end();
}

#[test]
fn a_killed_load_is_repaired() {
    use livepatch_apply::registry::{FrameStep, Journal, Mapping, live};
    use livepatch_process::{Pid, Process};
    let mut target = server().run();
    apply(target.pid(), &value_patch(7), &options()).unwrap();
    let process = Process::open(Pid(target.pid())).unwrap();
    let found = live::find_all(&process, &process.maps().unwrap()).unwrap().remove(0);
    let mut state = found.state.unwrap();
    // A mapping of the program's stands for the one that was left; the record says that nothing is registered there.
    let address = u64::from_str_radix(target.ask("spare").trim_start_matches("0x"), 16).unwrap();
    let mapping = Mapping { base: livepatch_patch::RunAddr(address), text: 4096, rodata: 0, data: 0 };
    state.journal = Some(Journal::Loading { mapping, eh_frame: None, step: FrameStep::None });
    found.location.commit(&mut &process, &state).unwrap();
    let mapped =
        |target: &Running| maps(target).iter().any(|line| line.starts_with(&format!("{address:x}-")));
    assert!(mapped(&target));
    drop(process);
    let report = apply(target.pid(), &value_patch(8), &options()).unwrap();
    assert!(report.repaired.is_some());
    assert!(!mapped(&target));
    assert_eq!(target.ask("value"), "8");
    target.end();
}

#[test]
fn a_traced_process_is_left_alone() {
    use livepatch_process::{Pid, Process, Seized};
    let mut target = server().run();
    let pid = target.pid();
    let process = Process::open(Pid(pid)).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let seized = Seized::seize_all(&process, deadline).unwrap();
    let attempt = std::thread::spawn(move || apply(pid, &value_patch(7), &options())).join().unwrap();
    let error = attempt.unwrap_err();
    let ApplyError::Held { by, .. } = &error else { panic!("{error}") };
    assert_eq!((by.pid.0 as u32, by.livepatch), (std::process::id(), false), "{error}");
    assert!(error.to_string().contains("is held by"), "{error}");
    drop(seized);
    assert_eq!(target.ask("value"), "1");
    apply(pid, &value_patch(7), &options()).unwrap();
    assert_eq!(target.ask("value"), "7");
    target.end();
}

/// A new `hold`: `sub rsp, 8; call rdi; mov eax, 33; add rsp, 8; ret`, with its tables.
#[test]
fn panics_unwind_through_new_code() {
    let mut target = server().run();
    let code = [0x48, 0x83, 0xec, 8, 0xff, 0xd7, 0xb8, 33, 0, 0, 0, 0x48, 0x83, 0xc4, 8, 0xc3];
    // advance 4, CFA = rsp + 16; advance 11, CFA = rsp + 8
    let unwind = [0x44, 0x0e, 16, 0x4b, 0x0e, 8, 0];
    let patch = server().patch("unwinding").redirect_with(server(), "hold", &code, vec![], &unwind).finish();
    apply(target.pid(), &patch, &options()).unwrap();
    assert_eq!(target.ask("panic"), "caught true");
    // a thread inside of the patch keeps it from being rolled back, and is told apart by the patch's own tables
    assert_eq!(target.ask("hold"), "held");
    let short = RollbackOptions { deadline: Duration::from_millis(200), ..RollbackOptions::default() };
    let Err(ApplyError::Busy { inside, .. }) = rollback(target.pid(), &Selector::Last, &short) else {
        panic!()
    };
    assert_eq!(inside[0].function.as_deref(), Some("server::hold"));
    assert_eq!(inside[0].patch.as_deref(), Some("unwinding"));
    assert_eq!(inside[0].reason, "is inside `server::hold` of patch unwinding");
    assert!(
        inside[0].backtrace.iter().any(|frame| frame.contains("server::hold (patch")),
        "{:?}",
        inside[0].backtrace
    );
    assert_eq!(target.ask("release"), "released");
    roll_back(&target).unwrap();
    assert_eq!(target.ask("panic"), "caught true");
    target.end();
}

#[test]
fn programs_built_in_other_ways_are_patched_alike() {
    for flags in [
        &["-Crelocation-model=static"][..],
        &["-Cpanic=abort"],
        &["-Cpanic=abort", "-Crelocation-model=static"],
        &["-Copt-level=0"],
        &["-Copt-level=z", "-Clto=fat"],
        &["-Clink-arg=-fuse-ld=bfd"],
        &["-Clink-arg=-Wl,-z,lazy"],
        &["-Cforce-frame-pointers=yes"],
    ] {
        let program = Program::build("server", flags);
        let mut target = program.run();
        let mut patch = program.patch("variant");
        let (addr, size) = program.symbol("COUNTER");
        let counter = patch.symbol("COUNTER", Place::Image { addr, size });
        let (code, at) = count_and_return(8);
        let bytes = patch.redirect(&program, "value", &code, vec![got(at, counter)]).finish();
        apply(target.pid(), &bytes, &options()).unwrap_or_else(|error| panic!("{flags:?}: {error}"));
        assert_eq!((target.ask("value"), target.ask("counter")), ("8".into(), "7".into()), "{flags:?}");
        roll_back(&target).unwrap();
        assert_eq!(target.ask("value"), "1");
        target.end();
    }
}

/// Nothing in this program can be called or unwound from outside: it has no dynamic symbols.
#[test]
fn a_static_program_is_refused_when_panics_could_not_unwind() {
    let program = Program::build("server", &["-Ctarget-feature=+crt-static"]);
    let mut target = program.run();
    let patch = program.patch("static").redirect(&program, "value", &returns(7), vec![]).finish();
    let error = apply(target.pid(), &patch, &options()).unwrap_err();
    assert!(matches!(&error, ApplyError::Refused { reason } if reason.contains("unwind")), "{error}");
    assert_eq!(target.ask("value"), "1");
    target.end();
}
