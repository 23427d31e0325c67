//! The closure that a change of a function lies in.
//!
//! A closure is compiled as a function of its own, so a change inside it leaves the code of the function around it as it
//! is. Whoever uses this must know by other means that types and captures did not change, as raw code tells.

use super::Span;
use super::items::Entity;
use super::tokens::{Context, Token, TokenKind, flatten};
use quote::ToTokens;

/// Line and column.
type Position = (u32, u32);

/// The places of a closure's first and last tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    first: Position,
    last: Position,
    last_line: u32,
}

impl Extent {
    pub(super) fn of(closure: &syn::ExprClosure) -> Option<Self> {
        let tokens = flatten(closure.to_token_stream());
        let last = tokens.last()?;
        Some(Self { first: tokens.first()?.position(), last: last.position(), last_line: last.last_line })
    }

    pub(super) fn first_line(&self) -> u32 {
        self.first.0
    }

    pub(super) fn holds(&self, token: &Token) -> bool {
        (self.first..=self.last).contains(&token.position())
    }
}

/// How many tokens two bodies have in common at their beginnings, and how many at their ends.
fn common(old: &Entity, new: &Entity) -> (usize, usize) {
    let head = old.body.iter().zip(&new.body).take_while(|(a, b)| a == b).count();
    let left = old.body.len().min(new.body.len()) - head;
    let tail =
        old.body.iter().rev().zip(new.body.iter().rev()).take(left).take_while(|(a, b)| a == b).count();
    (head, tail)
}

/// Whether items in a body may have come or gone or changed places: the text that differs has the word of an item in it, or a macro
/// call or part of its arguments, but for macros of the standard library that make no items with a name.
pub(super) fn may_renumber(old: &Entity, new: &Entity) -> bool {
    let (head, tail) = common(old, new);
    [old, new].into_iter().any(|entity| {
        let body = &entity.body;
        let makes_items = |at: usize| {
            let token = &body[at];
            let calls = &*token.text == "!" && body.get(at + 1).is_some_and(|n| n.kind == TokenKind::Open);
            (calls && !is_nameless(&body[..at]))
                || (token.context == Context::Macro && !is_in_nameless(&body[..at]))
                || (token.is_ident() && ITEMS.contains(&token.name()))
        };
        (head..body.len() - tail).any(makes_items)
    })
}

/// Whether the macro whose name stands at the end makes no items with a name.
fn is_nameless(before: &[Token]) -> bool {
    before.last().is_some_and(|name| NAMELESS.contains(&name.name()))
}

/// The same for the macro in whose arguments these tokens end.
fn is_in_nameless(before: &[Token]) -> bool {
    // NAME ! (
    let bracket = before.iter().rposition(|token| token.context != Context::Macro);
    bracket.is_some_and(|at| is_nameless(&before[..at.saturating_sub(1)]))
}

/// Words that begin an item.
const ITEMS: &[&str] =
    &["static", "fn", "const", "mod", "struct", "enum", "union", "trait", "impl", "use", "type", "extern"];

/// Macros of the standard library whose expansion has no items with a name.
const NAMELESS: &[&str] = &[
    "assert",
    "assert_eq",
    "assert_ne",
    "debug_assert",
    "debug_assert_eq",
    "debug_assert_ne",
    "eprint",
    "eprintln",
    "format",
    "format_args",
    "matches",
    "panic",
    "print",
    "println",
    "todo",
    "unimplemented",
    "unreachable",
    "vec",
    "write",
    "writeln",
];

/// The innermost closure that all of the difference between two bodies lies in, as lines of both.
pub(super) fn around(old: &Entity, new: &Entity) -> Option<(Span, Span)> {
    let (head, tail) = common(old, new);
    let innermost = |entity: &Entity| {
        let body = &entity.body;
        let differing = &body[head..body.len() - tail];
        let holding = |extent: &Extent| match (differing.first(), differing.last()) {
            (Some(first), Some(last)) => extent.holds(first) && extent.holds(last),
            // Something is missing here: it belongs to what stands on either side.
            _ => {
                head > 0
                    && (extent.holds(&body[head - 1])
                        || body.get(head).is_some_and(|next| extent.holds(next)))
            }
        };
        // In order of their beginnings, so the last one is the innermost.
        entity.closures.iter().rposition(holding)
    };
    let both_empty = head + tail == old.body.len() && head + tail == new.body.len();
    let (was, is) = (innermost(old)?, innermost(new)?);
    let span = |entity: &Entity, extent: Extent| Span {
        file: entity.span.file.clone(),
        first_line: extent.first.0,
        last_line: extent.last_line,
    };
    (was == is && !both_empty).then(|| (span(old, old.closures[was]), span(new, new.closures[is])))
}
