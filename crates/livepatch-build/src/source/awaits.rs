//! Await points that changed places.
//!
//! The compiler numbers the points at which a body waits. A future that is suspended knows its number, and what it waits for by its type
//! alone: where two points wait for futures of one type, nothing but the source tells that they were exchanged. A future that waits
//! at one of them would go on behind the other.

use super::tokens::{Token, TokenKind};
use std::collections::HashMap;

/// What is awaited at another place in the order than before, if something is.
pub(super) fn moved(old: &[Token], new: &[Token]) -> Option<String> {
    let (old, new) = (awaited(old), awaited(new));
    let (before, after) = (once(&old), once(&new));
    let mut moved: Vec<_> =
        before.iter().filter(|(text, at)| after.get(*text).is_some_and(|now| now != *at)).collect();
    moved.sort_by_key(|(_, at)| **at);
    moved.first().map(|(text, _)| (**text).to_owned())
}

/// The expressions that are awaited, in order.
pub(super) fn awaited(tokens: &[Token]) -> Vec<String> {
    let ends =
        tokens.windows(2).enumerate().filter(|(_, pair)| pair[0].is_punct(".") && pair[1].name() == "await");
    ends.map(|(end, _)| text(&tokens[start(tokens, end)..end])).collect()
}

/// Where the expression begins that ends before a place: names, paths, fields and calls, one behind the other.
fn start(tokens: &[Token], end: usize) -> usize {
    let mut at = end;
    while let Some(before) = at.checked_sub(1) {
        at = match tokens[before].kind {
            // A block that nothing is done with is the statement before.
            TokenKind::Close if &*tokens[before].text == "}" && !goes_on(&tokens[at]) => return at,
            TokenKind::Close => opening(tokens, before),
            TokenKind::Open => return at,
            TokenKind::Ident if KEYWORDS.contains(&tokens[before].name()) => return at,
            TokenKind::Ident | TokenKind::Literal => before,
            TokenKind::Punct(_) if [".", ":", "?", "&"].contains(&&*tokens[before].text) => before,
            TokenKind::Punct(_) => return at,
        };
    }
    at
}

fn goes_on(token: &Token) -> bool {
    token.is_punct(".") || token.is_punct("?")
}

/// Words that an expression does not go on over.
const KEYWORDS: [&str; 12] =
    ["return", "match", "if", "in", "while", "let", "else", "loop", "mut", "break", "move", "async"];

/// The bracket that the one at `close` belongs to.
fn opening(tokens: &[Token], close: usize) -> usize {
    let mut depth = 0;
    for at in (0..=close).rev() {
        match tokens[at].kind {
            TokenKind::Close => depth += 1,
            TokenKind::Open => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    0
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|token| &*token.text).collect()
}

/// Those that occur once, with their places.
fn once(all: &[String]) -> HashMap<&str, usize> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, text) in all.iter().enumerate() {
        places.entry(text).or_default().push(at);
    }
    places.into_iter().filter_map(|(text, at)| Some((text, *at.first().filter(|_| at.len() == 1)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tokens::flatten;
    use super::*;

    fn awaited(text: &str) -> Vec<String> {
        super::awaited(&flatten(text.parse().unwrap()))
    }

    #[test]
    fn expressions_are_found_whole() {
        let text =
            "let a = match self.get(1).await? { _ => {} } post(n, &\"x\").await; if x {} b.c[0].d().await";
        assert_eq!(awaited(text), ["self.get(1)", "post(n,&\"x\")", "b.c[0].d()"]);
    }

    #[test]
    fn what_changed_places() {
        let moved = |old: &str, new: &str| {
            let tokens = |text: &str| flatten(text.parse().unwrap());
            moved(&tokens(old), &tokens(new))
        };
        assert_eq!(moved("a().await; b().await;", "b().await; a().await;").as_deref(), Some("a()"));
        assert_eq!(moved("a().await; b().await;", "x(); a().await; y(); b().await;"), None);
        assert_eq!(moved("a(1).await; b().await;", "a(2).await; b().await;"), None);
        assert_eq!(moved("a().await; a().await; b().await;", "a().await; a().await; c().await;"), None);
    }
}
