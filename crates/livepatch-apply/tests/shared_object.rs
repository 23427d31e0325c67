//! Patches for a shared object in a host that was not built with it.

mod support;

use livepatch_apply::{ApplyError, ApplyOptions, RollbackOptions, Selector, apply, rollback, status};
use livepatch_patch::{ImageKind, LinkAddr, Place, Reloc, RelocKind, TlsSegment};

use support::{Program, returns};

fn tls_segment(program: &Program) -> TlsSegment {
    let bytes = std::fs::read(&program.path).unwrap();
    let file = object::read::elf::ElfFile64::<object::Endianness>::parse(&*bytes).unwrap();
    let header = file
        .elf_program_headers()
        .iter()
        .find(|header| header.p_type.get(file.endian()) == object::elf::PT_TLS)
        .unwrap();
    let e = file.endian();
    TlsSegment {
        addr: LinkAddr(header.p_vaddr.get(e)),
        size: header.p_memsz.get(e),
        align: header.p_align.get(e),
    }
}

#[test]
fn a_plugin_is_patched_in_its_host() {
    let (host, plugin) = (Program::build("host", &[]), Program::build("plugin", &["--crate-type=cdylib"]));
    let mut target = host.run_with(&[plugin.path.as_os_str()]);
    assert_eq!((target.ask("entry"), target.ask("calls")), ("1".into(), "41".into()));

    let mut patch = plugin.patch("plugin fix");
    patch.patch.meta.target.kind = ImageKind::SharedObject;
    let bytes = patch.redirect(&plugin, "answer", &returns(5), vec![]).finish();
    let report = apply(target.pid(), &bytes, &ApplyOptions::default()).unwrap();
    assert_eq!(report.build_id, plugin.build_id().to_string());
    assert_eq!(target.ask("entry"), "5");
    assert_eq!(status(target.pid()).unwrap().patches[0].build_id, plugin.build_id().to_string());

    // the running thread-local, found through the object's own references
    let mut patch = plugin.patch("plugin thread-local");
    patch.patch.meta.target.kind = ImageKind::SharedObject;
    patch.patch.meta.target.tls = Some(tls_segment(&plugin));
    let offset = plugin.thread_local("CALLS");
    let calls = patch.symbol("CALLS", Place::ImageTls { offset });
    let resolver = patch.symbol("__tls_get_addr", Place::Import { got: None, weak: false });
    // push rbx; lea rdi, [tlsgd]; call __tls_get_addr; mov rax, [rax]; pop rbx; ret
    let code = [
        0x53, 0x66, 0x48, 0x8d, 0x3d, 0, 0, 0, 0, 0x66, 0x66, 0x48, 0xe8, 0, 0, 0, 0, 0x48, 0x8b, 0x00, 0x5b,
        0xc3,
    ];
    let relocs = vec![
        Reloc { offset: 5, kind: RelocKind::TlsGd, symbol: calls, addend: -4 },
        Reloc { offset: 13, kind: RelocKind::Plt32, symbol: resolver, addend: -4 },
    ];
    let bytes = patch.redirect(&plugin, "answer", &code, relocs).finish();
    apply(target.pid(), &bytes, &ApplyOptions::default()).unwrap();
    assert_eq!(
        (target.ask("entry"), target.ask("calls"), target.ask("entry")),
        ("41".into(), "42".into(), "42".into())
    );

    rollback(target.pid(), &Selector::All, &RollbackOptions::default()).unwrap();
    assert_eq!(target.ask("entry"), "1");
    target.end();
}

#[test]
fn a_module_that_is_loaded_twice_is_refused() {
    let (host, plugin) = (Program::build("host", &[]), Program::build("plugin", &["--crate-type=cdylib"]));
    let mut target = host.run_with(&[plugin.path.as_os_str()]);
    assert_eq!(target.ask("load again"), "true");
    let mut patch = plugin.patch("plugin fix");
    patch.patch.meta.target.kind = ImageKind::SharedObject;
    let bytes = patch.redirect(&plugin, "answer", &returns(5), vec![]).finish();
    let error = apply(target.pid(), &bytes, &ApplyOptions::default()).unwrap_err();
    assert!(matches!(&error, ApplyError::Refused { reason } if reason.contains("more than once")), "{error}");
    assert_eq!(target.ask("entry"), "1");
    target.end();
}
