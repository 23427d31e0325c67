//! Futures that have a name before they are awaited: `let save = store(&x); save.await`.
//!
//! The name says nothing: what it was given does. So it is put in the place of the name.

use super::{AWAITING, depth_of, handed};
use crate::source::tokens::{Token, TokenKind};
use std::ops::Range;

/// Functions of this name, or a longer one that begins so, take several futures.
const TAKE_SEVERAL: [&str; 6] = ["join", "try_join", "select", "race", "zip", "merge"];

/// The same text, with what names were given in the places of names that are awaited, or handed to what may await them.
pub(super) fn followed(tokens: &[Token]) -> Vec<Token> {
    let mut text = Vec::with_capacity(tokens.len());
    for (at, token) in tokens.iter().enumerate() {
        match (token.is_ident() && (is_awaited(tokens, at) || is_handed_over(tokens, at)))
            .then(|| given(tokens, at))
            .flatten()
        {
            Some(value) => text.extend(tokens[value].iter().map(told)),
            None => text.push(token.clone()),
        }
    }
    text
}

/// What is awaited in a value is awaited where a name is given it: in the place of the name it is no more than a part of the text.
fn told(token: &Token) -> Token {
    let mut token = token.clone();
    if AWAITING.contains(&token.name()) {
        token.kind = TokenKind::Literal;
    }
    token
}

/// Whether a name, and no more than that, is awaited.
fn is_awaited(tokens: &[Token], at: usize) -> bool {
    stands_alone(tokens, at)
        && tokens.get(at + 1).is_some_and(|token| token.is_punct("."))
        && tokens.get(at + 2).is_some_and(|token| token.name() == "await")
}

/// Whether a name, and no more than that, is an argument of a macro or of a function that takes several futures.
fn is_handed_over(tokens: &[Token], at: usize) -> bool {
    let ends = tokens.get(at + 1).is_some_and(|next| next.is_punct(",") || next.kind == TokenKind::Close);
    if !ends || !stands_alone(tokens, at) {
        return false;
    }
    let mut depth = 0;
    for open in (1..at).rev() {
        depth += depth_of(&tokens[open]);
        let (bracket, to) = (&*tokens[open].text, &tokens[open - 1]);
        match depth {
            0 if bracket == ";" => return false,
            0.. => {}
            _ if handed::makes_text(tokens, open) => return false,
            _ if to.is_punct("!") || TAKE_SEVERAL.iter().any(|name| to.name().starts_with(name)) => {
                return true;
            }
            _ if bracket == "{" => return false,
            _ => depth = 0,
        }
    }
    false
}

/// Whether nothing before a name makes more of it than a reference.
fn stands_alone(tokens: &[Token], at: usize) -> bool {
    !at.checked_sub(1).is_some_and(|before| tokens[before].is_punct(".") || tokens[before].is_punct(":"))
}

/// What a name was given last before a place.
fn given(tokens: &[Token], at: usize) -> Option<Range<usize>> {
    let name = tokens[at].name();
    let value = (0..at).rev().find_map(|place| {
        let is_it = tokens[place].name() == name && stands_alone_as_target(tokens, place);
        is_it.then(|| value(tokens, place, at)).flatten()
    })?;
    // A name for a name.
    match value.len() == 1 && tokens[value.start].is_ident() {
        true => given(tokens, value.start).or(Some(value)),
        false => Some(value),
    }
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

#[cfg(test)]
mod tests {
    use super::super::moved_in_text as moved;

    #[test]
    fn what_has_a_name_changes_places() {
        let body =
            |[one, other]: [&str; 2]| format!("let f = {one}; f.await; let mut f: B = {other}; f.await;");
        assert_eq!(moved(&body(["a()", "b()"]), &body(["b()", "a()"])).as_deref(), Some("a()"));
        assert_eq!(moved(&body(["a(1)", "b(1)"]), &body(["a(2)", "b(2)"])), None);
        let body =
            |[one, other]: [&str; 2]| format!("let f = {one}; let g = {other}; (&mut g).await; f.await;");
        assert_eq!(moved(&body(["a()", "b()"]), &body(["a()", "c()"])), None);
        let body = |[one, other]: [&str; 2]| format!("let mut f = {one}; f.await; f = {other}; f.await;");
        assert_eq!(moved(&body(["a()", "b()"]), &body(["b()", "a()"])).as_deref(), Some("a()"));
    }

    #[test]
    fn what_has_a_name_is_handed_over() {
        for call in
            ["join!(f, g)", "join(f, g).await", "join_all(vec![f, g]).await", "join_all([f, g]).await"]
        {
            let body = |[one, other]: [&str; 2]| format!("let f = {one}; let g = {other}; {call};");
            assert!(moved(&body(["a()", "b()"]), &body(["b()", "a()"])).is_some(), "{call}");
            assert_eq!(moved(&body(["a()", "b()"]), &body(["a()", "b(2)"])), None, "{call}");
        }
        let body =
            |[one, other]: [&str; 2]| format!("let f = from(); let g = to(); save({one}, {other}).await;");
        assert_eq!(moved(&body(["f", "g"]), &body(["g", "f"])), None);
    }

    #[test]
    fn what_was_awaited_is_not_awaited_where_its_result_is_used() {
        let lines =
            ["note!(t);", "info!(t, \"timed\");", "eprintln!(\"{}\", t);", "return format!(\"{}\", t);"];
        for (line, wait) in
            lines.into_iter().flat_map(|line| [(line, "post(1).await"), (line, "yield post(1)")])
        {
            let body = |line: &str| format!("let t = {wait}; {line} let u = post(2).await; f(t, u)");
            assert_eq!(moved(&body(""), &body(line)), None, "{line}");
            assert_eq!(moved(&body(line), &body("")), None, "{line}");
        }
    }

    #[test]
    fn what_will_be_awaited_contains_awaits() {
        let blocks = |[one, other]: [&str; 2]| {
            format!(
                "let f = async {{ {one}; w().await }}; let g = async {{ {other}; w().await }}; join!(f, g);"
            )
        };
        assert!(moved(&blocks(["x()", "y()"]), &blocks(["y()", "x()"])).is_some());
        let made = |[one, other]: [&str; 2]| {
            format!("let f = {one}(w().await); let g = {other}(w().await); f.await; g.await")
        };
        assert!(moved(&made(["a", "b"]), &made(["b", "a"])).is_some());
        assert_eq!(moved(&made(["a", "b"]), &made(["a", "c"])), None);
    }

    #[test]
    fn what_is_made_a_text_is_not_handed_over() {
        let body = |made: &str, [one, other]: [&str; 2]| {
            format!("let f = name(); let g = host(); send({made}!(\"{{}} {{}}\", {one}, {other})).await")
        };
        assert_eq!(moved(&body("format", ["f", "g"]), &body("format", ["g", "f"])), None);
        assert!(moved(&body("traced", ["f", "g"]), &body("traced", ["g", "f"])).is_some());
    }
}
