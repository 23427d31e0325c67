//! Taking paths apart that contain generic arguments.

use super::scan::closure_label;

/// The segments of a path; `::` inside of brackets does not separate.
pub(super) fn segments(path: &str) -> Vec<&str> {
    let bytes = path.as_bytes();
    let (mut segments, mut depth, mut start, mut at) = (Vec::new(), 0i32, 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'<' | b'(' | b'[' | b'{' => depth += 1,
            b'>' if at > 0 && bytes[at - 1] == b'-' => {}
            b'>' | b')' | b']' | b'}' => depth -= 1,
            b':' if depth == 0 && bytes.get(at + 1) == Some(&b':') => {
                segments.push(&path[start..at]);
                start = at + 2;
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    segments.push(&path[start..]);
    segments
}

/// The last segment, with its generic arguments.
pub(super) fn last(path: &str) -> &str {
    segments(path).pop().unwrap_or_default()
}

/// For each closure or async body in a path: the path of what contains it, and its label.
pub(super) fn closure_parents(path: &str) -> Vec<(String, String)> {
    let segments = segments(path);
    segments
        .iter()
        .enumerate()
        .filter_map(|(i, segment)| {
            closure_label(segment.as_bytes()).map(|label| (segments[..i].join("::"), label))
        })
        .collect()
}

/// A path without the generic arguments of its last segment: the scope of what is inside that item.
pub(super) fn without_arguments(path: &str) -> String {
    let mut segments = segments(path);
    if let Some(last) = segments.last_mut()
        && let Some(at) = last.find('<').filter(|at| *at > 0)
    {
        *last = &last[..at];
    }
    segments.join("::")
}

/// Whether a path (or a type's name) stands inside of another one.
pub(super) fn mentions(name: &str, path: &str) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
    name.match_indices(path).any(|(at, _)| {
        let (before, after) = (&name[..at], &name[at + path.len()..]);
        !(before.ends_with(goes_on) || after.starts_with(goes_on)) && name.len() > path.len()
    })
}

/// A variable's path as it is declared: without what macros (`thread_local!`, `lazy_static!`) put around it.
pub fn as_declared(path: &str) -> String {
    let mut segments = segments(path);
    let by_macro = |segment: &str| segment.starts_with('{') || segment.starts_with("__");
    if let Some(at) = segments.iter().position(|segment| *segment == "__stability") {
        segments.truncate(at.saturating_sub(1));
    }
    while segments.len() > 1 && segments.last().is_some_and(|last| by_macro(last)) {
        segments.pop();
    }
    let own = segments.last().and_then(|last| last.strip_prefix('<')?.split_once(" as "));
    own.map_or_else(|| segments.join("::"), |(own, _)| own.to_owned())
}

/// Whether two variables, by their paths as declared, are called alike, and whether they stand in the same place.
pub fn are_alike(before: &str, after: &str) -> (bool, bool) {
    let (was, is) = (segments(before), segments(after));
    (was.last() == is.last(), was[..was.len() - 1] == is[..is.len() - 1])
}

/// The trait of a vtable named `<T as Trait>::{vtable}`.
pub(super) fn trait_of(vtable: &str) -> Option<&str> {
    let inner = vtable.strip_prefix('<')?.strip_suffix(">::{vtable}")?;
    let mut depth = 0i32;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'<' | b'(' | b'[' | b'{' => depth += 1,
            b'>' if inner[..at].ends_with('-') => {}
            b'>' | b')' | b']' | b'}' => depth -= 1,
            b' ' if depth == 0 && inner[at..].starts_with(" as ") => {
                return Some(&inner[at + " as ".len()..]);
            }
            _ => {}
        }
    }
    None
}

/// The scopes whose closures matter to a function: those that it is inside of, and its own.
pub(super) fn closure_scopes(path: &str) -> Vec<String> {
    let parents = closure_parents(path).into_iter().map(|(parent, _)| parent);
    parents.chain([without_arguments(path)]).collect()
}

/// What a type is, as far as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    Coroutine,
    Closure,
    Other,
}

pub(super) fn nature(name: &str) -> Nature {
    match closure_label(last(name).as_bytes()) {
        Some(label) if label.starts_with("closure") => Nature::Closure,
        Some(_) => Nature::Coroutine,
        None => Nature::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_arguments_do_not_separate() {
        assert_eq!(segments("a::b<c::D, fn() -> e::F>::g"), ["a", "b<c::D, fn() -> e::F>", "g"]);
        assert_eq!(
            last("app::f::{closure_env#0}<alloc::vec::Vec<u8>>"),
            "{closure_env#0}<alloc::vec::Vec<u8>>"
        );
    }

    #[test]
    fn parents_of_nested_closures() {
        assert_eq!(
            closure_parents("app::f::{async_fn#0}::{closure#1}<x::Y>"),
            [("app::f".into(), "async_fn#0".into()), ("app::f::{async_fn#0}".into(), "closure#1".into())]
        );
        assert_eq!(closure_parents("app::{impl#0}::f"), []);
    }

    #[test]
    fn scopes_have_no_arguments() {
        assert_eq!(without_arguments("a::f<x::Y>"), "a::f");
        assert_eq!(closure_scopes("a::f::{closure#0}<x::Y>"), ["a::f", "a::f::{closure#0}"]);
    }

    #[test]
    fn a_mentioned_path_is_whole() {
        let map = "core::iter::Map<core::str::Split, app::f::{closure_env#0}>";
        assert!(mentions(map, "app::f::{closure_env#0}"));
        assert!(!mentions(map, map));
        assert!(!mentions("core::option::Option<app::Orders>", "app::Order"));
        assert!(!mentions("core::option::Option<my::app::Order>", "app::Order"));
    }

    #[test]
    fn the_trait_stands_behind_the_whole_type() {
        assert_eq!(trait_of("<app::Square as app::Shape>::{vtable}"), Some("app::Shape"));
        assert_eq!(
            trait_of("<fn(&<a::B as c::D>::E) -> u8 as app::To<<a::B as c::D>::E>>::{vtable}"),
            Some("app::To<<a::B as c::D>::E>")
        );
        assert_eq!(trait_of("app::Square"), None);
    }

    #[test]
    fn variables_are_known_by_what_the_source_calls_them() {
        for path in [
            "app::m::NAME",
            "app::m::NAME::{{constant}}::{{closure}}::__RUST_STD_INTERNAL_VAL",
            "app::m::NAME::{K#0}::{closure#1}::__RUST_STD_INTERNAL_VAL",
            "<app::m::NAME as core::ops::deref::Deref>::deref::__stability::LAZY",
        ] {
            assert_eq!(as_declared(path), "app::m::NAME", "{path}");
        }
        assert_eq!(are_alike("app::f::HITS", "app::g::HITS"), (true, false));
        assert_eq!(are_alike("app::f::HITS", "app::f::SEEN"), (false, true));
    }

    #[test]
    fn natures() {
        assert_eq!(nature("app::f::{closure_env#0}<u8>"), Nature::Closure);
        assert_eq!(nature("app::f::{async_fn_env#0}"), Nature::Coroutine);
        assert_eq!(nature("core::option::Option<app::f::{closure_env#0}>"), Nature::Other);
    }
}
