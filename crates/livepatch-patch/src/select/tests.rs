use super::*;
use crate::item::{Hints, ItemName};
use crate::patch::*;
use crate::{LinkAddr, RelocKind, RunAddr};

/// A patch in the making: function `n` of `items` has its code in section `n`.
struct Maker {
    patch: Patch,
    items: Vec<ItemName>,
}

fn item(path: &str, debug: &str, receiver: Option<&str>) -> ItemName {
    ItemName::new(path, Hints { debug_path: Some(debug), receiver, impl_scope: None })
}

const OLD: u64 = 0x1000;

impl Maker {
    /// Functions that all changed themselves.
    fn new(items: Vec<ItemName>) -> Self {
        let mut patch = crate::container::tests::sample();
        patch.meta.redirects.clear();
        patch.meta.new_items.clear();
        patch.sections.clear();
        patch.symbols.clear();
        let mut maker = Self { patch, items: items.clone() };
        for (at, item) in items.into_iter().enumerate() {
            let symbol = maker.section(&item.path, SectionKind::Text);
            maker.patch.meta.redirects.push(Redirect {
                symbol,
                path: item.path.clone(),
                old: LinkAddr(OLD + 0x100 * at as u64),
                old_size: 16,
                room: 16,
                old_digest: Digest::of(&[at as u8]),
                reason: Reason::Changed,
                place: None,
                origin: Some(Origin { holds: vec![item.clone()], item, tied: vec![], merged: vec![] }),
                initialises: false,
            });
        }
        maker
    }

    fn section(&mut self, name: &str, kind: SectionKind) -> SymbolId {
        let section = SectionId(self.patch.sections.len() as u32);
        let (bytes, relocs) = (vec![0x90; 64], Vec::new());
        self.patch.sections.push(Section {
            name: format!(".{name}"),
            kind,
            align: 16,
            bytes,
            size: 64,
            relocs,
        });
        self.symbol(name, Place::Section { section, offset: 0, size: 64 })
    }

    fn symbol(&mut self, name: &str, place: Place) -> SymbolId {
        self.patch.symbols.push(Symbol { name: name.into(), place });
        SymbolId(self.patch.symbols.len() as u32 - 1)
    }

    fn refer(&mut self, from: SymbolId, to: SymbolId) {
        let Place::Section { section, .. } = self.patch.symbols[from.0 as usize].place else {
            panic!("no section")
        };
        let relocs = &mut self.patch.sections[section.0 as usize].relocs;
        let offset = 4 * relocs.len() as u64;
        relocs.push(Reloc { offset, kind: RelocKind::Pc32, symbol: to, addend: -4 });
    }

    fn function(&self, at: usize) -> SymbolId {
        self.patch.meta.redirects[at].symbol
    }

    fn origin(&mut self, at: usize) -> &mut Origin {
        self.patch.meta.redirects[at].origin.as_mut().unwrap()
    }

    /// An unwind table with one common entry and one entry for each function.
    fn frames(&mut self) {
        let (mut bytes, mut relocs) = (vec![12, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], Vec::new());
        for redirect in &self.patch.meta.redirects {
            let start = bytes.len() as u32;
            bytes.extend(20u32.to_le_bytes());
            bytes.extend((start + 4).to_le_bytes());
            relocs.push(Reloc {
                offset: start as u64 + 8,
                kind: RelocKind::Pc32,
                symbol: redirect.symbol,
                addend: 0,
            });
            bytes.extend([0; 16]);
        }
        bytes.extend([0; 4]);
        let size = bytes.len() as u64;
        let kind = SectionKind::EhFrame;
        self.patch.sections.push(Section { name: ".eh_frame".into(), kind, align: 8, bytes, size, relocs });
    }

    fn select(&self, selection: Selection) -> Result<Selected, SelectError> {
        let bytes = self.patch.to_bytes().unwrap();
        let selected = Patch::from_bytes(&bytes).unwrap().select(Digest::of(b"id"), &selection)?;
        // What comes out is a patch by every rule of the format.
        assert_eq!(Patch::from_bytes(&selected.patch.to_bytes().unwrap()).unwrap(), selected.patch);
        Ok(selected)
    }

    fn kept(&self, selection: Selection) -> Vec<String> {
        paths(&self.select(selection).unwrap())
    }

    fn missing(&self, selection: Selection) -> Vec<(String, String)> {
        match self.select(selection) {
            Err(SelectError::Incomplete { missing }) => {
                missing.into_iter().map(|missing| (missing.selected, missing.needs)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn unknown(&self, selection: Selection) -> Vec<Unknown> {
        match self.select(selection) {
            Err(SelectError::NotHeld { unknown, holds }) => {
                assert!(self.items.iter().all(|item| holds.contains(&item.full())));
                unknown
            }
            other => panic!("{other:?}"),
        }
    }
}

fn paths(selected: &Selected) -> Vec<String> {
    selected.patch.meta.redirects.iter().map(|redirect| redirect.path.clone()).collect()
}

fn all_kinds() -> Maker {
    Maker::new(vec![
        item("bench::t::run", "bench::t::run", None),
        item("bench::t2::run", "bench::t2::run", None),
        item("bench::t::Order<T>::total", "bench::t::Order<u8>::total<u8>", Some("bench::t::Order<u8>")),
        item("<bench::t::Order<T> as core::fmt::Display>::fmt", "bench::u::{impl#0}::fmt<u8>", None),
        item("<bench::t::Order<T> as core::fmt::Debug>::fmt", "bench::t::{impl#1}::fmt<u8>", None),
        item("bench::t::Order<T>::total::{{closure}}", "bench::t::{impl#0}::total::{closure#0}<u8>", None),
        item("bench::u::Tr::dflt", "bench::u::Tr::dflt<bench::t::Plain>", Some("bench::t::Plain")),
        item("<&bench::t::Plain as core::ops::Add>::add", "bench::t::{impl#3}::add", None),
        item("bench::t::deep::er::f::{{closure}}", "bench::t::deep::er::f::{async_fn#0}", None),
        item("bench::t::deep::er::f::inner", "bench::t::deep::er::f::inner", None),
    ])
}

#[test]
fn modules_are_whole_segments_with_all_below() {
    let kept = all_kinds().kept(Selection::new().module("bench::t"));
    let is_there = |path: &str| kept.iter().any(|kept| kept == path);
    assert!(is_there("bench::t::run") && is_there("bench::t::deep::er::f::inner"), "{kept:?}");
    assert!(!is_there("bench::t2::run") && !is_there("bench::u::Tr::dflt"), "{kept:?}");
    assert!(
        !is_there("<bench::t::Order<T> as core::fmt::Display>::fmt"),
        "its impl is in another module: {kept:?}"
    );
    assert!(is_there("<bench::t::Order<T> as core::fmt::Debug>::fmt"));
    let kept = all_kinds().kept(Selection::new().module("bench::u"));
    assert_eq!(kept, ["<bench::t::Order<T> as core::fmt::Display>::fmt", "bench::u::Tr::dflt"]);
}

#[test]
fn types_are_their_methods() {
    let total = ["bench::t::Order<T>::total", "bench::t::Order<T>::total::{{closure}}"];
    let kept = all_kinds().kept(Selection::new().type_("bench::t::Order"));
    assert_eq!(kept.len(), 4, "{kept:?}");
    assert!(total.iter().all(|path| kept.iter().any(|kept| kept == path)));
    let plain = all_kinds().kept(Selection::new().type_("bench::t::Plain"));
    assert_eq!(plain, ["bench::u::Tr::dflt", "<&bench::t::Plain as core::ops::Add>::add"]);
}

#[test]
fn a_function_is_what_is_written_in_it_even_if_it_did_not_change_itself() {
    let local = |path: &str| ItemName { local: true, ..item(path, path, None) };
    let maker = Maker::new(vec![
        local("a::outer::local"),
        item("a::m::f", "a::m::f", None),
        item("a::T::m::inner", "a::{impl#0}::m::inner", None),
        item("<a::T as b::C>::n::inner", "a::{impl#1}::n::inner", None),
    ]);
    let function = |path: &str| maker.kept(Selection::new().function(path));
    assert_eq!(function("a::outer"), ["a::outer::local"]);
    assert_eq!(function("a::T::m"), ["a::T::m::inner"]);
    assert_eq!(function("<a::T as b::C>::n"), ["<a::T as b::C>::n::inner"]);
    for no_function in ["a", "a::m", "a::T", "b::C"] {
        assert_eq!(maker.unknown(Selection::new().function(no_function))[0].error, None, "{no_function}");
    }
}

#[test]
fn names_as_source_has_to_write_them() {
    let maker = Maker::new(vec![
        item("a::type::match", "a::type::match", None),
        item("a::type::Box::fn", "a::type::Box::fn", Some("a::type::Box")),
        item("<&str as a::Area>::area", "a::{impl#0}::area", None),
        item("<&a::T<U> as a::Area>::area", "a::{impl#1}::area<u8>", None),
    ]);
    let all: Vec<_> = maker.items.iter().map(|item| item.path.clone()).collect();
    let function = |path: &str| maker.kept(Selection::new().function(path));
    for path in ["a::type::match", "a::r#type::r#match", "a::r#type::match"] {
        assert_eq!(function(path), all[..1], "{path}");
    }
    for path in ["a::type::Box::fn", "a::r#type::Box::r#fn", "<a::r#type::r#Box>::r#fn"] {
        assert_eq!(function(path), all[1..2], "{path}");
    }
    for of in ["&str", "&'a str", "&'static str"] {
        assert_eq!(function(&format!("<{of} as a::Area>::area")), all[2..3], "{of}");
    }
    for of in ["&a::T", "&'_ a::T", "&'a a::T<'b>"] {
        assert_eq!(function(&format!("<{of} as a::Area>::area")), all[3..], "{of}");
    }
    assert_eq!(maker.kept(Selection::new().module("a::r#type")), all[..2]);
    assert_eq!(maker.kept(Selection::new().type_("a::r#type::r#Box")), all[1..2]);
    let unknown = maker.unknown(Selection::new().function("b::r#match"));
    assert_eq!(unknown[0].similar, ["a::type::match"]);
}

#[test]
fn functions_bring_their_closures() {
    let kept = |path: &str| all_kinds().kept(Selection::new().function(path));
    let total = ["bench::t::Order<T>::total", "bench::t::Order<T>::total::{{closure}}"];
    assert_eq!(kept("bench::t::Order::total"), total);
    assert_eq!(kept("<bench::t::Order>::total"), total);
    let display = "<bench::t::Order<T> as core::fmt::Display>::fmt";
    for spelling in [
        "<bench::t::Order as std::fmt::Display>::fmt",
        display,
        "< bench::t::Order as core::fmt::Display >::fmt",
    ] {
        assert_eq!(kept(spelling), [display], "{spelling}");
    }
    assert_eq!(kept("bench::u::Tr::dflt"), ["bench::u::Tr::dflt"]);
    assert_eq!(kept("bench::t::Plain::dflt"), ["bench::u::Tr::dflt"]);
    assert_eq!(
        kept("bench::t::deep::er::f"),
        ["bench::t::deep::er::f::{{closure}}", "bench::t::deep::er::f::inner"]
    );
}

#[test]
fn parts_add_up() {
    let selection = Selection::new().module("bench::t2").function("bench::t::run").type_("bench::t::Plain");
    assert_eq!(all_kinds().kept(selection).len(), 4);
}

#[test]
fn a_note_goes_with_the_functions_that_it_is_about() {
    let mut maker = all_kinds();
    let note = maker.patch.meta.notes[0].clone();
    let last = maker.patch.meta.redirects.len() as u32 - 1;
    maker.patch.meta.notes = [vec![], vec![0], vec![0, last], vec![last]]
        .map(|functions| Note { functions, ..note.clone() })
        .into();
    let path = maker.patch.meta.redirects[last as usize].path.clone();
    let part = extract::extract(&maker.patch, &[last as usize].into()).unwrap();
    assert_eq!(part.meta.redirects[0].path, path);
    let about: Vec<_> = part.meta.notes.iter().map(|note| note.functions.as_slice()).collect();
    assert_eq!(about, [&[][..], &[0], &[0]]);
}

#[test]
fn what_the_patch_does_not_hold_is_said_with_what_may_be_meant() {
    let maker = all_kinds();
    let one = |selection: Selection| maker.unknown(selection).remove(0);
    assert_eq!(one(Selection::new().function("run")).similar, ["bench::t2::run", "bench::t::run"]);
    assert_eq!(one(Selection::new().function("t::Order::total")).similar, ["bench::t::Order::total"]);
    assert_eq!(one(Selection::new().type_("Order")).similar, ["bench::t::Order"]);
    assert_eq!(one(Selection::new().module("deep")).similar, ["bench::t::deep"]);
    assert!(one(Selection::new().function("bench::t::Order::fmt")).error.unwrap().contains("ambiguous"));
    assert!(one(Selection::new().module("bench::t::Order")).error.unwrap().contains("type"));
    assert_eq!(one(Selection::new().type_("bench::t")).similar.len(), 0, "a module is no type");
    assert!(one(Selection::new().module("bench::t::run")).error.unwrap().contains("function"));
    for malformed in ["", "a::", "::a", "<a as b", "a>", "a::{{closure}}"] {
        assert!(one(Selection::new().function(malformed)).error.is_some(), "{malformed}");
    }
    // One right part does not excuse a wrong one.
    assert_eq!(maker.unknown(Selection::new().module("bench::t").type_("bench::X")).len(), 1);
}

#[test]
fn of_a_host_that_stands_in_the_way_is_said_why_it_goes_in() {
    let name = |path: &str| item(path, path, None);
    let mut maker = Maker::new(["a::host", "b::third"].map(name).to_vec());
    maker.origin(0).holds = vec![name("a::vat")];
    maker.refer(maker.function(0), maker.function(1));
    let refused = maker.select(Selection::new().function("a::vat")).unwrap_err();
    let SelectError::Incomplete { missing } = refused else { panic!("{refused}") };
    assert_eq!(missing[0].reason, "holds the selected `a::vat`, and calls");
    let refused = maker.select(Selection::new().function("a::host")).unwrap_err();
    let SelectError::Incomplete { missing } = refused else { panic!("{refused}") };
    assert!(missing.iter().any(|missing| missing.reason == "calls"), "{missing:?}");
}

#[test]
fn hosts_come_along_with_what_is_inlined_into_them() {
    let name = |path: &str| item(path, path, None);
    let mut maker = Maker::new(["a::first", "a::second", "a::third"].map(name).to_vec());
    let vat = item("a::vat", "a::vat", None);
    maker.origin(0).holds = vec![vat.clone()];
    maker.origin(1).holds = vec![vat];
    assert_eq!(maker.kept(Selection::new().function("a::vat")), ["a::first", "a::second"]);
    // One of two places would leave the item new here and old there.
    assert_eq!(maker.missing(Selection::new().function("a::first")), [("a::first".into(), "a::vat".into())]);
    assert_eq!(
        maker.kept(Selection::new().function("a::first").function("a::second")),
        ["a::first", "a::second"]
    );
    // A host that holds something else that changed would change more than was asked for.
    let third = maker.origin(2).item.clone();
    maker.origin(1).holds.push(third);
    assert_eq!(maker.missing(Selection::new().function("a::vat")), [("a::second".into(), "a::third".into())]);
    assert_eq!(maker.kept(Selection::new().function("a::vat").function("a::third")).len(), 3);
}

#[test]
fn what_is_called_must_come_too() {
    let name = |path: &str| item(path, path, None);
    let mut maker = Maker::new(["a::caller", "b::callee", "c::keeper"].map(name).to_vec());
    let (caller, callee, keeper) = (maker.function(0), maker.function(1), maker.function(2));
    let helper = maker.section("new_helper", SectionKind::Text);
    maker.refer(caller, helper);
    maker.refer(helper, callee);
    let image = maker.symbol("callee", Place::Image { addr: LinkAddr(OLD + 0x100), size: 16 });
    let table = maker.section("vtable", SectionKind::ReadOnly);
    maker.refer(keeper, table);
    maker.refer(table, image);
    assert_eq!(maker.missing(Selection::new().module("a")), [("a::caller".into(), "b::callee".into())]);
    assert_eq!(maker.missing(Selection::new().module("c")), [("c::keeper".into(), "b::callee".into())]);
    assert_eq!(maker.kept(Selection::new().module("b")), ["b::callee"]);
    assert_eq!(maker.kept(Selection::new().module("a").module("b")), ["a::caller", "b::callee"]);
}

#[test]
fn a_changed_constant_ties_its_readers() {
    let name = |path: &str| item(path, path, None);
    let mut maker = Maker::new(["a::f", "b::g", "c::h"].map(name).to_vec());
    let table = maker.section("TABLE", SectionKind::ReadOnly);
    maker.refer(maker.function(0), table);
    maker.refer(maker.function(1), table);
    assert_eq!(maker.kept(Selection::new().module("a")), ["a::f"], "a new constant ties nothing");
    maker.patch.meta.constants.push(Constant { path: "a::TABLE".into(), symbol: table });
    assert_eq!(maker.missing(Selection::new().module("a")), [("a::f".into(), "b::g".into())]);
    assert_eq!(maker.kept(Selection::new().module("c")), ["c::h"]);
}

#[test]
fn functions_made_for_each_other_stay_together() {
    let name = |path: &str| item(path, path, None);
    let mut maker = Maker::new(["a::caller", "a::callee", "b::other"].map(name).to_vec());
    maker.origin(0).tied = vec![1];
    assert_eq!(
        maker.missing(Selection::new().function("a::callee")),
        [("a::callee".into(), "a::caller".into())]
    );
    assert_eq!(
        maker.missing(Selection::new().function("a::caller")),
        [("a::caller".into(), "a::callee".into())]
    );
    assert_eq!(maker.kept(Selection::new().module("b")), ["b::other"]);
    // A caller that did not change itself comes along.
    maker.origin(0).holds.clear();
    assert_eq!(maker.kept(Selection::new().function("a::callee")), ["a::caller", "a::callee"]);
}

#[test]
fn nothing_but_what_is_needed_is_carried() {
    let name = |path: &str| item(path, path, None);
    let mut maker = Maker::new(["a::f", "b::g", "c::h"].map(name).to_vec());
    let (first, last) = (maker.function(0), maker.function(2));
    let mine = maker.section("MINE", SectionKind::Data);
    let other = maker.section("OTHER", SectionKind::Data);
    maker.refer(last, mine);
    maker.refer(first, other);
    for (path, symbol) in [("c::MINE", mine), ("a::OTHER", other)] {
        let kind = NewItemKind::Static;
        maker.patch.meta.new_items.push(NewItem {
            path: path.into(),
            symbol,
            kind,
            type_digest: None,
            identity: None,
            sole: true,
            call_site: false,
            also: Vec::new(),
        });
    }
    let orphan =
        |from: &[u32]| Orphan { path: "gone".into(), old: LinkAddr(8), old_size: 8, from: from.to_vec() };
    maker.patch.meta.orphans = [[0].as_slice(), &[0, 2], &[2]].map(orphan).to_vec();
    maker.frames();
    let whole = maker.patch.clone();
    let selected = maker.select(Selection::new().module("c")).unwrap();
    assert_eq!(selected.patch.meta.orphans, [orphan(&[0]), orphan(&[0])]);
    let names: Vec<_> = selected.patch.symbols.iter().map(|symbol| symbol.name.as_str()).collect();
    assert_eq!(names, ["c::h", "MINE"]);
    assert_eq!(selected.patch.sections.len(), 3);
    assert_eq!(selected.patch.meta.new_items.len(), 1);
    let table = &selected.patch.sections[2];
    assert_eq!((table.kind, table.bytes.len()), (SectionKind::EhFrame, 16 + 24 + 4));
    assert_eq!(table.bytes[20], 20, "the entry refers to what is in front of it");
    assert_eq!(table.relocs.len(), 1);
    assert_eq!(selected.patch.symbols[table.relocs[0].symbol.0 as usize].name, "c::h");
    let plan = crate::plan(&selected.patch).unwrap();
    let bindings = vec![crate::Binding::Own; selected.patch.symbols.len()];
    crate::link(&selected.patch, &plan, RunAddr(0x10_0000), &bindings).unwrap();
    assert!(plan.total() <= crate::plan(&whole).unwrap().total());
}

#[test]
fn identities_are_those_of_what_is_applied() {
    let maker = all_kinds();
    let id = |selection: Selection| maker.select(selection).unwrap().id;
    let whole = Digest::of(b"id");
    assert_eq!(id(Selection::new()), whole);
    assert_eq!(id(Selection::new().module("bench")), whole, "all of it is the patch itself");
    let (t, u) = (id(Selection::new().module("bench::t2")), id(Selection::new().module("bench::u")));
    assert!(t != whole && u != whole && t != u);
    assert_eq!(t, id(Selection::new().function("bench::t2::run")), "the same functions by another name");
}

#[test]
fn what_cannot_be_divided_is_not() {
    let mut maker = all_kinds();
    maker.patch.meta.indivisible = Some("a macro changed".into());
    let refused = maker.select(Selection::new().module("bench::t2")).unwrap_err();
    assert_eq!(refused, SelectError::Indivisible { reason: "a macro changed".into() });
    assert!(maker.select(Selection::new().module("bench")).is_ok());
    maker.patch.meta.indivisible = None;
    maker.patch.meta.redirects[3].origin = None;
    assert!(matches!(
        maker.select(Selection::new().module("bench::t2")),
        Err(SelectError::Indivisible { .. })
    ));
}

#[test]
fn what_is_left_out_is_as_it_was() {
    let maker = all_kinds();
    let selected = maker.select(Selection::new().function("bench::t::run")).unwrap();
    // Whoever has the address of one of the others comes to what the part has for it: the function of the image.
    assert_eq!(selected.patch.meta.altered, maker.patch.meta.altered);
}

#[test]
fn functions_of_one_body_are_new_together() {
    let mut maker = Maker::new(vec![item("a::x::f", "a::x::f", None), item("a::g", "a::g", None)]);
    let other = item("a::y::f", "a::y::f", None);
    let origin = maker.origin(0);
    origin.holds.push(other.clone());
    origin.merged.push(other);
    assert_eq!(maker.missing(Selection::new().module("a::x")), [("a::x::f".into(), "a::y::f".into())]);
    assert_eq!(maker.missing(Selection::new().function("a::y::f")), [("a::x::f".into(), "a::x::f".into())]);
    assert_eq!(maker.kept(Selection::new().module("a::x").module("a::y")), ["a::x::f"]);
    assert_eq!(maker.kept(Selection::new().function("a::g")), ["a::g"]);
}
