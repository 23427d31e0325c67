//! What a function is called in its source, taken from what the compiler calls it.
//!
//! Neither mangling tells all, nor does debug information, so an [`ItemName`] is put together from what each of them has:
//!
//! | item | legacy mangling | v0 mangling | debug information |
//! |---|---|---|---|
//! | method of `a::T` | `a::T<X>::m` | `<a::T<u8>>::m` | `a::T<u8>::m<u8>` |
//! | the same, impl in module `b` | `b::<impl a::T<X>>::m` | `<a::T<u8>>::m` | `a::T<u8>::m<u8>` |
//! | method of a trait impl in `b` | `<a::T<X> as c::Tr>::m` | `<a::T<u8> as c::Tr>::m` | `b::{impl#1}::m<u8>` |
//! | default method of a trait | `c::Tr::m` | `<a::T<u8> as c::Tr>::m` | `c::Tr::m<a::T<u8>>`, parameter `Self` |
//! | closure in a method | `a::T<X>::m::{{closure}}` | `<a::T<u8>>::m::{closure#0}` | `a::{impl#0}::m::{closure#0}<u8>` |
//!
//! The scope of an impl in v0 is in the symbol, but not in its demangled form.

use serde::{Deserialize, Serialize};

/// An item of the source that has code: a function or method with the closures and async bodies in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemName {
    /// The demangled symbol without hash, or what stands for it.
    pub path: String,
    /// Path of the module (or function) that the function, or its impl or trait, is written in.
    pub scope: String,
    /// Its name in the scope, impl or trait: `total`, or `total::inner` for a function in a method. No generic arguments.
    pub name: String,
    /// The type that it is a method of, with generic arguments as far as they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_type: Option<String>,
    /// The trait that it is a method of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trait_path: Option<String>,
    /// Whether its body is the trait's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub provided: bool,
    /// Whether it is known to be written in the body of a function, which its path without the last name is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
}

/// What is known about a function besides its demangled symbol.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints<'h> {
    /// Its path in debug information.
    pub debug_path: Option<&'h str>,
    /// The type that debug information has it in, or what the generic parameter `Self` stands for.
    pub receiver: Option<&'h str>,
    /// The path of the scope of the impl that a v0 symbol says it is in.
    pub impl_scope: Option<&'h str>,
}

impl ItemName {
    /// The name of the function with this demangled symbol.
    pub fn new(path: &str, hints: Hints<'_>) -> Self {
        if let Some(debug) = hints.debug_path.filter(|debug| is_bare(path) && is_of(debug, path)) {
            return Self { path: path.to_owned(), ..Self::unmangled(debug, hints.receiver) };
        }
        let named: Vec<_> = segments(path)
            .into_iter()
            .enumerate()
            .filter(|(at, segment)| !is_anonymous(segment) && !is_arguments(segment, *at))
            .map(|(_, segment)| segment)
            .collect();
        let debug = hints.debug_path.map(segments).unwrap_or_default();
        let block = debug.iter().position(|segment| segment.starts_with("{impl#"));
        let impl_scope = || match (hints.impl_scope, block) {
            (Some(scope), _) => Some(scope.to_owned()),
            (None, Some(at)) => Some(plain(&debug[..at])),
            (None, None) => None,
        };
        let mut out = Self {
            path: path.to_owned(),
            scope: String::new(),
            name: String::new(),
            self_type: None,
            trait_path: None,
            provided: false,
            local: false,
        };
        if let Some((at, head)) =
            named.iter().enumerate().find_map(|(at, segment)| Some((at, head(segment, at)?)))
        {
            let (self_type, trait_path) = head;
            let of = trait_path.map(without_arguments);
            let provided = of.filter(|of| block.is_none() && is_below(&plain(&debug), of));
            out.name = plain(&named[at + 1..]);
            out.scope = match (at, &provided) {
                (0, Some(of)) => parent(of),
                (0, None) => impl_scope().unwrap_or_else(|| parent(&without_arguments(root(self_type)))),
                _ => plain(&named[..at]),
            };
            out.provided = provided.is_some();
            out.self_type = Some(normalise(self_type));
            out.trait_path = trait_path.map(normalise);
        } else if let Some(at) = block {
            let inside = debug[at + 1..].iter().filter(|segment| !is_anonymous(segment)).count();
            let split = named.len().saturating_sub(inside.max(1));
            out.self_type = Some(normalise(&named[..split].join("::")));
            out.name = plain(&named[split..]);
            out.scope = impl_scope().unwrap_or_default();
        } else {
            let split = named.len().saturating_sub(1);
            out.name = plain(&named[split..]);
            out.scope = plain(&named[..split]);
            match hints.receiver {
                Some(receiver) if without_arguments(receiver) == out.scope => {
                    out.self_type = Some(normalise(&named[..split].join("::")));
                    out.scope = parent(&out.scope);
                }
                Some(receiver) => {
                    out.self_type = Some(normalise(receiver));
                    out.trait_path = Some(out.scope.clone());
                    out.provided = true;
                    out.scope = parent(&out.scope);
                }
                None => {}
            }
        }
        out
    }

    /// The name of a function whose symbol does not tell where it is written (`#[no_mangle]`): debug information does.
    fn unmangled(debug: &str, receiver: Option<&str>) -> Self {
        let named = segments(debug);
        let block = named.iter().position(|segment| segment.starts_with("{impl#"));
        let (scope, own) = named.split_at(block.unwrap_or(named.len() - 1));
        let own = if block.is_some() { &own[1..] } else { own };
        match receiver {
            Some(receiver) if block.is_none() && without_arguments(receiver) == plain(scope) => Self {
                name: plain(own),
                scope: parent(&plain(scope)),
                self_type: Some(normalise(receiver)),
                ..Self::default()
            },
            receiver => Self {
                name: plain(own),
                scope: plain(scope),
                self_type: receiver.map(normalise),
                ..Self::default()
            },
        }
    }

    /// What tells the item from others: its path with the generic arguments of its type and trait, as far as they are known. Impls of one
    /// trait with other arguments are other items.
    pub fn key(&self) -> String {
        self.written(str::to_owned)
    }

    /// The path in its shortest form, without generic arguments: equal for all instantiations and all closures of one item.
    pub fn full(&self) -> String {
        self.written(without_arguments)
    }

    /// The path of the function that it is written in the body of.
    pub fn enclosing(&self) -> Option<String> {
        let in_method = self.self_type.is_some() && segments(&self.name).len() > 1;
        (self.local || in_method).then(|| parent(&self.full()))
    }

    /// The path, with the type and the trait as `part` writes them.
    fn written(&self, part: impl Fn(&str) -> String) -> String {
        let name = &self.name;
        match (&self.self_type, &self.trait_path) {
            (Some(self_type), Some(of)) => format!("<{} as {}>::{name}", part(self_type), part(of)),
            (Some(self_type), None) if is_path(&without_arguments(self_type)) => {
                format!("{}::{name}", part(self_type))
            }
            (Some(self_type), None) => format!("<{}>::{name}", part(self_type)),
            (None, _) if self.scope.is_empty() => name.clone(),
            (None, _) => format!("{}::{name}", self.scope),
        }
    }
}

/// Whether a symbol is no path.
fn is_bare(symbol: &str) -> bool {
    symbol.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Whether a path is one of a function of this name.
fn is_of(path: &str, name: &str) -> bool {
    segments(path).split_last().is_some_and(|(last, scope)| *last == name && !scope.is_empty())
}

/// The type that a compound one begins with.
fn root(self_type: &str) -> &str {
    let start = self_type.trim_start_matches(['&', '*', '(', '[']);
    start.strip_prefix("mut ").or(start.strip_prefix("const ")).unwrap_or(start)
}

/// Whether a path is another one or something in it.
pub fn is_below(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Self type and trait of `<T as Trait>`, `<T>`, `<impl T>` and `<impl Trait for T>`. A later segment `<T>` is a list of
/// arguments.
fn head(segment: &str, at: usize) -> Option<(&str, Option<&str>)> {
    let inside = segment.strip_prefix('<')?.strip_suffix('>')?;
    if let Some(block) = inside.strip_prefix("impl ") {
        return Some(match split_outside(block, " for ") {
            Some((of, self_type)) => (self_type, Some(of)),
            None => (block, None),
        });
    }
    match split_outside(inside, " as ") {
        Some((self_type, of)) => Some((self_type, Some(of))),
        None => (at == 0).then_some((inside, None)),
    }
}

/// The segments of a path; `::` inside of brackets does not separate.
pub fn segments(path: &str) -> Vec<&str> {
    separated(path, "::")
}

/// The parts of a text between separators outside of brackets.
pub(crate) fn separated<'t>(text: &'t str, by: &str) -> Vec<&'t str> {
    let (mut out, mut start, mut depth) = (Vec::new(), 0, 0i32);
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        depth += nesting(bytes, at);
        if depth == 0 && bytes[at..].starts_with(by.as_bytes()) {
            out.push(&text[start..at]);
            start = at + by.len();
            at += by.len() - 1;
        }
        at += 1;
    }
    out.push(&text[start..]);
    out
}

fn nesting(bytes: &[u8], at: usize) -> i32 {
    match bytes[at] {
        b'<' | b'(' | b'[' | b'{' => 1,
        b'>' if at > 0 && bytes[at - 1] == b'-' => 0,
        b'>' | b')' | b']' | b'}' => -1,
        _ => 0,
    }
}

fn split_outside<'t>(text: &'t str, by: &str) -> Option<(&'t str, &'t str)> {
    let mut depth = 0;
    (0..text.len()).find_map(|at| {
        depth += nesting(text.as_bytes(), at);
        let found = depth == 0 && text.is_char_boundary(at) && text[at..].starts_with(by);
        found.then(|| (&text[..at], &text[at + by.len()..]))
    })
}

/// Segments joined, without generic arguments and without what has no name in the source.
fn plain(segments: &[&str]) -> String {
    let named = segments.iter().filter(|segment| !is_anonymous(segment)).map(|s| without_arguments(s));
    named.collect::<Vec<_>>().join("::")
}

/// Generic arguments of the segment before, as v0 has them.
fn is_arguments(segment: &str, at: usize) -> bool {
    at > 0 && segment.starts_with('<') && head(segment, at).is_none()
}

/// Closures, async bodies, impls, shims.
fn is_anonymous(segment: &str) -> bool {
    segment.starts_with('{')
}

/// The path without its last segment.
pub fn parent(path: &str) -> String {
    let mut segments = segments(path);
    segments.pop();
    segments.join("::")
}

/// Whether a type is named by a path and nothing else.
pub fn is_path(text: &str) -> bool {
    text.split("::").all(|name| {
        let mut chars = name.chars();
        chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
            && chars.all(|c| c.is_alphanumeric() || c == '_')
    })
}

/// A type or path without any generic arguments: `a::T` of `a::T<b::U>` and of `a::T::<b::U>`.
pub fn without_arguments(text: &str) -> String {
    let text = normalise(text);
    let (mut out, mut depth) = (String::new(), 0);
    for (at, c) in text.char_indices() {
        let opens = c == '<' && out.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        if depth == 0 && !opens {
            out.push(c);
        } else {
            depth += nesting(text.as_bytes(), at);
            if depth == 0 && out.ends_with("::") && !text[at + c.len_utf8()..].starts_with("::") {
                out.truncate(out.len() - 2);
            }
        }
    }
    while let Some(at) = out.find("::::") {
        out.replace_range(at..at + 2, "");
    }
    out
}

/// A type in one spelling: white space only between words, and the parts of the standard library under one root, because
/// source says `std` for what is defined in `core` or `alloc`.
pub fn normalise(text: &str) -> String {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let mut out = String::with_capacity(text.len());
    let mut gap = false;
    for c in text.chars() {
        if c.is_whitespace() {
            gap = true;
            continue;
        }
        if gap && is_word(out.chars().next_back()) && is_word(Some(c)) {
            out.push(' ');
        }
        gap = false;
        out.push(c);
    }
    for root in ["std", "alloc"] {
        let from = format!("{root}::");
        let mut start = 0;
        while let Some(at) = out[start..].find(&from).map(|at| at + start) {
            let begins = !is_word(out[..at].chars().next_back()) && !out[..at].ends_with("::");
            if begins {
                out.replace_range(at..at + root.len(), "core");
            }
            start = at + 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str, debug: &str, receiver: Option<&str>, impl_scope: Option<&str>) -> (String, String) {
        let debug_path = (!debug.is_empty()).then_some(debug);
        let item = ItemName::new(path, Hints { debug_path, receiver, impl_scope });
        (item.full(), item.scope)
    }

    fn is(path: &str, debug: &str, receiver: Option<&str>, full: &str, scope: &str) {
        assert_eq!(name(path, debug, receiver, None), (full.into(), scope.into()), "{path}");
    }

    #[test]
    fn symbols_that_are_no_paths() {
        is("entry", "a::b::entry", None, "a::b::entry", "a::b");
        is("entry", "a::Order<u32>::entry", Some("a::Order<u32>"), "a::Order::entry", "a");
        is("entry", "a::b::{impl#0}::entry", Some("a::Order"), "a::Order::entry", "a::b");
        is("entry", "", None, "entry", "");
        // Exported under another name.
        is("entry", "a::other", None, "entry", "");
    }

    #[test]
    fn both_manglings_give_one_name() {
        let order = Some("a::Order<u32>");
        is("a::Order<T>::total", "a::Order<u32>::total<u32>", order, "a::Order::total", "a");
        is("<a::Order<u32>>::total", "a::Order<u32>::total<u32>", order, "a::Order::total", "a");
        is(
            "a::Order<T>::total::{{closure}}",
            "a::{impl#0}::total::{closure#0}<u32>",
            None,
            "a::Order::total",
            "a",
        );
        is(
            "<a::Order<u32>>::total::{closure#0}",
            "a::{impl#0}::total::{closure#0}<u32>",
            None,
            "a::Order::total",
            "a",
        );
        is(
            "<a::T as core::fmt::Display>::fmt",
            "b::{impl#4}::fmt",
            None,
            "<a::T as core::fmt::Display>::fmt",
            "b",
        );
        is(
            "b::<impl a::Plain>::elsewhere",
            "a::Plain::elsewhere",
            Some("a::Plain"),
            "a::Plain::elsewhere",
            "b",
        );
        is(
            "b::<impl c::Tr for alloc::vec::Vec<u8>>::m",
            "b::{impl#1}::m",
            None,
            "<core::vec::Vec as c::Tr>::m",
            "b",
        );
        is("c::Tr::m", "c::Tr::m<a::T>", Some("a::T"), "<a::T as c::Tr>::m", "c");
        is("<a::T as c::Tr>::m", "c::Tr::m<a::T>", Some("a::T"), "<a::T as c::Tr>::m", "c");
        is("a::generic", "a::generic<u8>", None, "a::generic", "a");
        is("a::generic::<u8>", "a::generic<u8>", None, "a::generic", "a");
        is("a::handler::{closure#0}", "a::handler::{async_fn#0}", None, "a::handler", "a");
        is("<(u8, a::P) as a::Tr>::req", "a::{impl#9}::req", None, "<(u8,a::P) as a::Tr>::req", "a");
    }

    #[test]
    fn the_impl_of_a_v0_symbol() {
        let hint = name("<a::Plain>::elsewhere", "a::Plain::elsewhere", Some("a::Plain"), Some("b"));
        assert_eq!(hint, ("a::Plain::elsewhere".into(), "b".into()));
    }

    #[test]
    fn functions_in_functions() {
        is("a::f::inner", "a::f::inner", None, "a::f::inner", "a::f");
        is("a::T::m::inner", "a::{impl#0}::m::inner", None, "a::T::m::inner", "a");
        is("a::f::L::m", "a::f::L::m", Some("a::f::L"), "a::f::L::m", "a::f");
    }

    #[test]
    fn arguments_and_spelling() {
        assert_eq!(without_arguments("a::T<b::U<c>, fn() -> d>::m"), "a::T::m");
        assert_eq!(without_arguments("a::f::<u8>"), "a::f");
        assert_eq!(without_arguments("a::T::<u8>::m"), "a::T::m");
        assert_eq!(without_arguments("&mut [a::T<u8>]"), "&mut[a::T]");
        assert_eq!(normalise("std::vec::Vec< u8 >"), "core::vec::Vec<u8>");
        assert_eq!(normalise("my_std::vec"), "my_std::vec");
        assert_eq!(normalise("a::std::b"), "a::std::b");
        assert_eq!(normalise("dyn a::B + 'static"), "dyn a::B+'static");
    }
}
