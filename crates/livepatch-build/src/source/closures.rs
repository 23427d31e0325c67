//! The closure that a change of a function lies in.
//!
//! A closure is compiled as a function of its own, so a change inside it leaves the code of the function around it as it
//! is. Whoever uses this must know by other means that types and captures did not change, as raw code tells.

use super::Span;
use super::items::Entity;
use super::tokens::{Token, flatten};
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

    fn holds(&self, token: &Token) -> bool {
        (self.first..=self.last).contains(&token.position())
    }
}

/// The innermost closure that all of the difference between two bodies lies in, as lines of both.
pub(super) fn around(old: &Entity, new: &Entity) -> Option<(Span, Span)> {
    let head = old.body.iter().zip(&new.body).take_while(|(a, b)| a == b).count();
    let left = old.body.len().min(new.body.len()) - head;
    let tail =
        old.body.iter().rev().zip(new.body.iter().rev()).take(left).take_while(|(a, b)| a == b).count();
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
