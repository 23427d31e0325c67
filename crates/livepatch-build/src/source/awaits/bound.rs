//! Futures that have a name before they are awaited: `let save = store(&x); save.await`, or are a field of what has one:
//! `let both = (store(&x), load(&y)); both.0.await`.
//!
//! The name says nothing: what it was given does. So it is put in the place of the name, and so are what the names in it were given.

use super::given::{Targets, path};
use super::{AWAITING, depth_of, handed, text};
use crate::source::tokens::{Token, TokenKind};
use std::collections::BTreeSet;
use std::ops::Range;

/// How many values are put in for one name.
const MOST: usize = 64;

/// The same text, with what names were given in the places of names that are awaited, or handed to what may await them.
pub(super) fn followed(tokens: &[Token]) -> Vec<Token> {
    let targets = Targets::of(tokens);
    let names = (0..tokens.len()).map(|at| Name::at(tokens, &targets, at)).collect();
    let mut text = Vec::with_capacity(tokens.len());
    Following { tokens, names, there: BTreeSet::new() }.write(0..tokens.len(), false, &mut text);
    text
}

struct Following<'t> {
    tokens: &'t [Token],
    /// Names in whose places values are put, by where they stand.
    names: Vec<Option<Name>>,
    /// Where the values begin that are already in the one that is put in.
    there: BTreeSet<usize>,
}

impl Following<'_> {
    /// A name is given its value before the place where it stands, so this ends. A value comes once into that of another name, as a future
    /// is handed over once, and so do not more than [`MOST`]: the text stays short.
    fn write(&mut self, part: Range<usize>, is_value: bool, text: &mut Vec<Token>) {
        let mut at = part.start;
        while at < part.end {
            if !is_value {
                self.there.clear();
            }
            let name = self.names[at].clone().filter(|_| self.there.len() < MOST);
            match name.filter(|name| self.there.insert(name.value.start)) {
                Some(name) => {
                    self.write(name.value, true, text);
                    text.extend(name.field);
                    at = name.end;
                }
                None => {
                    text.push(if is_value { told(self.tokens, at) } else { self.tokens[at].clone() });
                    at += 1;
                }
            }
        }
    }
}

/// What is awaited in a value, or handed to a macro, is so where a name is given it: in the place of the name it is no more than a part of
/// the text.
fn told(tokens: &[Token], at: usize) -> Token {
    let mut token = tokens[at].clone();
    let is_macro = matches!(tokens.get(at + 1..at + 3), Some([not, open]) if not.is_punct("!") && open.kind == TokenKind::Open);
    if AWAITING.contains(&token.name()) || is_macro {
        token.kind = TokenKind::Literal;
    }
    token
}

/// A name, or a field of one, that a value can be put in the place of.
#[derive(Clone)]
struct Name {
    end: usize,
    value: Range<usize>,
    /// What of the name the value does not tell apart.
    field: Option<Token>,
}

impl Name {
    /// The one that begins at a place, if it is awaited, or handed to what may await it.
    fn at(tokens: &[Token], targets: &Targets<'_>, at: usize) -> Option<Self> {
        let end = path(tokens, at)?;
        if !is_awaited(tokens, end) && !is_handed_over(tokens, at, end) {
            return None;
        }
        let (value, field) = targets.given(at, &text(&tokens[at..end]))?;
        let mut rest = tokens[at].clone();
        rest.text = field.into();
        Some(Self { end, value, field: Some(rest).filter(|rest| !rest.text.is_empty()) })
    }
}

/// Whether what ends before a place is awaited.
fn is_awaited(tokens: &[Token], end: usize) -> bool {
    tokens.get(end).is_some_and(|token| token.is_punct("."))
        && tokens.get(end + 1).is_some_and(|token| token.name() == "await")
}

/// Whether a name is an argument of a macro or of a function that takes several futures.
fn is_handed_over(tokens: &[Token], at: usize, end: usize) -> bool {
    if !tokens.get(end).is_some_and(|next| next.is_punct(",") || next.kind == TokenKind::Close) {
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
            _ if to.is_punct("!") || handed::takes_several(to.name()) => {
                return true;
            }
            _ if bracket == "{" => return false,
            _ => depth = 0,
        }
    }
    false
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
    fn what_was_handed_over_is_not_handed_over_where_its_result_is_used() {
        let body = |[one, other]: [&str; 2], line: &str| {
            format!("let f = {one}; let g = {other}; let t = join!(f, g); {line} h(t)")
        };
        let old = body(["a()", "b()"], "");
        assert_eq!(moved(&old, &body(["a()", "b()"], "note!(t);")), None);
        assert!(moved(&old, &body(["b()", "a()"], "note!(t);")).is_some());
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

    #[test]
    fn what_a_value_is_made_of_changes_places() {
        let body = |[a, b]: [&str; 2], [c, s]: [&str; 2]| {
            format!("let c = {a}; let s = {b}; let j = join({c}, s, {s}); let k = j; let (c, s) = k.await;")
        };
        let old = body(["a()", "b()"], ["c", "s"]);
        assert!(moved(&old, &body(["a()", "b()"], ["s", "c"])).is_some());
        assert!(moved(&old, &body(["b()", "a()"], ["c", "s"])).is_some());
        assert_eq!(moved(&old, &body(["a()", "b(2)"], ["c", "s"])), None);
        let shadowing = |[a, b]: [&str; 2]| {
            format!("let f = {a}; let g = {b}; let f = join(f, x()); let f = race(f, g); f.await")
        };
        assert!(moved(&shadowing(["a()", "b()"]), &shadowing(["b()", "a()"])).is_some());
        assert_eq!(moved(&shadowing(["a()", "b()"]), &shadowing(["a()", "c()"])), None);
    }

    #[test]
    fn values_do_not_multiply() {
        let doubled: String = (0..64).map(|_| "let f = join(f, f);").collect();
        let body = |first: &str| format!("let f = {first}; {doubled} f.await");
        assert_eq!(moved(&body("a()"), &body("b()")), None);
        let many: String = (1..512).map(|at| format!("let f{at} = join(f{}, g);", at - 1)).collect();
        let body = |first: &str| format!("let f0 = {first}; {many} f511.await");
        assert_eq!(moved(&body("a()"), &body("b()")), None);
    }

    #[test]
    fn fields_change_places() {
        for (made, awaited) in [
            ("let p = P { a: 1, b: 2 };", "p.a.await; p.b.await"),
            ("let p = m::P::<A, B> { b: 2, a: 1, ..x };", "p.a.await; p.b.await"),
            ("let a = 1; let b = 2; let p = P { a, b };", "p.a.await; p.b.await"),
            ("let a = 1; let b = 2; let p = P { x: a, y: b };", "p.x.await; p.y.await"),
            ("let p: (F, F) = (1, 2);", "p.0.await; p.1.await"),
            ("let p = P(1, 2,);", "p.0.await; p.1.await"),
            ("let mut p = (0, (1, P { a: 2 }));", "p.1.0.await; p.1.1.a.await"),
            ("let p = (1, 2); let q = p;", "q.0.await; q.1.await"),
            ("let q = (1, 2); let p = P { q };", "p.q.0.await; p.q.1.await"),
            ("let mut p = P::new(); p.a = 1; p.b = 2;", "p.a.await; p.b.await"),
            ("let p = made(1, 2);", "p.0.await; p.1.await"),
            ("let (a, b) = (1, 2);", "a.await; b.await"),
            ("let [a, mut b]: Both = [1, 2];", "join(a, b).await"),
            ("let p = (1, 2); let (a, b) = p;", "join!(a, b)"),
            ("let p = (1, 2);", "join!(p.0, p.1)"),
            ("let p = (1, 2);", "join(p.0, p.1).await"),
            ("let p = (1, 2);", "let j = join(p.0, p.1); j.await"),
        ] {
            let body =
                |[one, other]: [&str; 2]| format!("{} {awaited}", made.replace('1', one).replace('2', other));
            let swapped =
                moved(&body(["Box::pin(a())", "Box::pin(b())"]), &body(["Box::pin(b())", "Box::pin(a())"]));
            assert!(swapped.is_some(), "{made}");
            assert_eq!(moved(&body(["a()", "b()"]), &body(["a()", "c()"])), None, "{made}");
        }
    }

    #[test]
    fn fields_are_named_in_any_order() {
        let awaited = "p.a.await; p.b.await";
        let made = |fields: &str| format!("let p = P {{ {fields} }}; {awaited}");
        assert_eq!(moved(&made("a: x(), b: y(), c: z()"), &made("c: z(), b: y(), a: x()")), None);
        let set = |made: &str| format!("let mut p = P::new(); {made} {awaited}");
        assert_eq!(moved(&set("p.a = x(); p.b = y();"), &set("p.b = y(); p.a = x();")), None);
    }
}
