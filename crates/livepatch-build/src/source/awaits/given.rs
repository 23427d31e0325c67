//! What names are given: `let save = store(&x)`, `let (save, load) = (store(&x), load(&y))`, `both.save = store(&x)`.

use super::fields::{field, parts};
use super::{closing, depth_of, text};
use crate::source::tokens::{Token, TokenKind};
use std::collections::BTreeMap;
use std::ops::Range;

/// Where names, and fields of what has a name, are declared or assigned to: by the name, in order.
pub(super) struct Targets<'t> {
    tokens: &'t [Token],
    by_name: BTreeMap<&'t str, Vec<Target>>,
}

struct Target {
    /// The name, and the fields of it.
    path: String,
    /// Its last token, or that of the list that it is in.
    last: usize,
    /// Which field of the value it is given, if not all of it.
    field: String,
}

impl<'t> Targets<'t> {
    pub(super) fn of(tokens: &'t [Token]) -> Self {
        let mut by_name: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for at in 0..tokens.len() {
            for (place, target) in alone(tokens, at).into_iter().chain(listed(tokens, at)) {
                by_name.entry(&*tokens[place].text).or_default().push(target);
            }
        }
        Self { tokens, by_name }
    }

    /// What a name was given last before a place, and the fields of that which it goes on with.
    pub(super) fn given(&self, before: usize, name: &str) -> Option<(Range<usize>, String)> {
        let targets = self.by_name.get(name.split('.').next()?)?;
        let (mut value, fields) = targets.iter().rev().find_map(|target| {
            let fields = name.strip_prefix(&*target.path)?;
            let is_whole = fields.is_empty() || fields.starts_with('.');
            let value = is_whole.then(|| value(self.tokens, target.last, before)).flatten()?;
            Some((value, format!("{}{fields}", target.field)))
        })?;
        let mut fields = &*fields;
        while let Some(names) = fields.strip_prefix('.') {
            let (first, _) = names.split_once('.').unwrap_or((names, ""));
            let Some(of) = field(self.tokens, value.clone(), first) else { break };
            (value, fields) = (of, &names[first.len()..]);
        }
        // A name for a name.
        let is_path = path(self.tokens, value.start) == Some(value.end);
        let other = is_path.then(|| text(&self.tokens[value.clone()]) + fields);
        other.and_then(|other| self.given(value.start, &other)).or_else(|| Some((value, fields.to_owned())))
    }
}

/// What is declared or assigned to by itself, if that begins here.
fn alone(tokens: &[Token], place: usize) -> Option<(usize, Target)> {
    let end = path(tokens, place).filter(|_| stands_alone_as_target(tokens, place))?;
    let is_given = tokens.get(end).is_some_and(|next| next.is_punct("=") || next.is_punct(":"));
    let target = || Target { path: text(&tokens[place..end]), last: end - 1, field: String::new() };
    is_given.then(|| (place, target()))
}

/// What is declared in a list, if that begins here: `let (one, other) =`.
fn listed(tokens: &[Token], at: usize) -> Vec<(usize, Target)> {
    let is_list = tokens[at].name() == "let"
        && tokens.get(at + 1).is_some_and(|open| ["(", "["].contains(&&*open.text));
    if !is_list {
        return Vec::new();
    }
    let last = closing(tokens, at + 1);
    let name = |(nth, part): (usize, Range<usize>)| {
        let place = match &tokens[part.clone()] {
            [name] if name.is_ident() => part.start,
            [mutable, _] if mutable.name() == "mut" => part.start + 1,
            _ => return None,
        };
        Some((place, Target { path: tokens[place].text.to_string(), last, field: format!(".{nth}") }))
    };
    parts(tokens, at + 2..last).enumerate().filter_map(name).collect()
}

/// Where a name that begins at a place ends, with the fields that are taken of it.
pub(super) fn path(tokens: &[Token], at: usize) -> Option<usize> {
    let is_name = tokens[at].is_ident() && stands_alone(tokens, at);
    let is_field = |at: usize| match tokens.get(at..at + 2) {
        Some([dot, field]) if dot.is_punct(".") => match field.kind {
            TokenKind::Literal => true,
            TokenKind::Ident => field.name() != "await" && !is_called(tokens, at + 2),
            _ => false,
        },
        _ => false,
    };
    let mut end = at + 1;
    while is_field(end) {
        end += 2;
    }
    is_name.then_some(end)
}

/// Whether the name before a place is that of a method or macro, or goes on.
fn is_called(tokens: &[Token], at: usize) -> bool {
    tokens.get(at).is_some_and(|next| &*next.text == "(" || next.is_punct("!") || next.is_punct(":"))
}

/// Whether a name is no more than that: no field, and nothing that a path leads to.
fn stands_alone(tokens: &[Token], at: usize) -> bool {
    !matches!(&tokens[..at], [.., dot] if dot.is_punct("."))
        && !matches!(&tokens[..at], [.., one, other] if one.is_punct(":") && other.is_punct(":"))
}

/// Whether a name stands where it is declared or assigned to.
fn stands_alone_as_target(tokens: &[Token], place: usize) -> bool {
    let Some(before) = place.checked_sub(1).map(|before| &tokens[before]) else { return true };
    ["let", "mut"].contains(&before.name())
        || before.is_punct(";")
        || before.kind == TokenKind::Open && &*before.text == "{"
        || before.kind == TokenKind::Close && &*before.text == "}"
}

/// What stands behind the `=` of a declaration or assignment that ends before a place.
pub(super) fn value(tokens: &[Token], name: usize, before: usize) -> Option<Range<usize>> {
    let mut depth = 0;
    let mut from = None;
    for at in name + 1..before {
        let token = &tokens[at];
        match depth {
            0 if token.is_punct(";") => return from.map(|from| from..at).filter(|value| !value.is_empty()),
            0 if token.is_punct("=") && from.is_none() => {
                let is_other =
                    token.is_joint() || at.checked_sub(1).is_some_and(|one| tokens[one].is_joint());
                from = (!is_other).then_some(at + 1);
            }
            _ => {}
        }
        depth -= depth_of(token);
        if depth < 0 {
            return None;
        }
    }
    None
}
