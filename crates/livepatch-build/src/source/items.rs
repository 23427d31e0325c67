//! A source file taken apart: its frame, and the bodies and values that hang in it.

use super::additions::{Candidate, Form};
use super::anonymous::{Counted, is_conditional};
use super::closures::Extent;
use super::mentions::{Mentions, defined_names};
use super::parts::{Nested, Parts, plain};
use super::pieces::{attrs, is_for_tests, is_harmless, lines, text, trait_owner, without_name};
use super::tokens::{Context, Token, flatten};
use super::{Doubt, ItemKind, SourceFile, Span, Sure};
use proc_macro2::TokenStream;
use quote::ToTokens;
use std::collections::HashSet;
use syn::{ImplItem, Item, TraitItem, UseTree};

/// A parsed file.
#[derive(Default)]
pub(super) struct File {
    pub path: String,
    /// All tokens, for the comparison of whole files.
    pub tokens: Vec<Token>,
    /// Everything but bodies, values and items that may come and go.
    pub frame: Vec<Token>,
    /// Names that types, headers, signatures and attributes of types mention: see [`Mentions`].
    pub shape: Mentions,
    pub entities: Vec<Entity>,
    /// Parts of the frame that the new sources may have in addition.
    pub candidates: Vec<Candidate>,
    /// Whether it passes on all names of another crate.
    pub reexports_all: bool,
    /// `macro_rules!` and macro calls in item position.
    pub macros: Vec<MacroItem>,
    /// `use … from as to`.
    pub renames: Vec<(String, String)>,
    /// First segment and last name of each import.
    pub imports: Vec<(String, String)>,
    pub traits: HashSet<String>,
    pub modules: HashSet<String>,
    /// Lines of types whose derived impls are all the standard library's.
    pub derived: Vec<(u32, u32)>,
    pub defines_proc_macro: bool,
}

/// A function, constant or static.
pub(super) struct Entity {
    pub name: String,
    /// For messages.
    pub path: String,
    pub kind: ItemKind,
    /// Equal on both sides for an item that is in the same place: module, impl header, enclosing function.
    pub container: String,
    /// How many `macro_rules!` definitions of the file it is behind: another one in front may be another meaning of a name in it.
    pub behind: usize,
    /// All of it but the body or value.
    pub header: Vec<Token>,
    pub body: Vec<Token>,
    /// Closures in the body, each before those in it.
    pub closures: Vec<Extent>,
    /// What the compiler counts in it; `None` if something may generate code around it.
    pub anonymous: Option<Counted>,
    pub span: Span,
    pub owner: Owner,
    /// Whether it stands in another function's body.
    pub nested: bool,
    /// Whether it may be added or removed without an effect other than through its name.
    pub movable: bool,
    /// Items in its body that are not entities: types, impls, imports, macros.
    pub local_items: Vec<Token>,
    /// Whether an impl, a trait or a module is among them, whose effect is not limited to the body.
    pub leaks: bool,
    /// What its header mentions, if it is movable.
    pub shape: Mentions,
    pub mentions: Mentions,
}

/// How an item is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// By its name.
    Name,
    /// As an item of an impl of this trait: first segment (if there are several) and last one.
    Trait { first: Option<String>, last: String },
}

/// A macro definition or call in item position.
pub(super) struct MacroItem {
    /// Name of a `macro_rules!` definition, or of the macro called.
    pub name: String,
    pub definition: bool,
    pub mentions: Mentions,
    /// What follows `fn`, `static`, `const` and the like in its tokens.
    pub defines: Vec<String>,
}

/// Parses a Rust file. Without `test`, code for tests only is left out.
pub(super) fn parse(source: &SourceFile, test: bool) -> Sure<File> {
    let file = read(source, test);
    // Nothing keeps a span, and the table would grow with every file.
    proc_macro2::extra::invalidate_current_thread_spans();
    file
}

fn read(source: &SourceFile, test: bool) -> Sure<File> {
    let bad = |what: &str| Doubt(format!("{}: {what}", source.path));
    let text = std::str::from_utf8(&source.bytes).map_err(|_| bad("not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // As the compiler tells a script's first line from an inner attribute.
    let code = if text.starts_with("#!") && !text[2..].trim_start().starts_with('[') {
        &text[text.find('\n').unwrap_or(text.len())..]
    } else {
        text
    };
    let raw: TokenStream = code.parse().map_err(|e| bad(&format!("{e}")))?;
    let parsed: syn::File =
        syn::parse2(raw.clone()).map_err(|e| bad(&format!("line {}: {e}", e.span().start().line)))?;
    let mut reader =
        Reader { file: File { path: source.path.clone(), ..File::default() }, test, macros_before: 0 };
    reader.file.tokens = flatten(parsed.to_token_stream());
    // As one text: `pair.0.1` has a number in it that the parser takes apart.
    let spelled = |tokens: &[Token]| tokens.iter().map(|token| &*token.text).collect::<String>();
    if spelled(&flatten(raw)) != spelled(&reader.file.tokens) {
        return Err(bad("not understood as a whole"));
    }
    let attributes: Vec<Token> = parsed.attrs.iter().flat_map(tokens_of).collect();
    reader.file.frame.extend(attributes);
    let harmless = parsed.attrs.iter().all(|attr| is_harmless(attr) || attr.path().is_ident("feature"));
    reader.items(&parsed.items, "", harmless);
    Ok(reader.file)
}

fn tokens_of(node: &impl ToTokens) -> Vec<Token> {
    flatten(node.to_token_stream())
}

struct Reader {
    file: File,
    /// Whether the build is one of tests.
    test: bool,
    /// `macro_rules!` definitions so far.
    macros_before: usize,
}

/// Where items stand.
struct Place<'a> {
    module: &'a str,
    container: String,
    owner: Owner,
    nested: bool,
    movable: bool,
    /// Whether an attribute around it may generate code.
    rewritten: bool,
}

impl Reader {
    fn items(&mut self, items: &[Item], module: &str, harmless: bool) {
        for item in items {
            if self.test || !attrs(item).iter().any(is_for_tests) {
                self.item(item, module, harmless);
            }
        }
    }

    /// `harmless`: the modules around have no attribute that generates code.
    fn item(&mut self, item: &Item, module: &str, harmless: bool) {
        if let Item::Use(import) = item {
            self.imports(&import.tree, None);
            return self.import_leaves(import, &import.tree, &mut Vec::new(), module, harmless);
        }
        let form = if harmless { Form::of(item) } else { None };
        self.candidate(form, &tokens_of(item), module, |reader| reader.item_parts(item, module, harmless));
    }

    /// Has `read` take in what may be an addition; `tokens` is all of it.
    fn candidate(
        &mut self,
        form: Option<Form>,
        tokens: &[Token],
        module: &str,
        read: impl FnOnce(&mut Self),
    ) {
        let Some(form) = form else { return read(self) };
        let (frame, entities) = (self.file.frame.len(), self.file.entities.len());
        let shape = std::mem::take(&mut self.file.shape);
        read(self);
        let shape = std::mem::replace(&mut self.file.shape, shape);
        let (first_line, last_line) = lines(tokens);
        self.file.candidates.push(Candidate {
            form,
            frame: frame..self.file.frame.len(),
            entities: entities..self.file.entities.len(),
            shape,
            span: Span { file: self.file.path.clone(), first_line, last_line },
            module: module.to_owned(),
        });
    }

    /// One import for each path of a tree, which means the same.
    fn import_leaves(
        &mut self,
        item: &syn::ItemUse,
        tree: &UseTree,
        path: &mut Vec<syn::Ident>,
        module: &str,
        harmless: bool,
    ) {
        match tree {
            UseTree::Path(head) => {
                path.push(head.ident.clone());
                self.import_leaves(item, &head.tree, path, module, harmless);
                path.pop();
            }
            UseTree::Group(group) => {
                // An empty group still needs its path to exist.
                if group.items.is_empty() {
                    self.frame(item);
                }
                for tree in &group.items {
                    self.import_leaves(item, tree, path, module, harmless);
                }
            }
            UseTree::Name(_) | UseTree::Rename(_) | UseTree::Glob(_) => {
                let (attrs, vis, colon) = (&item.attrs, &item.vis, &item.leading_colon);
                let leaf = quote::quote!(#(#attrs)* #vis use #colon #(#path ::)* #tree;);
                let mut names: Vec<String> = path.iter().map(plain).collect();
                let local = names.first().is_some_and(|head| matches!(&**head, "crate" | "self" | "super"));
                let private = matches!(vis, syn::Visibility::Inherited);
                self.file.reexports_all |= matches!(tree, UseTree::Glob(_)) && !local && !private;
                let form = match tree {
                    UseTree::Name(name) if harmless && colon.is_none() && name.ident != "self" => {
                        names.push(plain(&name.ident));
                        Form::of_import(item, names)
                    }
                    _ => None,
                };
                self.candidate(form, &tokens_of(item), module, |reader| reader.frame(&leaf));
            }
        }
    }

    fn item_parts(&mut self, item: &Item, module: &str, harmless: bool) {
        match item {
            Item::Fn(_) | Item::Const(_) | Item::Static(_) => {
                let place = Place {
                    module,
                    container: module.to_owned(),
                    owner: Owner::Name,
                    nested: false,
                    movable: harmless,
                    rewritten: !harmless,
                };
                self.entity(item, &place);
            }
            Item::Impl(block) => self.impl_block(block, module, harmless),
            Item::Trait(def) => self.trait_def(def, module, harmless),
            Item::Mod(inline) => self.module(inline, module, harmless),
            Item::Macro(call) => self.macro_item(call),
            Item::ExternCrate(_) => self.frame(item),
            _ => {
                self.frame(item);
                self.shape(&tokens_of(item));
                self.derives(item);
            }
        }
    }

    fn frame(&mut self, node: &impl ToTokens) {
        self.file.frame.extend(tokens_of(node));
    }

    fn shape(&mut self, tokens: &[Token]) {
        self.file.shape.add(tokens);
    }

    fn module(&mut self, inline: &syn::ItemMod, module: &str, harmless: bool) {
        self.file.modules.insert(inline.ident.to_string());
        let Some((_, items)) = &inline.content else { return self.frame(inline) };
        let mut empty = inline.clone();
        empty.content = Some((syn::token::Brace::default(), Vec::new()));
        self.frame(&empty);
        let path = format!("{module}{}::", inline.ident);
        self.items(items, &path, harmless && inline.attrs.iter().all(is_harmless));
        self.frame(&End);
    }

    fn impl_block(&mut self, block: &syn::ItemImpl, module: &str, harmless: bool) {
        let mut empty = block.clone();
        empty.items.clear();
        let header = tokens_of(&empty);
        self.shape(&header);
        self.file.frame.extend(header.iter().cloned());
        let container = format!("{module} {}", text(&header));
        let plain_block = harmless && block.attrs.iter().all(is_harmless);
        let inherent = plain_block && block.trait_.is_none();
        let owner = match &block.trait_ {
            None => Owner::Name,
            Some((_, path, _)) => trait_owner(path),
        };
        let self_type = text(&tokens_of(&block.self_ty)).replace(' ', "");
        let module = format!("{module}{self_type}::");
        let place = Place {
            module: &module,
            container,
            owner,
            nested: false,
            movable: inherent,
            rewritten: !plain_block,
        };
        for item in &block.items {
            match item {
                ImplItem::Fn(_) | ImplItem::Const(_) => self.entity(item, &place),
                ImplItem::Macro(call) => self.macro_call(&call.mac, &tokens_of(item)),
                other => {
                    self.frame(other);
                    self.shape(&tokens_of(other));
                }
            }
        }
        self.frame(&End);
    }

    fn trait_def(&mut self, def: &syn::ItemTrait, module: &str, harmless: bool) {
        self.file.traits.insert(def.ident.to_string());
        let mut empty = def.clone();
        empty.items.clear();
        let header = tokens_of(&empty);
        self.shape(&header);
        self.file.frame.extend(header.iter().cloned());
        let module = format!("{module}{}::", def.ident);
        let place = Place {
            module: &module,
            container: module.clone(),
            owner: Owner::Name,
            nested: false,
            movable: false,
            rewritten: !(harmless && def.attrs.iter().all(is_harmless)),
        };
        for item in &def.items {
            match item {
                TraitItem::Fn(method) if method.default.is_some() => self.entity(item, &place),
                TraitItem::Const(value) if value.default.is_some() => self.entity(item, &place),
                TraitItem::Macro(call) => self.macro_call(&call.mac, &tokens_of(item)),
                TraitItem::Fn(method) => {
                    self.frame(item);
                    self.shape(&without_name(tokens_of(item), &plain(&method.sig.ident)));
                }
                TraitItem::Const(value) => {
                    self.frame(item);
                    self.shape(&without_name(tokens_of(item), &plain(&value.ident)));
                }
                other => {
                    self.frame(other);
                    self.shape(&tokens_of(other));
                }
            }
        }
        self.frame(&End);
    }

    fn macro_item(&mut self, item: &syn::ItemMacro) {
        let Some(name) = &item.ident else { return self.macro_call(&item.mac, &tokens_of(item)) };
        self.macros_before += 1;
        let tokens = tokens_of(item);
        self.file.macros.push(MacroItem {
            name: name.to_string(),
            definition: true,
            mentions: Mentions::of(&tokens),
            defines: defined_names(&tokens),
        });
        self.file.frame.extend(tokens);
    }

    fn macro_call(&mut self, call: &syn::Macro, tokens: &[Token]) {
        let name = call.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        self.file.macros.push(MacroItem {
            name,
            definition: false,
            mentions: Mentions::of(tokens),
            defines: defined_names(tokens),
        });
        self.file.frame.extend(tokens.iter().cloned());
    }

    fn imports(&mut self, tree: &UseTree, first: Option<&str>) {
        let mut note = |name: &syn::Ident| {
            let name = name.to_string();
            let first = first.unwrap_or(&name).to_owned();
            self.file.imports.push((first, name));
        };
        match tree {
            UseTree::Path(path) => {
                let segment = path.ident.to_string();
                self.imports(&path.tree, Some(first.unwrap_or(&segment)));
            }
            UseTree::Name(name) => note(&name.ident),
            UseTree::Rename(rename) => {
                note(&rename.rename);
                self.file.renames.push((plain(&rename.ident), plain(&rename.rename)));
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.imports(tree, first)),
            UseTree::Glob(_) => {}
        }
    }

    fn derives(&mut self, item: &Item) {
        let attrs = match item {
            Item::Struct(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Union(item) => &item.attrs,
            _ => return,
        };
        let standard = ["Clone", "Copy", "Debug", "PartialEq", "Eq", "PartialOrd", "Ord", "Hash", "Default"];
        let known = attrs.iter().all(|attr| {
            let names = Mentions::of(&tokens_of(&attr.meta));
            is_harmless(attr)
                || attr.path().is_ident("repr")
                || (attr.path().is_ident("derive")
                    && names.iter().all(|name| name == "derive" || standard.contains(&name)))
        });
        if known {
            let tokens = tokens_of(item);
            let (first, last) = lines(&tokens);
            self.file.derived.push((first, last));
        }
    }

    /// Takes a function, constant or static in, and what is nested in it.
    fn entity(&mut self, node: &impl Parts, place: &Place<'_>) {
        let parts = node.parts();
        let movable = place.movable && parts.attrs.iter().all(is_harmless);
        let header = flatten(if movable { parts.undocumented.clone() } else { parts.header.clone() });
        let body = flatten(parts.body.clone());
        let whole = tokens_of(node);
        let (first_line, last_line) = lines(&whole);
        let name = parts.name.clone();
        self.file.defines_proc_macro |= parts
            .attrs
            .iter()
            .any(|attr| attr.path().segments.iter().any(|s| s.ident.to_string().starts_with("proc_macro")));
        let mut nested = Nested::default();
        parts.walk(&mut nested);
        let rewritten = place.rewritten || !parts.attrs.iter().all(is_harmless);
        let anonymous = (!rewritten && !is_conditional(&body)).then(|| parts.counted());
        let mut shape = Mentions::default();
        if !place.nested {
            // The attributes generate code of their own; what they mention is counted with the item.
            let code = header.iter().filter(|token| token.context == Context::Code).cloned();
            let code: Vec<Token> = without_name(code.collect(), &name);
            if movable {
                shape.add(&code);
            } else {
                self.shape(&code);
                self.file.frame.extend(header.iter().cloned());
            }
        }
        let mut mentions = Mentions::of(&without_name(header.clone(), &name));
        mentions.add(&body);
        let path = format!("{}{name}", place.module);
        for import in &nested.imports {
            self.imports(import, None);
        }
        self.file.entities.push(Entity {
            kind: parts.kind,
            container: place.container.clone(),
            behind: self.macros_before,
            header,
            body,
            closures: nested.closures,
            anonymous,
            span: Span { file: self.file.path.clone(), first_line, last_line },
            owner: place.owner.clone(),
            nested: place.nested,
            movable,
            local_items: nested.other,
            leaks: nested.leaks,
            shape,
            mentions,
            path: path.clone(),
            name: name.clone(),
        });
        let module = format!("{path}::");
        let container = format!("{}/{name}", place.container);
        let inner =
            Place { module: &module, container, owner: Owner::Name, nested: true, movable: true, rewritten };
        for item in &nested.entities {
            self.entity(item, &inner);
        }
    }
}

/// Marks the end of a block in the frame.
struct End;

impl ToTokens for End {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        quote::quote!(;).to_tokens(tokens);
    }
}
