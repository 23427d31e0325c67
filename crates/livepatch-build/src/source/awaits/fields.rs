//! Fields of a value that the source makes of them: `Both { save, load: load(&x) }`, `(save, load(&x))`, `[save, load(&x)]`.

use super::{depth_of, opening};
use crate::source::tokens::{Token, TokenKind};
use std::ops::Range;

/// What a field is given in a value that names its fields or lists them; nothing for another value, and for a field that is not among
/// them.
pub(super) fn field(tokens: &[Token], value: Range<usize>, name: &str) -> Option<Range<usize>> {
    let close = value.end.checked_sub(1).filter(|close| tokens[*close].kind == TokenKind::Close)?;
    let open = opening(tokens, close);
    let of = tokens.get(value.start..open)?;
    let mut parts = parts(tokens, open + 1..close);
    match &*tokens[open].text {
        "(" if of.is_empty() || is_type(of) => parts.nth(name.parse().ok()?),
        "[" if of.is_empty() => parts.nth(name.parse().ok()?),
        "{" if is_type(of) => parts.find_map(|part| match &tokens[part.clone()] {
            [field] if &*field.text == name => Some(part),
            [field, colon, _, ..] if &*field.text == name && colon.is_punct(":") => {
                Some(part.start + 2..part.end)
            }
            _ => None,
        }),
        _ => None,
    }
}

/// Whether this is how a type is called, or one of its variants: `m::Both::<A, B>`.
fn is_type(tokens: &[Token]) -> bool {
    let is_path = |token: &Token| token.is_ident() && !token.is_keyword() || token.is_punct(":");
    let is_generic = |token: &Token| is_path(token) || ["<", ">", ","].iter().any(|of| token.is_punct(of));
    let names = tokens.iter().take_while(|token| !token.is_punct("<")).filter(|token| token.is_ident());
    names.last().is_some_and(|name| name.name().starts_with(char::is_uppercase))
        && tokens.iter().all(is_generic)
}

/// What commas divide.
pub(super) fn parts(tokens: &[Token], held: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let (mut depth, mut begin, end) = (0, held.start, held.end);
    let commas = held.filter(move |at| {
        depth -= depth_of(&tokens[*at]);
        depth == 0 && tokens[*at].is_punct(",")
    });
    let parts = commas.chain([end]).map(move |end| std::mem::replace(&mut begin, end + 1)..end);
    parts.filter(|part| !part.is_empty())
}
