//! An item that has a body or a value, taken apart.

use super::ItemKind;
use super::anonymous::Counted;
use super::closures::Extent;
use super::tokens::{Token, flatten};
use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ImplItem, Item, TraitItem, UseTree};

/// Items in a body.
#[derive(Default)]
pub(super) struct Nested {
    pub entities: Vec<Item>,
    pub imports: Vec<UseTree>,
    pub other: Vec<Token>,
    pub leaks: bool,
    /// Closures, each before those in it.
    pub closures: Vec<Extent>,
}

impl<'ast> Visit<'ast> for Nested {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Fn(_) | Item::Const(_) | Item::Static(_) => return self.entities.push(item.clone()),
            Item::Use(import) => self.imports.push(import.tree.clone()),
            Item::Impl(_) | Item::Trait(_) | Item::Mod(_) | Item::ForeignMod(_) => self.leaks = true,
            _ => {}
        }
        self.other.extend(flatten(item.to_token_stream()));
    }

    fn visit_expr_closure(&mut self, closure: &'ast syn::ExprClosure) {
        self.closures.extend(Extent::of(closure));
        visit::visit_expr_closure(self, closure);
    }
}

/// The parts of an item that has a body or a value.
pub(super) struct PartsOf<'a> {
    /// Its identifier, without `r#`.
    pub name: String,
    pub kind: ItemKind,
    pub attrs: &'a [Attribute],
    /// All of the item but its body or value.
    pub header: TokenStream,
    /// The same without documentation.
    pub undocumented: TokenStream,
    pub body: TokenStream,
    is_async: bool,
    inner: Inner<'a>,
}

enum Inner<'a> {
    Block(&'a syn::Block),
    Value(&'a Expr),
}

impl PartsOf<'_> {
    pub(super) fn walk(&self, nested: &mut Nested) {
        match self.inner {
            Inner::Block(block) => visit::visit_block(nested, block),
            Inner::Value(value) => nested.visit_expr(value),
        }
    }

    /// Closures and async blocks, as the compiler counts them.
    pub(super) fn counted(&self) -> Counted {
        let mut counted = Counted::default();
        match self.inner {
            Inner::Block(block) if self.is_async => counted.body(block),
            Inner::Block(block) => visit::visit_block(&mut counted, block),
            Inner::Value(value) => counted.visit_expr(value),
        }
        counted
    }
}

pub(super) trait Parts: ToTokens {
    fn parts(&self) -> PartsOf<'_>;
}

fn no_value() -> Expr {
    Expr::Verbatim(TokenStream::new())
}

macro_rules! function {
    ($item:expr, $block:ident, $set:expr) => {{
        let mut empty = $item.clone();
        $set(&mut empty);
        let header = empty.to_token_stream();
        empty.attrs.retain(|attr| !attr.path().is_ident("doc"));
        PartsOf {
            name: plain(&$item.sig.ident),
            kind: ItemKind::Fn,
            attrs: &$item.attrs,
            header,
            undocumented: empty.to_token_stream(),
            body: $block.to_token_stream(),
            is_async: $item.sig.asyncness.is_some(),
            inner: Inner::Block($block),
        }
    }};
}

macro_rules! value {
    ($item:expr, $kind:expr, $value:expr, $set:expr) => {{
        let mut empty = $item.clone();
        $set(&mut empty);
        let header = empty.to_token_stream();
        empty.attrs.retain(|attr| !attr.path().is_ident("doc"));
        PartsOf {
            name: plain(&$item.ident),
            kind: $kind,
            attrs: &$item.attrs,
            header,
            undocumented: empty.to_token_stream(),
            body: $value.to_token_stream(),
            is_async: false,
            inner: Inner::Value($value),
        }
    }};
}

impl Parts for Item {
    fn parts(&self) -> PartsOf<'_> {
        match self {
            Item::Fn(item) => {
                let block = &*item.block;
                function!(item, block, |empty: &mut syn::ItemFn| empty.block.stmts.clear())
            }
            Item::Const(item) => value!(item, ItemKind::Const, &*item.expr, |empty: &mut syn::ItemConst| {
                *empty.expr = no_value();
            }),
            Item::Static(item) => {
                value!(item, ItemKind::Static, &*item.expr, |empty: &mut syn::ItemStatic| {
                    *empty.expr = no_value();
                })
            }
            _ => unreachable!("only items with a body or a value are taken apart"),
        }
    }
}

impl Parts for ImplItem {
    fn parts(&self) -> PartsOf<'_> {
        match self {
            ImplItem::Fn(item) => {
                let block = &item.block;
                function!(item, block, |empty: &mut syn::ImplItemFn| empty.block.stmts.clear())
            }
            ImplItem::Const(item) => {
                value!(item, ItemKind::Const, &item.expr, |empty: &mut syn::ImplItemConst| {
                    empty.expr = no_value();
                })
            }
            _ => unreachable!("only items with a body or a value are taken apart"),
        }
    }
}

impl Parts for TraitItem {
    fn parts(&self) -> PartsOf<'_> {
        match self {
            TraitItem::Fn(syn::TraitItemFn { default: Some(block), .. }) => {
                let TraitItem::Fn(item) = self else { unreachable!("it was one") };
                function!(item, block, |empty: &mut syn::TraitItemFn| {
                    empty.default.iter_mut().for_each(|block| block.stmts.clear());
                })
            }
            TraitItem::Const(syn::TraitItemConst { default: Some((_, value)), .. }) => {
                let TraitItem::Const(item) = self else { unreachable!("it was one") };
                value!(item, ItemKind::Const, value, |empty: &mut syn::TraitItemConst| {
                    empty.default.iter_mut().for_each(|(_, value)| *value = no_value());
                })
            }
            _ => unreachable!("only items with a body or a value are taken apart"),
        }
    }
}

/// The name of an identifier: `r#name` and `name` are the same.
pub(super) fn plain(ident: &syn::Ident) -> String {
    let text = ident.to_string();
    text.strip_prefix("r#").map(str::to_owned).unwrap_or(text)
}
