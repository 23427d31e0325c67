//! Futures that are handed to a macro or function which awaits them: `join!(a(), b())`, `join(a(), b()).await`.
//!
//! In the suspended future each has its place in a list. Where two are of one type, nothing but the source tells that they changed
//! places: the result of the one would be taken for that of the other.

use super::operands::begins_another;
use super::{closing, depth_of, opening, start, text};
use crate::source::tokens::{Token, TokenKind};
use livepatch_patch::{in_other_order, in_other_place};
use std::collections::BTreeMap;

/// Macros of the standard library that await nothing and take no text.
const AWAIT_NOTHING: [&str; 6] = ["assert", "debug_assert", "dbg", "matches", "thread_local", "vec"];

/// Macros of the standard library that make a text of what they are given.
const MAKE_TEXT: [&str; 12] = [
    "eprint",
    "eprintln",
    "format",
    "format_args",
    "panic",
    "print",
    "println",
    "todo",
    "unimplemented",
    "unreachable",
    "write",
    "writeln",
];

/// Functions of this name, or a longer one that begins so, take several futures.
const TAKE_SEVERAL: [&str; 6] = ["join", "try_join", "select", "race", "zip", "merge"];

pub(super) fn takes_several(name: &str) -> bool {
    TAKE_SEVERAL.iter().any(|known| name.starts_with(known))
}

/// What a macro is given in another place than before, if something is that may be a future.
pub(super) fn moved(old: &[Token], new: &[Token]) -> Option<String> {
    moved_in_calls(lists(macros(old)), lists(macros(new)))
}

/// The same of functions that take several futures.
pub(super) fn moved_to_functions(old: &[Token], new: &[Token]) -> Option<String> {
    moved_in_calls(lists(functions(old)), lists(functions(new)))
}

/// What calls are given, in order, by what is called.
type Lists<'t> = BTreeMap<&'t str, Vec<Vec<String>>>;

fn lists<'t>(calls: impl Iterator<Item = (&'t str, Vec<String>)>) -> Lists<'t> {
    let mut lists = Lists::new();
    calls.for_each(|(name, given)| lists.entry(name).or_default().push(given));
    lists
}

fn moved_in_calls(before: Lists<'_>, after: Lists<'_>) -> Option<String> {
    before.iter().find_map(|(to, old)| moved_in_lists(old, after.get(to)?))
}

/// Calls of functions that take several futures: the name, and what they are given, be it in a list or as what a method is called on.
fn functions(tokens: &[Token]) -> impl Iterator<Item = (&str, Vec<String>)> {
    let calls = tokens.windows(2).enumerate();
    let calls = calls.filter(|(_, of)| of[0].is_ident() && takes_several(of[0].name()) && opens(&of[1], "("));
    calls.map(|(at, of)| {
        let on = at.checked_sub(1).filter(|dot| tokens[*dot].is_punct("."));
        let on = on.map(|dot| text(&tokens[start(tokens, dot)..dot]));
        let mut given = parts(held(tokens, at + 1));
        if let [one] = given[..] {
            given = list(one).unwrap_or(given);
        }
        (of[0].name(), on.into_iter().chain(given.into_iter().map(text)).collect())
    })
}

/// What is in an argument that is a list or a tuple.
fn list(part: &[Token]) -> Option<Vec<&[Token]>> {
    let close = part.len().checked_sub(1).filter(|last| part[*last].kind == TokenKind::Close)?;
    let open = opening(part, close);
    (opens(&part[open], "[") || open == 0).then(|| parts(held(part, open)))
}

/// What macros may await, in order.
pub(in crate::source) fn to_macros(tokens: &[Token]) -> Vec<String> {
    let each = macros(tokens)
        .flat_map(|(name, held)| held.into_iter().map(move |future| format!("{name}!({future})")));
    each.collect()
}

/// Arguments in an expression that are calls themselves, and so may be futures.
pub(super) fn calls(expression: &[Token]) -> Vec<&[Token]> {
    let calls = |part: &&[Token]| part.windows(2).any(|pair| pair[0].is_ident() && opens(&pair[1], "("));
    groups(expression).flat_map(parts).filter(calls).collect()
}

fn moved_in_lists(old: &[Vec<String>], new: &[Vec<String>]) -> Option<String> {
    let pairs = old.iter().zip(new).filter(|_| old.len() == new.len());
    let in_one = || pairs.clone().find_map(|(old, new)| in_other_place(old, new).cloned());
    // What one call of the macro was given another one may be given now.
    in_other_order(&old.concat(), &new.concat()).cloned().or_else(in_one)
}

/// Calls of macros that may await something: the name, and what they are given.
fn macros(tokens: &[Token]) -> impl Iterator<Item = (&str, Vec<String>)> {
    let calls = tokens.windows(3).enumerate();
    let calls =
        calls.filter(|(_, of)| of[0].is_ident() && of[1].is_punct("!") && of[2].kind == TokenKind::Open);
    let calls = calls.map(|(at, of)| (of[0].name(), parts(held(tokens, at + 2))));
    // What has a text among its arguments makes a longer one of it.
    let may = |(name, parts): &(&str, Vec<&[Token]>)| {
        !AWAIT_NOTHING.contains(name) && !parts.iter().any(|part| is_text(part))
    };
    calls.filter(may).map(|(name, parts)| (name, parts.into_iter().map(text).collect()))
}

/// Whether a bracket holds what a macro makes a text of.
pub(super) fn makes_text(tokens: &[Token], open: usize) -> bool {
    matches!(&tokens[..open], [.., name, not] if not.is_punct("!") && MAKE_TEXT.contains(&name.name()))
}

/// What each bracket holds that may hold futures, also those in others.
fn groups(tokens: &[Token]) -> impl Iterator<Item = &[Token]> {
    let opening = tokens.iter().enumerate().filter(|(_, token)| token.kind == TokenKind::Open);
    let opening = opening.filter(|(open, _)| !makes_text(tokens, *open));
    opening.map(|(at, _)| held(tokens, at))
}

/// What is in the bracket that opens at a place.
fn held(tokens: &[Token], open: usize) -> &[Token] {
    tokens.get(open + 1..closing(tokens, open)).unwrap_or_default()
}

/// What a bracket holds, taken apart at what divides arguments and branches, without patterns (`pattern = future => {}`) and blocks.
fn parts(held: &[Token]) -> Vec<&[Token]> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0, 0);
    let mut end =
        |begin: usize, end: usize| parts.extend(held.get(begin..end).filter(|part| !part.is_empty()));
    for (at, token) in held.iter().enumerate() {
        depth -= depth_of(token);
        let is_alone = |c: &str| token.is_punct(c) && !(at > 0 && held[at - 1].is_joint());
        let closes_block = || {
            let is_brace = token.kind == TokenKind::Close && &*token.text == "}";
            // A block that is a future is what is handed over.
            is_brace && !begins_another(held, opening(held, at))
        };
        if depth != 0 {
            continue;
        }
        let is_arrow = |at: usize| held.get(at).is_some_and(|token| token.is_punct(">"));
        if is_alone("=") && !is_arrow(at + 1) && !token.is_joint() || closes_block() {
            begin = at + 1;
        } else if token.is_punct(",") || token.is_punct(";") || is_alone("=") && is_arrow(at + 1) {
            end(begin, at);
            begin = at + 1 + usize::from(is_arrow(at + 1));
        }
    }
    end(begin, held.len());
    parts
}

fn opens(token: &Token, bracket: &str) -> bool {
    token.kind == TokenKind::Open && &*token.text == bracket
}

fn is_text(part: &[Token]) -> bool {
    matches!(part, [token] if token.kind == TokenKind::Literal && token.text.ends_with(['"', '#']))
}

#[cfg(test)]
mod tests {
    use super::super::moved_in_text as moved;
    use crate::source::tokens::flatten;

    #[test]
    fn what_macros_are_given_changes_places() {
        assert_eq!(moved("join!(a(1), b(2))", "join!(b(2), a(1))").as_deref(), Some("a(1)"));
        assert_eq!(moved("join!(a, b)", "join!(b, a)").as_deref(), Some("a"));
        assert_eq!(moved("join!(a, b)", "join!(c, a)").as_deref(), Some("a"));
        assert_eq!(moved("join!(a(1), b(2))", "join!(a(2), b(2))"), None);
        assert_eq!(moved("join!(a, b)", "join!(x, y); join!(a, b)"), None);
        assert_eq!(moved("join!(a, b)", "join!(x, y); join!(b, a)").as_deref(), Some("a"));
    }

    #[test]
    fn calls_of_a_macro_change_places() {
        assert_eq!(moved("wait!(a()); wait!(b());", "wait!(b()); wait!(a());").as_deref(), Some("a()"));
        assert_eq!(moved("wait!(a()); wait!(b());", "wait!(a()); wait!(c());"), None);
    }

    #[test]
    fn branches_change_places() {
        let select = |branches: [&str; 2]| format!("select! {{ {} {} }}", branches[0], branches[1]);
        let (one, other) = ("x = a() => { f(x, y) }", "y = b() => g(y),");
        assert_eq!(moved(&select([one, other]), &select([other, one])).as_deref(), Some("a()"));
        assert_eq!(
            moved(&select([one, other]), &select(["z = a() => { f(y, x) }", "y = b() => h(y),"])),
            None
        );
    }

    #[test]
    fn what_functions_are_given_changes_places() {
        assert_eq!(moved("join(a(), b()).await", "join(b(), a()).await").as_deref(), Some("join(a(),b())"));
        let all = |[a, b]: [&str; 2]| format!("join_all(vec![fetch({a}), fetch({b})]).await");
        assert!(moved(&all(["1", "2"]), &all(["2", "1"])).is_some());
        assert_eq!(moved("transfer(to, from).await", "transfer(from, to).await"), None);
    }

    #[test]
    fn what_a_future_is_made_of_changes_places() {
        let moved = |form: &str| {
            let body = |[a, b]: [&str; 2]| flatten(form.replace('1', a).replace('2', b).parse().unwrap());
            super::super::moved_in_result(&body(["a()", "b()"]), &body(["b()", "a()"]))
        };
        for form in [
            "join(1, 2).map(f)",
            "Box::pin(join_all(vec![1, 2]).map(f))",
            "let first = 1; let second = 2; join(first, second).map(f)",
            "1.join(2).map(f)",
            "select_all([1, 2])",
        ] {
            assert_eq!(moved(form).as_deref(), Some("a()"), "{form}");
        }
        assert_eq!(moved("log(1, 2); join(x(), y())"), None);
    }

    #[test]
    fn what_makes_texts_awaits_nothing() {
        for name in ["println", "tracing::info", "anyhow::bail"] {
            let call = |[a, b]: [&str; 2]| format!("{name}!(\"{{}} {{}}\", {a}(), {b})");
            assert_eq!(moved(&call(["a", "b"]), &call(["b", "a"])), None);
        }
        assert_eq!(moved("let x = vec![a, b];", "let x = vec![b, a];"), None);
        let sent = |[a, b]: [&str; 2]| format!("send(format!(\"{{}} {{}}\", {a}(), {b}())).await");
        assert_eq!(moved(&sent(["a", "b"]), &sent(["b", "a"])), None);
    }
}
