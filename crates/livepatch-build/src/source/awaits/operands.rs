//! What is computed before an await in the same expression: `Reply { id: next(), total: total(), body: fetch().await }`.
//!
//! The suspended future keeps such values without names, one behind the other. Where two are of one type, nothing but the source tells
//! that they changed places: each would be taken for the other.

use super::{awaits, depth_of, places, start, text};
use crate::source::tokens::{Token, TokenKind};
use livepatch_patch::in_other_place;

/// What is kept in another place than before at an await.
pub(super) fn moved(old: &[Token], new: &[Token]) -> Option<String> {
    let (before, after) = (operands(old), operands(new));
    if before.len() == after.len() {
        return before.iter().zip(&after).find_map(|(old, new)| in_other_place(old, new).cloned());
    }
    // The same await by its text.
    let (was, is) = (awaits(old), awaits(new));
    let same = |at: usize| is.iter().position(|new| new.what == was[at].what);
    (0..was.len()).find_map(|at| in_other_place(&before[at], &after[same(at)?]).cloned())
}

/// What is kept at each await, if that is more than one value.
pub(super) fn several(tokens: &[Token]) -> impl Iterator<Item = String> {
    operands(tokens).into_iter().filter(|kept| kept.len() > 1).map(|kept| format!("{kept:?}"))
}

/// What is kept at each await, in order.
fn operands(tokens: &[Token]) -> Vec<Vec<String>> {
    places(tokens).into_iter().map(|at| before(tokens, at.start)).collect()
}

/// What the brackets around a place hold before it; of a field, its name.
fn before(tokens: &[Token], place: usize) -> Vec<String> {
    let (mut kept, mut at) = (Vec::new(), place);
    while let Some(open) = super::around(tokens, at) {
        let is_block = &*tokens[open].text == "{";
        let is_fields = is_block && names_fields(tokens, open);
        if is_block && !is_fields && begins_another(tokens, open) {
            break;
        }
        if !is_block || is_fields {
            let mut here: Vec<String> = receiver(tokens, open).into_iter().collect();
            here.extend(parts(&tokens[open + 1..at]).filter_map(|part| key(part, is_fields)));
            kept.splice(0..0, here);
        }
        at = open;
    }
    kept
}

/// Whether a bracket holds the fields of a value: `{ name: ...` or `{ name, ...`.
fn names_fields(tokens: &[Token], open: usize) -> bool {
    let colon = |at: usize| tokens.get(at).is_some_and(|token| token.is_punct(":"));
    let is_named = tokens.get(open + 1).is_some_and(Token::is_ident);
    is_named
        && (colon(open + 2) && !colon(open + 3)
            || tokens.get(open + 2).is_some_and(|token| token.is_punct(",")))
}

/// Whether a block is the body of a closure or of an async block: it keeps its values itself.
pub(super) fn begins_another(tokens: &[Token], open: usize) -> bool {
    let before = open.checked_sub(1).map(|before| &tokens[before]);
    before.is_some_and(|token| ["async", "move"].contains(&token.name()) || token.is_punct("|"))
}

/// What a method is called on, if that is computed.
fn receiver(tokens: &[Token], open: usize) -> Option<String> {
    let dot = open.checked_sub(2).filter(|dot| tokens[*dot].is_punct(".") && tokens[dot + 1].is_ident())?;
    let on = &tokens[start(tokens, dot)..dot];
    on.iter().any(|token| token.kind == TokenKind::Open).then(|| text(on))
}

/// What is before a place in a bracket and ends with a comma.
fn parts(held: &[Token]) -> impl Iterator<Item = &[Token]> {
    let (mut depth, mut begin) = (0, 0);
    let ends = held.iter().enumerate().filter_map(move |(at, token)| {
        depth -= depth_of(token);
        (depth == 0 && token.is_punct(",")).then(|| begin..std::mem::replace(&mut begin, at + 1).max(at))
    });
    ends.map(|part| &held[part])
}

/// What tells one operand from another; nothing for one that is not kept.
fn key(part: &[Token], is_field: bool) -> Option<String> {
    let value = match part {
        [_, colon, value @ ..] if is_field && colon.is_punct(":") => value,
        _ => part,
    };
    let is_constant = matches!(value, [token] if token.kind == TokenKind::Literal);
    (!value.is_empty() && !is_constant).then(|| if is_field { text(&part[..1]) } else { text(value) })
}

#[cfg(test)]
mod tests {
    use super::super::super::tokens::flatten;

    fn moved(old: &str, new: &str) -> Option<String> {
        let tokens = |text: &str| flatten(text.parse().unwrap());
        super::moved(&tokens(old), &tokens(new))
    }

    #[test]
    fn operands_change_places() {
        let all = |form: &str, [one, other]: [&str; 2]| form.replace('1', one).replace('2', other);
        for form in [
            "f(1, 2, w().await)",
            "[1, 2, w().await]",
            "let x = (1, 2, 3 + w().await?);",
            "a(1, b(2, w().await))",
            "1.add(2, w().await)",
            "g(1, if x { f(2, w().await) } else { 0 })",
            "f(1, 2, match x { A => w().await, B => 5 })",
        ] {
            let (old, new) = (all(form, ["x()", "y()"]), all(form, ["y()", "x()"]));
            assert_eq!(moved(&old, &new).as_deref(), Some("x()"), "{form}");
            assert_eq!(moved(&old, &all(form, ["x()", "z()"])), None, "{form}");
        }
    }

    #[test]
    fn fields_change_places() {
        let old = "R { id: x(), total: y(), body: w().await }";
        assert_eq!(moved(old, "R { total: z(), id: y(), body: w().await }").as_deref(), Some("id"));
        assert_eq!(moved(old, "R { id: x() + 1, total: z(), body: w().await }"), None);
        assert_eq!(moved("R { a, b, body: w().await }", "R { b, a, body: w().await }").as_deref(), Some("a"));
    }

    #[test]
    fn what_is_not_kept_goes_where_it_likes() {
        assert_eq!(moved("f(w().await, x(), y())", "f(w().await, y(), x())"), None);
        assert_eq!(moved("f(1, 2, w().await)", "f(2, 1, w().await)"), None);
        assert_eq!(moved("g(x(), y()); w().await", "g(y(), x()); w().await"), None);
        let spawned = |[a, b]: [&str; 2]| format!("spawn({a}, {b}, async move {{ w().await }})");
        assert_eq!(moved(&spawned(["x()", "y()"]), &spawned(["y()", "x()"])), None);
    }
}
