//! Await points that changed places.
//!
//! The compiler numbers the points at which a body waits. A future that is suspended knows its number, and what it waits for by its type
//! alone: where two points wait for futures of one type, nothing but the source tells that they were exchanged. A future that waits
//! at one of them would go on behind the other. Where the same expression is awaited in several places, the conditions and patterns
//! that it stands under tell one from another.

mod bound;
mod fields;
mod given;
mod handed;
mod operands;
mod shadowed;

use super::tokens::{Token, TokenKind};
use livepatch_patch::{Await, Tag};
use std::ops::Range;

/// What is awaited, or kept meanwhile, at another place in the order than before, or may be, if something is.
pub(super) fn moved(old: &[Token], new: &[Token]) -> Option<String> {
    let kept = || operands::moved(old, new).or_else(|| shadowed::moved(old, new));
    let as_written = moved_itself(old, new).or_else(kept);
    as_written.or_else(|| moved_itself(&bound::followed(old), &bound::followed(new)))
}

/// The same in a function that awaits nothing, and makes a future of others: `map(join(a(), b()), f)`.
pub(super) fn moved_in_result(old: &[Token], new: &[Token]) -> Option<String> {
    handed::moved_to_functions(&bound::followed(old), &bound::followed(new))
}

fn moved_itself(old: &[Token], new: &[Token]) -> Option<String> {
    let own = Await::moved(&awaits(old), &awaits(new));
    let own = own.and_then(|at| Some(text(&old[places(old).get(at)?.clone()])));
    own.or_else(|| handed::moved(old, new))
}

/// The expressions that a body awaits, in order, and what is not known to be at the same place but by its text: what macros may await, and
/// what is kept meanwhile.
pub(super) fn awaited(tokens: &[Token]) -> (Vec<Await>, Vec<String>) {
    let followed = bound::followed(tokens);
    let kept = operands::several(tokens).chain(shadowed::several(tokens));
    (awaits(&followed), handed::to_macros(&followed).into_iter().chain(kept).collect())
}

fn awaits(tokens: &[Token]) -> Vec<Await> {
    let one = |at: Range<usize>| {
        let (whole, tag) = (&tokens[at.clone()], |tokens: &[Token]| Tag::of(&text(tokens)));
        Await {
            what: tag(whole),
            callee: tag(&without_arguments(whole)),
            under: Tag::of(&under(tokens, at.start)),
            handed: handed::calls(whole).into_iter().map(tag).collect(),
        }
    };
    places(tokens).into_iter().map(one).collect()
}

/// An expression without what is in its brackets.
fn without_arguments(tokens: &[Token]) -> Vec<Token> {
    let mut depth = 0;
    let outside = tokens.iter().filter(|token| {
        depth -= depth_of(token);
        depth == 0 || depth == 1 && token.kind == TokenKind::Open
    });
    outside.cloned().collect()
}

/// Words that make a body wait.
const AWAITING: [&str; 2] = ["await", "yield"];

/// Where the expressions are that are awaited, or that `yield` hands out, of which macros make awaits.
fn places(tokens: &[Token]) -> Vec<Range<usize>> {
    let is_await = |pair: &[Token]| pair[0].is_punct(".") && pair[1].is_ident() && pair[1].name() == "await";
    let ends = tokens.windows(2).enumerate().filter(|(_, pair)| is_await(pair));
    let awaited = ends.map(|(end, _)| start(tokens, end)..end);
    let yields = tokens.iter().enumerate().filter(|(_, token)| token.is_ident() && token.name() == "yield");
    let yielded = yields.map(|(at, _)| at..at + until_end(&tokens[at..]));
    let mut places: Vec<_> = awaited.chain(yielded).collect();
    places.sort_by_key(|at| at.start);
    places
}

/// How long the expression is that begins here.
fn until_end(tokens: &[Token]) -> usize {
    let mut depth = 0;
    let end = tokens.iter().position(|token| {
        depth -= depth_of(token);
        depth < 0 || depth == 0 && (token.is_punct(";") || token.is_punct(","))
    });
    end.unwrap_or(tokens.len())
}

/// The conditions, patterns and loops around a place, from the inside out.
fn under(tokens: &[Token], place: usize) -> String {
    let (mut heads, mut at) = (String::new(), place);
    loop {
        let begin = statement(tokens, at);
        heads.push_str(&head(&tokens[begin..at]));
        let is_else = begin < at && tokens[begin].name() == "else" && begin > 0;
        // `else` stands under the condition of the block before it.
        at = match is_else {
            true => opening(tokens, begin - 1),
            false => match around(tokens, begin) {
                Some(open) => open,
                None => return heads,
            },
        };
    }
}

/// What of the start of a statement decides whether the rest is come to.
fn head(tokens: &[Token]) -> String {
    const DECIDING: [&str; 6] = ["if", "match", "while", "for", "loop", "else"];
    let is_arm = tokens.windows(2).any(|pair| pair[0].is_punct("=") && pair[1].is_punct(">"));
    let from = match is_arm {
        true => Some(0),
        false => tokens.iter().position(|token| DECIDING.contains(&token.name())),
    };
    from.map(|from| format!(" <{}>", text(&tokens[from..]))).unwrap_or_default()
}

/// Where the statement, the arm or the argument begins that a place is in.
fn statement(tokens: &[Token], place: usize) -> usize {
    let (mut at, mut depth) = (place, 0);
    while let Some(before) = at.checked_sub(1) {
        let token = &tokens[before];
        let is_end = token.is_punct(";")
            || token.is_punct(",")
            || (token.kind == TokenKind::Close && &*token.text == "}");
        if depth == 0 && (token.kind == TokenKind::Open || is_end) {
            return at;
        }
        depth += depth_of(token);
        at = before;
    }
    at
}

/// The bracket around a place.
fn around(tokens: &[Token], place: usize) -> Option<usize> {
    let mut depth = 0;
    (0..place).rev().find(|at| {
        depth += depth_of(&tokens[*at]);
        depth < 0
    })
}

/// How many brackets deeper it is before a token than behind it.
fn depth_of(token: &Token) -> i32 {
    i32::from(token.kind == TokenKind::Close) - i32::from(token.kind == TokenKind::Open)
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

/// The bracket that belongs to the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    let close = (open..tokens.len()).find(|at| {
        depth += depth_of(&tokens[*at]);
        depth == 0
    });
    close.unwrap_or(tokens.len())
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|token| &*token.text).collect()
}

/// The same of texts.
#[cfg(test)]
fn moved_in_text(old: &str, new: &str) -> Option<String> {
    let tokens = |text: &str| super::tokens::flatten(text.parse().unwrap());
    moved(&tokens(old), &tokens(new))
}

#[cfg(test)]
mod tests {
    use super::super::tokens::flatten;
    use super::*;

    fn awaited(of: &str) -> Vec<String> {
        let tokens = flatten(of.parse().unwrap());
        places(&tokens).into_iter().map(|at| text(&tokens[at])).collect()
    }

    #[test]
    fn what_it_stands_under() {
        let text = "a(); let x = if n > 5 { w().await } else if n == f(2, 3) { w().await } else { match y { Some(1) | None => w().await, _ => { g(w().await) } } };
            for i in 0..3 { w().await; }";
        let tokens = flatten(text.parse().unwrap());
        let heads: Vec<String> = places(&tokens).into_iter().map(|at| under(&tokens, at.start)).collect();
        assert_eq!(
            heads,
            [
                " <ifn>5>",
                " <elseifn==f(2,3)> <ifn>5>",
                " <Some(1)|None=>> <matchy> <else> <elseifn==f(2,3)> <ifn>5>",
                " <_=>> <matchy> <else> <elseifn==f(2,3)> <ifn>5>",
                " <foriin0..3>",
            ]
        );
    }

    #[test]
    fn expressions_are_found_whole() {
        let text =
            "let a = match self.get(1).await? { _ => {} } post(n, &\"x\").await; if x {} b.c[0].d().await";
        assert_eq!(awaited(text), ["self.get(1)", "post(n,&\"x\")", "b.c[0].d()"]);
    }

    #[test]
    fn what_changed_places() {
        let moved = moved_in_text;
        assert_eq!(moved("a().await; b().await;", "b().await; a().await;").as_deref(), Some("a()"));
        assert_eq!(moved("a().await; b().await;", "x(); a().await; y(); b().await;"), None);
        assert_eq!(moved("a(1).await; b().await;", "a(2).await; b().await;"), None);
        assert_eq!(moved("x.a(1).await; b().await;", "b(0).await; x.a(2).await;").as_deref(), Some("x.a(1)"));
        assert_eq!(
            moved("loop { yield a(); yield b(); }", "loop { yield b(); yield a(); }").as_deref(),
            Some("yielda()")
        );
        assert_eq!(moved("loop { yield a(1); yield b(); }", "loop { yield a(2); yield b(); }"), None);
        assert_eq!(moved("a().await; a().await; b().await;", "a().await; a().await; c().await;"), None);
        let branches = |condition: &str, more: &str| {
            format!("if {condition} {{ log(1); w().await; }} else {{ {more} w().await; }}")
        };
        assert_eq!(moved(&branches("n > 5", ""), &branches("n > 5", "log(3);")), None);
        assert_eq!(moved(&branches("n > 5", ""), &branches("n <= 5", "")).as_deref(), Some("w()"));
        let arms =
            |arms: [&str; 2]| format!("match x {{ {} => w().await, {} => w().await }}", arms[0], arms[1]);
        assert_eq!(moved(&arms(["A", "B"]), &arms(["B", "A"])).as_deref(), Some("w()"));
    }
}
