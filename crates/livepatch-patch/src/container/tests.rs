use super::*;
use crate::addr::{LinkAddr, RunAddr};
use crate::ident::{Arch, BuildId};
use crate::item::{Hints, ItemName};
use crate::link::{Binding, link, plan};
use crate::patch::*;
use crate::reloc::RelocKind;
use proptest::prelude::*;

/// Every section kind, every kind of place, several relocations.
pub(crate) fn sample() -> Patch {
    let section = |name: &str, kind, bytes: &[u8], relocs| Section {
        name: name.into(),
        kind,
        align: 16,
        size: bytes.len() as u64,
        bytes: bytes.to_vec(),
        relocs,
    };
    let reloc = |offset, kind, symbol, addend| Reloc { offset, kind, symbol: SymbolId(symbol), addend };
    let symbol = |name: &str, place| Symbol { name: name.into(), place };
    let own = |section, size| Place::Section { section: SectionId(section), offset: 0, size };
    let mut bss = section(".bss.n", SectionKind::Bss, &[], vec![]);
    bss.size = 64;
    let mut tbss = section(".tbss.t", SectionKind::TlsBss, &[], vec![]);
    tbss.size = 24;
    Patch {
        meta: Meta {
            name: "fix".into(),
            tool: "0.1.0".into(),
            rustc: "rustc 1.95.0".into(),
            created: 1,
            target: Target {
                build_id: BuildId::new([1, 2, 3, 4]),
                arch: Arch::X86_64,
                file_name: "webapp".into(),
                kind: ImageKind::Executable,
                tls: Some(TlsSegment { addr: LinkAddr(0x3000), size: 0x40, align: 8 }),
            },
            redirects: vec![Redirect {
                symbol: SymbolId(0),
                path: "webapp::total".into(),
                old: LinkAddr(0x1000),
                old_size: 32,
                room: 32,
                old_digest: Digest::of(b"old"),
                reason: Reason::Inlines("webapp::vat".into()),
                place: Some("src/main.rs:3".into()),
                origin: Some(Origin {
                    item: ItemName::new("webapp::total", Hints::default()),
                    holds: vec![ItemName::new("webapp::vat", Hints::default())],
                    tied: vec![0],
                    merged: vec![],
                }),
                initialises: false,
            }],
            orphans: vec![Orphan {
                path: "webapp::gone".into(),
                old: LinkAddr(0x2000),
                old_size: 16,
                from: vec![0],
            }],
            new_items: vec![NewItem {
                path: "webapp::NEW".into(),
                symbol: SymbolId(5),
                kind: NewItemKind::Static,
                type_digest: Some(Digest::of(b"u64")),
                identity: None,
                sole: true,
                call_site: false,
                also: Vec::new(),
            }],
            constants: Vec::new(),
            libraries: vec!["libm.so.6".into()],
            indivisible: None,
            types: Vec::new(),
            inlined: Default::default(),
            altered: Default::default(),
            same: Default::default(),
            stands: Vec::new(),
            vanished: Default::default(),
            once: Default::default(),
            notes: vec![Note {
                code: "LP0111".into(),
                title: "kept".into(),
                item: "webapp::VAT".into(),
                place: Some("src/main.rs:9".into()),
                reason: "computed once".into(),
                help: "restart".into(),
                functions: vec![0],
            }],
        },
        sections: vec![
            section(
                ".text.total",
                SectionKind::Text,
                &[0x90; 24],
                vec![
                    reloc(0, RelocKind::Plt32, 2, -4),
                    reloc(4, RelocKind::GotPcRelX, 2, -4),
                    reloc(8, RelocKind::Pc32, 1, -4),
                    reloc(12, RelocKind::TpOff32, 3, 0),
                ],
            ),
            section(".rodata.a", SectionKind::ReadOnly, &[0; 8], vec![reloc(0, RelocKind::Abs64, 4, 2)]),
            section(".data.d", SectionKind::Data, &[7; 8], vec![]),
            bss,
            section(".tdata.t", SectionKind::TlsData, &[9; 8], vec![]),
            tbss,
            section(".eh_frame", SectionKind::EhFrame, &[0; 4], vec![]),
        ],
        symbols: vec![
            symbol("_total", own(0, 24)),
            symbol("COUNT", Place::Image { addr: LinkAddr(0x5000), size: 8 }),
            symbol("malloc", Place::Import { got: Some(LinkAddr(0x4008)), weak: false }),
            symbol("T", Place::ImageTls { offset: 16 }),
            symbol("_konst", own(1, 8)),
            symbol("_new", own(3, 64)),
            symbol("_newtls", own(5, 24)),
        ],
    }
}

#[test]
fn round_trip() {
    let mut patch = sample();
    let perhaps = Place::Import { got: None, weak: true };
    patch.symbols.push(Symbol { name: "_perhaps".into(), place: perhaps });
    let bytes = patch.to_bytes().unwrap();
    assert_eq!(Patch::from_bytes(&bytes).unwrap(), patch);
    assert_ne!(Patch::id_of(&bytes).unwrap(), Digest([0; 32]));
}

#[test]
fn files_from_before_a_field_was_there_are_read() {
    let mut patch = sample();
    let json = serde_json::to_value(&patch.meta).unwrap();
    let fields = ["libraries", "constants", "indivisible", "notes"];
    let old = json.as_object().unwrap().iter().filter(|(key, _)| !fields.contains(&key.as_str()));
    let old: serde_json::Map<_, _> = old.map(|(key, value)| (key.clone(), value.clone())).collect();
    patch.meta.libraries.clear();
    patch.meta.notes.clear();
    assert_eq!(serde_json::from_value::<Meta>(old.into()).unwrap(), patch.meta);
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = sample().to_bytes().unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(Patch::from_bytes(&damaged).is_err(), "flip at {at:#x} went unnoticed");
    }
}

#[test]
fn every_truncation_is_found() {
    let bytes = sample().to_bytes().unwrap();
    for len in 0..bytes.len() {
        assert!(Patch::from_bytes(&bytes[..len]).is_err(), "cut at {len}");
    }
}

#[test]
fn another_version_is_named() {
    let mut bytes = sample().to_bytes().unwrap();
    let at = read::digest_offset(&bytes).unwrap() - DIGEST_AT + 8;
    bytes[at] = 9;
    assert!(matches!(Patch::from_bytes(&bytes), Err(ContainerError::Version { found: 9 })));
}

/// Damage with a digest that fits, as an attacker would make it: only the meaning can give it away.
fn resealed(bytes: &[u8], flips: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, value) in flips {
        let at = at % bytes.len();
        bytes[at] = *value;
    }
    if let Ok(at) = read::digest_offset(&bytes) {
        bytes[at..at + 32].fill(0);
        let _ = seal(&mut bytes);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn hostile_files_never_panic(flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..12)) {
        let bytes = resealed(&sample().to_bytes().unwrap(), &flips);
        if let Ok(patch) = Patch::from_bytes(&bytes) {
            // What passes the checks must also be safe to plan and link.
            if let Ok(plan) = plan(&patch) {
                let bindings = vec![Binding::At(RunAddr(0x7000_0000)); patch.symbols.len()];
                if plan.total() < 64 << 20 {
                    let _ = link(&patch, &plan, RunAddr(0x1000_0000), &bindings);
                    let own = vec![Binding::Own; patch.symbols.len()];
                    let _ = link(&patch, &plan, RunAddr(0x1000_0000), &own);
                }
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(Patch::from_bytes(&bytes).is_err());
    }
}

#[test]
fn broken_rules_are_named() {
    type Break = fn(&mut Patch);
    let cases: &[(Break, &str)] = &[
        (|p| p.sections[0].relocs[0].offset = 2, "not in order"),
        (|p| p.sections[0].relocs[3].offset = 21, "outside the section"),
        (|p| p.sections[0].relocs[0].symbol = SymbolId(99), "does not exist"),
        (|p| p.sections[0].align = 3, "power of two"),
        (|p| p.sections[6].bytes = vec![1, 2, 3, 4], "end marker"),
        (|p| p.sections[3].size = 2 << 30, "1 GiB"),
        (|p| p.symbols[0].place = Place::Section { section: SectionId(0), offset: 20, size: 24 }, "outside"),
        (|p| p.meta.redirects[0].symbol = SymbolId(1), "not in a code section"),
        (|p| p.meta.redirects[0].room = 4, "no room"),
        (|p| p.meta.redirects.push(p.meta.redirects[0].clone()), "overlaps"),
        (|p| p.meta.notes[0].functions = vec![1], "a note about"),
        (|p| p.meta.new_items[0].symbol = SymbolId(0), "listed as new"),
        (|p| p.meta.libraries[0] = "/tmp/libm.so.6".into(), "not a plain name"),
        (|p| p.meta.libraries[0].clear(), "not a plain name"),
        (|p| p.meta.libraries = vec!["libm.so.6".into(); 65], "64 libraries"),
    ];
    for (break_it, words) in cases {
        let mut patch = sample();
        break_it(&mut patch);
        let error = validate::check(&patch).expect_err(words).to_string();
        assert!(error.contains(words), "{error} lacks {words}");
    }
}
