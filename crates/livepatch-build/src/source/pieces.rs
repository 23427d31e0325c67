//! What is asked of attributes and tokens of an item.

use super::items::Owner;
use super::mentions::string_words;
use super::parts::plain;
use super::tokens::{Context, Token};
use syn::{Attribute, Item};

pub(super) fn trait_owner(path: &syn::Path) -> Owner {
    let mut segments = path.segments.iter().map(|segment| plain(&segment.ident));
    let first = if path.segments.len() > 1 { segments.next() } else { None };
    let last = segments.last().unwrap_or_default();
    Owner::Trait { first, last }
}

pub(super) fn attrs(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// `#[cfg(test)]` and `#[test]`, exactly.
pub(super) fn is_for_tests(attr: &Attribute) -> bool {
    match &attr.meta {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        syn::Meta::NameValue(_) => false,
    }
}

/// Attributes that neither generate code nor register the item anywhere.
pub(super) fn is_harmless(attr: &Attribute) -> bool {
    let known = [
        "doc",
        "inline",
        "cold",
        "allow",
        "warn",
        "deny",
        "forbid",
        "expect",
        "must_use",
        "track_caller",
        "cfg",
        "deprecated",
        "non_exhaustive",
    ];
    known.iter().any(|name| attr.path().is_ident(name))
        || attr.path().segments.first().is_some_and(|s| s.ident == "clippy" || s.ident == "rustfmt")
}

/// The tokens without the place where the item is given its name.
pub(super) fn without_name(mut tokens: Vec<Token>, name: &str) -> Vec<Token> {
    let introduces = |token: &Token| matches!(&*token.text, "fn" | "const" | "static" | "mut");
    let is_name =
        |token: &Token| token.context == Context::Code && token.name() == name && !token.is_keyword();
    let at = (1..tokens.len()).find(|&at| is_name(&tokens[at]) && introduces(&tokens[at - 1]));
    if let Some(at) = at {
        tokens.remove(at);
    }
    tokens
}

pub(super) fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|token| &*token.text).collect::<Vec<_>>().join(" ")
}

pub(super) fn lines(tokens: &[Token]) -> (u32, u32) {
    let first = tokens.iter().map(|token| token.first_line).filter(|line| *line > 0).min().unwrap_or(0);
    (first, tokens.iter().map(|token| token.last_line).max().unwrap_or(0))
}

/// Whether a `.rs` file may get into the program as text, so that its comments count.
pub(super) fn may_include_text(tokens: &[Token]) -> bool {
    tokens.iter().enumerate().any(|(at, token)| {
        if !token.is_ident() || !matches!(&*token.text, "include_str" | "include_bytes") {
            return false;
        }
        let args = tokens[at + 1..].iter().take_while(|token| !matches!(&*token.text, ")" | "]" | "}" | ";"));
        let literals: Vec<&Token> = args.filter(|token| token.text.ends_with('"')).collect();
        literals
            .last()
            .is_none_or(|literal| string_words(&literal.text).last().is_some_and(|word| *word == "rs"))
    })
}
