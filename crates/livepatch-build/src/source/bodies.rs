//! What the source tells of functions that symbols and debug information do not: the order in which they await, and how they are
//! called besides their types.
//!
//! It is told of every function in a changed file, whatever else changed there.

use super::items::{Entity, parse};
use super::pieces::text;
use super::tokens::{Token, TokenKind};
use super::{Counted, ItemKind, SourceSet, Span, awaits};
use livepatch_patch::Await;
use std::collections::HashMap;

/// A function, constant or static of the new source, in a file that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// Its identifier.
    pub name: String,
    /// For messages.
    pub path: String,
    /// Where it is.
    pub span: Span,
    /// What it awaits at another point in the order than the old one, if anything.
    pub moved_await: Option<String>,
    /// All of it.
    pub text: String,
    /// The expressions that it awaits, in order.
    pub awaits: Vec<Await>,
    /// What macros are given that may await it, and what is kept at awaits without a name, in order.
    pub unnamed: Vec<String>,
    /// The closures and async blocks in it, as the compiler counts them, if that is known.
    pub anonymous: Option<Counted>,
    /// What its header says of how it is called.
    pub calling: String,
    /// What the old one's said, if there is an old one.
    pub was_calling: Option<String>,
}

type Place<'e> = (&'e str, &'e str, bool);

/// What of the new source is in files that changed; `None` if one of these cannot be read.
pub(super) fn between(old: &SourceSet, new: &SourceSet) -> Option<Vec<Body>> {
    let (was, is) = (functions(old, new)?, functions(new, old)?);
    let mut olds = by_place(&was);
    let mut bodies = Vec::new();
    for (place, news) in by_place(&is) {
        let before = olds.remove(&place).unwrap_or_default();
        let is_aligned = before.len() == news.len();
        for (at, new) in news.into_iter().enumerate() {
            // Of several in one place conditional compilation chooses one.
            let old = before.get(at).copied().filter(|_| is_aligned);
            let (awaits, unnamed) = awaits::awaited(&new.body);
            bodies.push(Body {
                name: new.name.clone(),
                path: new.path.clone(),
                span: new.span.clone(),
                moved_await: old.and_then(|old| moved_await(old, new)),
                text: text(&new.body),
                awaits,
                unnamed,
                anonymous: new.anonymous.clone(),
                calling: calling(&new.header),
                was_calling: old.map(|old| calling(&old.header)),
            });
        }
    }
    bodies.sort_by(|a, b| (&a.path, a.span.first_line).cmp(&(&b.path, b.span.first_line)));
    Some(bodies)
}

/// Functions and values in the files of one set that the other has not, or has with other contents.
fn functions(one: &SourceSet, other: &SourceSet) -> Option<Vec<Entity>> {
    let mut functions = Vec::new();
    for file in one.rust_files_unlike(other) {
        let entities = parse(file, one.test).ok()?.entities;
        let has_body =
            |entity: &Entity| matches!(entity.kind, ItemKind::Fn | ItemKind::Const | ItemKind::Static);
        functions.extend(entities.into_iter().filter(has_body));
    }
    Some(functions)
}

fn by_place(functions: &[Entity]) -> HashMap<Place<'_>, Vec<&Entity>> {
    let mut places: HashMap<_, Vec<&Entity>> = HashMap::new();
    for entity in functions {
        places.entry((&*entity.container, &*entity.name, entity.nested)).or_default().push(entity);
    }
    places
}

fn moved_await(old: &Entity, new: &Entity) -> Option<String> {
    let awaited = || is_async(new).then(|| awaits::moved(&old.body, &new.body)).flatten();
    awaited().or_else(|| makes_future(new).then(|| awaits::moved_in_result(&old.body, &new.body)).flatten())
}

/// Whether a function says that it returns what is awaited: `impl Future`, `BoxStream`.
fn makes_future(function: &Entity) -> bool {
    function
        .header
        .iter()
        .any(|token| token.is_ident() && ["Future", "Stream"].iter().any(|of| token.name().ends_with(of)))
}

/// Whether a function awaits, or has blocks that do.
fn is_async(function: &Entity) -> bool {
    let mut tokens = function.header.iter().chain(&function.body);
    tokens.any(|token| matches!(token.name(), "async" | "await" | "yield"))
}

/// The calling convention that a function's header names, and whether it takes the place of its caller as a further argument.
fn calling(header: &[Token]) -> String {
    let external = header.iter().position(|token| token.name() == "extern").map(|at| {
        let name = header.get(at + 1).filter(|token| token.kind == TokenKind::Literal);
        format!("extern {}", name.map_or("\"C\"", |name| &*name.text))
    });
    let tracks = header.iter().any(|token| token.name() == "track_caller");
    let words = external.into_iter().chain(tracks.then(|| "#[track_caller]".to_owned()));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::SourceFile;
    use super::*;

    fn bodies(old: &str, new: &str) -> Vec<Body> {
        let set = |text: &str| SourceSet::new([SourceFile::new("src/main.rs", text)]);
        between(&set(old), &set(new)).expect("it is Rust")
    }

    #[test]
    fn how_functions_are_called_is_told_whatever_else_changed() {
        let found = bodies("fn f(x: u8) {}", "struct S; extern \"C\" fn f(x: u8) {}");
        assert_eq!(
            [found[0].was_calling.as_deref(), Some(&*found[0].calling)],
            [Some(""), Some("extern \"C\"")]
        );
        let found = bodies("extern fn f() {}", "#[track_caller] fn f() {}");
        assert_eq!(
            [found[0].was_calling.as_deref(), Some(&*found[0].calling)],
            [Some("extern \"C\""), Some("#[track_caller]")]
        );
    }

    #[test]
    fn awaits_are_compared_whatever_else_changed() {
        let found = bodies(
            "async fn f() { a().await; b().await }",
            "struct S; async fn f() { b().await; a().await }",
        );
        assert_eq!(found[0].moved_await.as_deref(), Some("a()"));
        let found = bodies(
            "async fn f() { a().await; b().await }",
            "macro_rules! m { () => {} } async fn f() { b().await; a().await }",
        );
        assert_eq!(found[0].moved_await.as_deref(), Some("a()"));
    }
}
