//! Source text as a flat list of tokens that can be compared.
//!
//! Comments and white space are gone. Two of their traces stay, because a program can see them: whether two punctuation
//! characters touch (`&&`), and, inside macro calls and attributes, whether any two tokens touch (`stringify!`).

use proc_macro2::{Delimiter, LineColumn, Spacing, Span, TokenStream, TokenTree};

/// One token. Equality is that of meaning: the place is not part of it.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub text: Box<str>,
    pub kind: TokenKind,
    pub context: Context,
    /// Whether it touches the token before it.
    glued: bool,
    /// First line, from 1.
    pub first_line: u32,
    /// Column in it.
    column: u32,
    /// Last line; differs from `first_line` only for literals.
    pub last_line: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Ident,
    /// `true` if another punctuation character follows at once.
    Punct(bool),
    Literal,
    Open,
    Close,
}

/// Where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Context {
    Code,
    /// In the arguments of a macro, whose meaning only the macro knows.
    Macro,
    Attribute,
    /// In a documentation comment or attribute.
    Doc,
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        let seen = matches!(self.context, Context::Macro | Context::Attribute);
        self.kind == other.kind
            && self.text == other.text
            && self.context == other.context
            && (!seen || self.glued == other.glued)
    }
}

impl Eq for Token {}

impl Token {
    /// Line and column of its first character.
    pub(super) fn position(&self) -> (u32, u32) {
        (self.first_line, self.column)
    }

    pub(super) fn is_ident(&self) -> bool {
        self.kind == TokenKind::Ident
    }

    pub(super) fn is_punct(&self, c: &str) -> bool {
        matches!(self.kind, TokenKind::Punct(_)) && &*self.text == c
    }

    pub(super) fn is_joint(&self) -> bool {
        self.kind == TokenKind::Punct(true)
    }

    /// The name of an identifier: `r#name` and `name` are the same.
    pub(super) fn name(&self) -> &str {
        self.text.strip_prefix("r#").unwrap_or(&self.text)
    }

    /// Whether it is a word that names nothing: `fn`, but not `r#fn`.
    pub(super) fn is_keyword(&self) -> bool {
        self.is_ident() && KEYWORDS.contains(&&*self.text)
    }
}

/// Words that are identifiers only as raw ones, in every edition: the others may be names.
const KEYWORDS: [&str; 43] = [
    "abstract", "as", "become", "box", "break", "const", "continue", "do", "else", "enum", "extern", "false",
    "final", "fn", "for", "if", "impl", "in", "let", "loop", "macro", "match", "mod", "move", "mut",
    "override", "priv", "pub", "ref", "return", "static", "struct", "trait", "true", "type", "typeof",
    "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
];

/// The tokens of a stream in order.
pub(super) fn flatten(stream: TokenStream) -> Vec<Token> {
    let mut flat = Flat { tokens: Vec::new(), end: None };
    flat.stream(stream, Context::Code);
    flat.tokens
}

struct Flat {
    tokens: Vec<Token>,
    end: Option<LineColumn>,
}

impl Flat {
    fn stream(&mut self, stream: TokenStream, context: Context) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        for (at, tree) in trees.iter().enumerate() {
            match tree {
                TokenTree::Group(group) => {
                    let inner = inner_context(&trees[..at], group.stream(), context);
                    let (open, close) = brackets(group.delimiter());
                    self.push(open, TokenKind::Open, context, group.span_open());
                    if inner != context {
                        // Space between a call's bracket and its arguments is not part of them.
                        self.end = None;
                    }
                    self.stream(group.stream(), inner);
                    self.push(close, TokenKind::Close, context, group.span_close());
                }
                TokenTree::Ident(ident) => {
                    self.push(&ident.to_string(), TokenKind::Ident, context, ident.span())
                }
                TokenTree::Punct(punct) => {
                    let joint = punct.spacing() == Spacing::Joint;
                    self.push(&punct.as_char().to_string(), TokenKind::Punct(joint), context, punct.span());
                }
                TokenTree::Literal(literal) => {
                    self.push(&literal.to_string(), TokenKind::Literal, context, literal.span());
                }
            }
        }
    }

    fn push(&mut self, text: &str, kind: TokenKind, context: Context, span: Span) {
        let (start, end) = (span.start(), span.end());
        self.tokens.push(Token {
            text: text.into(),
            kind,
            context,
            glued: self.end == Some(start),
            first_line: start.line as u32,
            column: start.column as u32,
            last_line: end.line as u32,
        });
        self.end = Some(end);
    }
}

fn brackets(delimiter: Delimiter) -> (&'static str, &'static str) {
    match delimiter {
        Delimiter::Parenthesis => ("(", ")"),
        Delimiter::Brace => ("{", "}"),
        Delimiter::Bracket => ("[", "]"),
        Delimiter::None => ("", ""),
    }
}

/// What a group is, from what stands before it: `name!(…)`, `macro_rules! name {…}`, `#[…]`, `#![…]`.
fn inner_context(before: &[TokenTree], content: TokenStream, outer: Context) -> Context {
    if outer != Context::Code {
        return outer;
    }
    let punct = |back: usize| match before.len().checked_sub(back).map(|at| &before[at]) {
        Some(TokenTree::Punct(punct)) => punct.as_char(),
        _ => '\0',
    };
    let ident = |back: usize| {
        before.len().checked_sub(back).is_some_and(|at| matches!(before[at], TokenTree::Ident(_)))
    };
    let attribute = punct(1) == '#' || (punct(1) == '!' && punct(2) == '#');
    if attribute {
        let doc = matches!(content.into_iter().next(), Some(TokenTree::Ident(ident)) if ident == "doc");
        return if doc { Context::Doc } else { Context::Attribute };
    }
    let called = punct(1) == '!' && ident(2);
    let defined = ident(1) && punct(2) == '!' && ident(3);
    if called || defined { Context::Macro } else { outer }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        flatten(text.parse().unwrap())
    }

    #[test]
    fn white_space_and_comments_do_not_count() {
        assert_eq!(tokens("fn a() { b(1+2) } // x"), tokens("fn a ( )\n{ /* y */ b( 1 + 2 ) }"));
        assert_ne!(tokens("fn a() { b(1+2) }"), tokens("fn a() { b(1+3) }"));
    }

    #[test]
    fn what_a_program_can_see_counts() {
        assert_ne!(tokens("a && b"), tokens("a & & b"));
        assert_ne!(tokens("stringify!(a+b)"), tokens("stringify!(a + b)"));
        assert_eq!(tokens("stringify!(a + b)"), tokens("stringify!(\n    a  +\n b)"));
        assert_ne!(tokens("/// one\nfn a() {}"), tokens("/// two\nfn a() {}"));
    }

    #[test]
    fn contexts() {
        let context = |text: &str| {
            tokens(text).into_iter().find(|token| &*token.text == "x").map(|token| token.context)
        };
        assert_eq!(context("f!(x)"), Some(Context::Macro));
        assert_eq!(context("macro_rules! f { x }"), Some(Context::Macro));
        assert_eq!(context("a != (x)"), Some(Context::Code));
        assert_eq!(context("#![a(x)]"), Some(Context::Attribute));
        assert_eq!(context("#[doc(x)]"), Some(Context::Doc));
    }
}
