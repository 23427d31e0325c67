use super::*;
use crate::container::tests::sample;
use crate::patch::*;

const NEAR: RunAddr = RunAddr(0x5000_0000);
const FAR: RunAddr = RunAddr(0x7fff_1234_5678);

fn bindings(malloc: RunAddr) -> Vec<Binding> {
    let tls = TlsPlace { module: 1, offset: 16, tp_offset: Some(-48) };
    vec![
        Binding::Own,
        Binding::At(RunAddr(0x5000_5000)),
        Binding::At(malloc),
        Binding::Tls(tls),
        Binding::Own,
        Binding::Own,
        Binding::Tls(TlsPlace { module: 2, offset: 16, tp_offset: None }),
    ]
}

fn linked(malloc: RunAddr) -> (Plan, Linked) {
    let patch = sample();
    let plan = plan(&patch).unwrap();
    let linked = link(&patch, &plan, NEAR, &bindings(malloc)).unwrap();
    (plan, linked)
}

fn i32_at(bytes: &[u8], at: usize) -> i64 {
    i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
}

fn u64_at(bytes: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(bytes[at as usize..][..8].try_into().unwrap())
}

/// Where the 32-bit field at `at` of the text points, for the instruction ending behind it.
fn points_to(text: &[u8], at: usize) -> RunAddr {
    NEAR.offset(at as i64 + 4 + i32_at(text, at))
}

#[test]
fn a_near_call_is_direct_and_a_far_one_goes_through_a_veneer() {
    let near = RunAddr(NEAR.0 + 0x10_0000);
    assert_eq!(points_to(&linked(near).1.text, 0), near);

    let (plan, linked) = linked(FAR);
    let veneer = points_to(&linked.text, 0);
    let at = veneer.distance_from(NEAR) as usize;
    assert_eq!(linked.text[at..at + 2], [0xff, 0x25]);
    let slot = NEAR.offset(at as i64 + 6 + i32_at(&linked.text, at + 2));
    let in_rodata = slot.distance_from(NEAR) as u64 - plan.text_size;
    assert_eq!(u64_at(&linked.rodata, in_rodata), FAR.0);
}

#[test]
fn got_data_and_thread_locals() {
    let (plan, linked) = linked(FAR);
    let slot = points_to(&linked.text, 4).distance_from(NEAR) as u64 - plan.text_size;
    assert_eq!(u64_at(&linked.rodata, slot), FAR.0);
    assert_eq!(points_to(&linked.text, 8), RunAddr(0x5000_5000));
    assert_eq!(i32_at(&linked.text, 12), -48);
    // The constant holds its own address plus two.
    let konst = linked.symbols[4].unwrap();
    assert_eq!(u64_at(&linked.rodata, konst.distance_from(NEAR) as u64 - plan.text_size), konst.0 + 2);
    assert_eq!(linked.symbols[6], None);
}

#[test]
fn the_parts_are_apart_and_aligned() {
    let (plan, linked) = linked(FAR);
    assert!(
        [plan.text_size, plan.rodata_size, plan.data_size].iter().all(|size| size % PAGE == 0 && *size > 0)
    );
    assert_eq!(linked.symbols[5].unwrap().distance_from(NEAR) as u64, plan.text_size + plan.rodata_size + 16);
    let tls = plan.tls.unwrap();
    assert_eq!((tls.size, tls.align, tls.needs_static), (16 + 24, 16, false));
    assert_eq!(tls.offsets, [(SymbolId(6), 16)]);
}

#[test]
fn an_unreachable_datum_is_an_error() {
    let patch = sample();
    let mut bindings = bindings(FAR);
    bindings[1] = Binding::At(FAR);
    let error = link(&patch, &plan(&patch).unwrap(), NEAR, &bindings).unwrap_err();
    assert!(matches!(error, LinkError::Range { ref symbol, offset: 8, .. } if symbol == "COUNT"), "{error}");
}

#[test]
fn a_thread_local_is_not_an_address() {
    let patch = sample();
    let mut bindings = bindings(FAR);
    bindings[1] = bindings[3];
    let error = link(&patch, &plan(&patch).unwrap(), NEAR, &bindings).unwrap_err();
    assert!(matches!(error, LinkError::Unsuitable { kind: RelocKind::Pc32, .. }), "{error}");
}

#[test]
fn the_tls_image_ends_before_the_zeroes() {
    let patch = sample();
    let image = tls_image(&patch, &plan(&patch).unwrap(), NEAR, &bindings(FAR)).unwrap();
    assert_eq!(image, [9; 8]);
}
