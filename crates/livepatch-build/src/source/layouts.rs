//! Types that are declared otherwise than before.
//!
//! Layouts are compared by debug information, which describes a type if a variable, an argument or a field has it. One that is only named in
//! casts (the target of a C user-data pointer, an enum that is stored as a number) it does not know; the source does.

use super::tokens::flatten;
use super::{SourceFile, SourceSet, Span};
use quote::ToTokens;
use std::collections::BTreeMap;
use syn::visit::Visit;

/// A struct, enum or union that both sources have, with other contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedType {
    /// Its identifier.
    pub name: String,
    /// Modules within the file, functions that it stands in, and name.
    pub path: String,
    /// Where the new source has it.
    pub span: Span,
}

/// Finds them in files that both sets have. What cannot be parsed has none.
pub(super) fn between(old: &SourceSet, new: &SourceSet) -> Vec<ChangedType> {
    let before: BTreeMap<&str, &SourceFile> = old.files.iter().map(|file| (&*file.path, file)).collect();
    let mut changed = Vec::new();
    for file in new.files.iter().filter(|file| file.is_rust()) {
        let Some(was) = before.get(&*file.path).filter(|was| was.bytes != file.bytes) else { continue };
        let (olds, news) = (declared(was), declared(file));
        for ((path, at), (is, lines)) in news {
            let Some((was, _)) = olds.get(&(path.clone(), at)) else { continue };
            if !is.continues(was) {
                let (first_line, last_line) = lines;
                let name = path.rsplit("::").next().unwrap_or_default().to_owned();
                let span = Span { file: file.path.clone(), first_line, last_line };
                changed.push(ChangedType { name, path, span });
            }
        }
    }
    changed
}

/// What a type is made of.
#[derive(PartialEq, Eq)]
struct Contents {
    /// Its representation, generic parameters and fields, without attributes and visibility.
    tokens: Vec<String>,
    /// Variants of an enum that has no fields.
    plain_variants: Option<Vec<String>>,
}

impl Contents {
    /// Whether whoever knows the old one only reads the new one rightly: variants without fields may come behind the others.
    fn continues(&self, old: &Self) -> bool {
        self == old
            || match (&old.plain_variants, &self.plain_variants) {
                (Some(old_variants), Some(variants)) => {
                    variants.starts_with(old_variants) && old.tokens[0] == self.tokens[0]
                }
                _ => false,
            }
    }
}

type Lines = (u32, u32);

/// The types of a file by path, and by their order among those of one path.
fn declared(file: &SourceFile) -> BTreeMap<(String, usize), (Contents, Lines)> {
    let text = std::str::from_utf8(&file.bytes).unwrap_or_default();
    let parsed = syn::parse_file(text);
    let mut declarations = Declarations::default();
    if let Ok(parsed) = &parsed {
        declarations.visit_file(parsed);
    }
    proc_macro2::extra::invalidate_current_thread_spans();
    declarations.found
}

#[derive(Default)]
struct Declarations {
    scope: Vec<String>,
    found: BTreeMap<(String, usize), (Contents, Lines)>,
}

impl Declarations {
    fn add(&mut self, item: &impl ToTokens, name: &syn::Ident, contents: Contents) {
        let path = self.scope.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>().join("::");
        let at = (0..).find(|at| !self.found.contains_key(&(path.clone(), *at))).unwrap_or_default();
        let lines = super::pieces::lines(&flatten(item.to_token_stream()));
        self.found.insert((path, at), (contents, lines));
    }

    fn within(&mut self, name: &syn::Ident, visit: impl FnOnce(&mut Self)) {
        self.scope.push(name.to_string());
        visit(self);
        self.scope.pop();
    }
}

impl<'ast> Visit<'ast> for Declarations {
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        let fields = item.fields.iter().map(field);
        self.add(item, &item.ident, contents(&item.attrs, &item.generics, fields));
    }

    fn visit_item_union(&mut self, item: &'ast syn::ItemUnion) {
        let fields = item.fields.named.iter().map(field);
        self.add(item, &item.ident, contents(&item.attrs, &item.generics, fields));
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        let variant = |variant: &syn::Variant| {
            let number = variant.discriminant.as_ref().map(|(_, number)| spelled(number));
            let fields: Vec<String> = variant.fields.iter().map(field).collect();
            format!("{} {{ {} }} {}", variant.ident, fields.join(", "), number.unwrap_or_default())
        };
        let variants: Vec<String> = item.variants.iter().map(variant).collect();
        let is_plain = item.variants.iter().all(|variant| variant.fields.is_empty());
        let all = contents(&item.attrs, &item.generics, variants.iter().cloned());
        self.add(item, &item.ident, Contents { plain_variants: is_plain.then_some(variants), ..all });
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.within(&item.ident, |all| syn::visit::visit_item_mod(all, item));
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.within(&item.sig.ident, |all| syn::visit::visit_item_fn(all, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.within(&item.sig.ident, |all| syn::visit::visit_impl_item_fn(all, item));
    }
}

/// The first token is the representation.
fn contents(
    attributes: &[syn::Attribute],
    generics: &syn::Generics,
    fields: impl Iterator<Item = String>,
) -> Contents {
    let represented = attributes.iter().filter(|attribute| attribute.path().is_ident("repr")).map(spelled);
    let represented: Vec<String> = represented.collect();
    let tokens = [represented.join(" "), spelled(&generics.params)].into_iter().chain(fields).collect();
    Contents { tokens, plain_variants: None }
}

fn field(field: &syn::Field) -> String {
    format!("{}: {}", field.ident.as_ref().map(ToString::to_string).unwrap_or_default(), spelled(&field.ty))
}

fn spelled(node: &impl ToTokens) -> String {
    node.to_token_stream().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(old: &str, new: &str) -> Vec<String> {
        let set = |text: &str| SourceSet::new([SourceFile::new("src/main.rs", text)]);
        between(&set(old), &set(new)).into_iter().map(|changed| changed.path).collect()
    }

    #[test]
    fn other_contents_are_found_wherever_the_type_stands() {
        assert_eq!(changed("struct A { x: u8, y: u8 }", "struct A { y: u8, x: u8 }"), ["A"]);
        assert_eq!(
            changed("mod m { fn f() { struct A(u8); } }", "mod m { fn f() { struct A(u16); } }"),
            ["m::f::A"]
        );
        assert_eq!(changed("enum E { A, C }", "enum E { A, B, C }"), ["E"]);
        assert_eq!(changed("enum E { A, C }", "enum E { A = 1, C }"), ["E"]);
        assert_eq!(changed("#[repr(u8)] enum E { A }", "#[repr(u16)] enum E { A }"), ["E"]);
        assert_eq!(changed("union U { a: u8 }", "union U { a: u8, b: u16 }"), ["U"]);
    }

    #[test]
    fn what_does_not_alter_a_type_is_no_change() {
        let same: [&str; 0] = [];
        assert_eq!(
            changed("struct A { x: u8 }", "/// Text.\n#[derive(Clone)] pub struct A { pub x: u8 }"),
            same
        );
        assert_eq!(changed("enum E { A, B }", "enum E { A, B, C }"), same);
        assert_eq!(changed("struct A;", "struct B;"), same);
        assert_eq!(changed("struct A { x: u8 } fn f() {}", "struct A { x: u8 } fn f() { g(); }"), same);
    }
}
