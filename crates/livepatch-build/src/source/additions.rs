//! Items that the new sources have in addition, and that no function of the old ones can see.
//!
//! A type or trait whose name is no identifier anywhere in the old sources is met only by who names it, or is given a
//! value of it by something that does. So its definition is one more changed name, and impls for it, or of it, reach as
//! far. Everything else that is added at item level can change what other code means: resolution of names and methods,
//! inference, registration. It stays a difference of the frame.

use super::items::{Entity, File};
use super::mentions::{Mentions, PRELUDE};
use super::parts::plain;
use super::pieces::is_harmless;
use super::{ChangedItem, Doubt, ItemKind, Span, Sure};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use syn::{Attribute, Generics, ImplItem, Item, TraitItem, Visibility};

/// An item that may be added, if what it builds on allows it.
pub(super) struct Candidate {
    pub form: Form,
    /// Its tokens in the frame of the file.
    pub frame: Range<usize>,
    /// What it holds of the entities of the file.
    pub entities: Range<usize>,
    /// What its types, headers and signatures mention.
    pub shape: Mentions,
    pub span: Span,
    pub module: String,
}

/// What is added.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A struct, enum or union, and its variants.
    Type { name: String, variants: Vec<String> },
    /// Another name of a type. An impl for it is one for the type that it stands for.
    Alias { name: String },
    /// A trait and what it declares.
    Trait { name: String, items: Vec<String> },
    /// `impl target { items }`.
    Inherent { target: String, items: Vec<String> },
    /// `impl of for target`; `of` if it can be a trait of the compared sources, `target` if it can be such a type.
    TraitImpl { of: Option<String>, target: Option<String> },
    /// The import of one path under its own name.
    Import { path: Vec<String> },
}

impl Form {
    /// What an item is as an addition; `None` if it must not be one.
    pub(super) fn of(item: &Item) -> Option<Self> {
        match item {
            Item::Struct(def) => new_type(&def.ident, &def.attrs, &[]),
            Item::Union(def) => new_type(&def.ident, &def.attrs, &[]),
            Item::Enum(def) => {
                let variants: Vec<String> =
                    def.variants.iter().map(|variant| plain(&variant.ident)).collect();
                new_type(&def.ident, &def.attrs, &variants)
            }
            Item::Type(def) => all_harmless(&def.attrs).then(|| Self::Alias { name: plain(&def.ident) }),
            Item::Trait(def) => new_trait(def),
            Item::Impl(block) => new_impl(block),
            _ => None,
        }
    }

    /// The import of one path, if it is private and has no attributes that matter.
    pub(super) fn of_import(item: &syn::ItemUse, path: Vec<String>) -> Option<Self> {
        let private = matches!(item.vis, Visibility::Inherited);
        (private && all_harmless(&item.attrs) && path.len() > 1).then_some(Self::Import { path })
    }

    fn name(&self) -> &str {
        match self {
            Self::Type { name, .. } | Self::Alias { name } | Self::Trait { name, .. } => name,
            Self::Inherent { target, .. } => target,
            Self::TraitImpl { of, target } => target.as_ref().or(of.as_ref()).map_or("", String::as_str),
            Self::Import { path } => path.last().map_or("", String::as_str),
        }
    }

    fn kind(&self) -> ItemKind {
        match self {
            Self::Type { .. } | Self::Alias { .. } => ItemKind::Type,
            Self::Trait { .. } => ItemKind::Trait,
            Self::Inherent { .. } | Self::TraitImpl { .. } => ItemKind::Impl,
            Self::Import { .. } => ItemKind::Use,
        }
    }
}

fn new_type(name: &syn::Ident, attrs: &[Attribute], variants: &[String]) -> Option<Form> {
    let mut derived = false;
    for attr in attrs {
        let path = attr.path();
        derived |= path.is_ident("derive");
        // After a derive a plain name is an attribute of it. Other attributes are macros that can make any items.
        let helper = derived && path.get_ident().is_some_and(|name| name != "cfg_attr");
        if !is_harmless(attr) && !path.is_ident("repr") && !helper {
            return None;
        }
    }
    Some(Form::Type { name: plain(name), variants: variants.to_vec() })
}

fn new_trait(def: &syn::ItemTrait) -> Option<Form> {
    if def.auto_token.is_some() || !all_harmless(&def.attrs) {
        return None;
    }
    let mut items = Vec::new();
    for item in &def.items {
        let (name, attrs) = match item {
            TraitItem::Fn(item) => (&item.sig.ident, &item.attrs),
            TraitItem::Const(item) => (&item.ident, &item.attrs),
            TraitItem::Type(item) => (&item.ident, &item.attrs),
            _ => return None,
        };
        if !all_harmless(attrs) {
            return None;
        }
        items.push(plain(name));
    }
    Some(Form::Trait { name: plain(&def.ident), items })
}

fn new_impl(block: &syn::ItemImpl) -> Option<Form> {
    if block.defaultness.is_some() || !all_harmless(&block.attrs) {
        return None;
    }
    let mut items = Vec::new();
    for item in &block.items {
        let (name, attrs) = match item {
            ImplItem::Fn(item) => (&item.sig.ident, &item.attrs),
            ImplItem::Const(item) => (&item.ident, &item.attrs),
            ImplItem::Type(item) => (&item.ident, &item.attrs),
            _ => return None,
        };
        if !all_harmless(attrs) {
            return None;
        }
        items.push(plain(name));
    }
    let syn::Type::Path(target) = &*block.self_ty else { return None };
    let first = target.path.segments.first()?;
    if target.qself.is_some() || is_parameter(&block.generics, &first.ident) {
        return None;
    }
    let target = local_name(&target.path);
    match &block.trait_ {
        None => Some(Form::Inherent { target: target?, items }),
        Some((_, path, _)) => Some(Form::TraitImpl { of: local_name(path), target }),
    }
}

/// The last name of a path that can lead to an item of the same crate.
fn local_name(path: &syn::Path) -> Option<String> {
    let first = &path.segments.first()?.ident;
    let local = path.segments.len() == 1 || is_local(&plain(first));
    (path.leading_colon.is_none() && local).then(|| path.segments.last().map(|s| plain(&s.ident)))?
}

fn is_local(head: &str) -> bool {
    matches!(head, "crate" | "self" | "super")
}

fn is_parameter(generics: &Generics, name: &syn::Ident) -> bool {
    generics.type_params().any(|parameter| parameter.ident == *name)
}

fn all_harmless(attrs: &[Attribute]) -> bool {
    attrs.iter().all(is_harmless)
}

/// The frame of `new` without some of its candidates is that of `old`: these candidates, or where the frames part.
pub(super) fn align<'a>(old: &File, new: &'a File) -> Result<Vec<&'a Candidate>, u32> {
    let mut added = Vec::new();
    let (mut at_old, mut at_new) = (0, 0);
    let mut candidates = new.candidates.iter().peekable();
    loop {
        if let Some(candidate) = candidates.next_if(|candidate| candidate.frame.start == at_new) {
            let tokens = &new.frame[candidate.frame.clone()];
            at_new = candidate.frame.end;
            match old.frame[at_old..].starts_with(tokens) {
                true => at_old += tokens.len(),
                false => added.push(candidate),
            }
            continue;
        }
        match (old.frame.get(at_old), new.frame.get(at_new)) {
            (None, None) => return Ok(added),
            (Some(old), Some(new)) if old == new => {}
            (_, Some(token)) | (Some(token), None) => return Err(token.first_line),
        }
        at_old += 1;
        at_new += 1;
    }
}

/// Everything added, file by file.
pub(super) struct Additions<'a> {
    old: &'a [Arc<File>],
    new: &'a [Arc<File>],
    added: Vec<(&'a File, &'a Candidate)>,
}

impl<'a> Additions<'a> {
    pub(super) fn new(old: &'a [Arc<File>], new: &'a [Arc<File>]) -> Self {
        Self { old, new, added: Vec::new() }
    }

    pub(super) fn add(&mut self, file: &'a File, candidates: Vec<&'a Candidate>) {
        self.added.extend(candidates.into_iter().map(|candidate| (file, candidate)));
    }

    /// Functions, constants and statics in added items.
    pub(super) fn entities(&self) -> impl Iterator<Item = &'a Entity> {
        self.added.iter().flat_map(|(file, candidate)| &file.entities[candidate.entities.clone()])
    }

    pub(super) fn candidates(&self) -> Vec<&'a Candidate> {
        self.added.iter().map(|(_, candidate)| *candidate).collect()
    }

    /// Names that stand for something else than before.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.added.iter().flat_map(|(_, candidate)| match &candidate.form {
            Form::Type { name, variants: more } | Form::Trait { name, items: more } => {
                [std::slice::from_ref(name), more].concat()
            }
            Form::Alias { name } => vec![name.clone()],
            Form::Inherent { items, .. } => items.clone(),
            Form::TraitImpl { .. } | Form::Import { .. } => Vec::new(),
        })
    }

    pub(super) fn items(&self) -> impl Iterator<Item = ChangedItem> {
        self.added.iter().map(|(_, candidate)| ChangedItem {
            name: candidate.form.name().to_owned(),
            path: format!("{}{}", candidate.module, candidate.form.name()),
            kind: candidate.form.kind(),
            local: false,
            old: None,
            new: Some(candidate.span.clone()),
            within: None,
            renumbers: false,
        })
    }

    /// That nothing of the old sources can see what is added but by a name of [`Self::names`].
    pub(super) fn check(&self) -> Sure<()> {
        let defined = self.added.iter().any(|(_, c)| !matches!(c.form, Form::Import { .. }));
        let known = if defined { self.known_names() } else { HashSet::new() };
        for (file, candidate) in &self.added {
            let ok = match &candidate.form {
                Form::Type { name, .. } | Form::Alias { name } | Form::Trait { name, .. } => {
                    !known.contains(name.as_str()) && !is_everywhere(name)
                }
                Form::Inherent { target, .. } => self.is_new(file, candidate, target, ItemKind::Type),
                Form::TraitImpl { of, target } => {
                    let new = |name: &Option<String>, kind| {
                        name.as_ref().is_some_and(|name| self.is_new(file, candidate, name, kind))
                    };
                    new(target, ItemKind::Type) || new(of, ItemKind::Trait)
                }
                Form::Import { path } => self.is_harmless_import(file, path),
            };
            if !ok || self.leaks(file, candidate) {
                return Err(Doubt(format!(
                    "{}:{}: `{}` is added, and code that does not name it may see it",
                    file.path,
                    candidate.span.first_line,
                    candidate.form.name()
                )));
            }
        }
        Ok(())
    }

    /// Every identifier of the old sources, and what their strings can name.
    fn known_names(&self) -> HashSet<&str> {
        let mut known = HashSet::new();
        for file in self.old {
            known.extend(file.tokens.iter().filter(|token| token.is_ident()).map(|token| token.name()));
            known.extend(file.entities.iter().flat_map(|entity| entity.mentions.iter()));
            known.extend(file.macros.iter().flat_map(|call| call.mentions.iter()));
            known.extend(file.shape.iter());
            known.extend(file.candidates.iter().flat_map(|candidate| candidate.shape.iter()));
        }
        known
    }

    /// Whether a name means, in this place, a type or trait that is added: one defined next to it, or imported.
    fn is_new(&self, file: &File, place: &Candidate, name: &str, kind: ItemKind) -> bool {
        let defines = |candidate: &Candidate| match &candidate.form {
            Form::Type { name: new, .. } => kind == ItemKind::Type && new == name,
            Form::Trait { name: new, .. } => kind == ItemKind::Trait && new == name,
            _ => false,
        };
        // Another meaning of the name, as an alias, is none of ours.
        let alias = |c: &Candidate| matches!(&c.form, Form::Alias { name: new } if new == name);
        let imported = file.imports.iter().any(|(first, last)| last == name && is_local(first));
        !self.added.iter().any(|(_, c)| alias(c))
            && self.added.iter().any(|(other, c)| {
                defines(c) && (imported || (std::ptr::eq(*other, file) && c.module == place.module))
            })
    }

    fn is_harmless_import(&self, file: &File, path: &[String]) -> bool {
        let name = &path[path.len() - 1];
        if is_local(&path[0]) {
            let added = self.added.iter().any(|(_, c)| {
                matches!(c.form, Form::Type { .. } | Form::Alias { .. } | Form::Trait { .. })
                    && c.form.name() == name
            });
            return added && !self.new.iter().any(|file| file.reexports_all);
        }
        let in_macro =
            |file: &Arc<File>| file.macros.iter().any(|call| call.mentions.iter().any(|n| n == name));
        let before = self.old.iter().find(|old| old.path == file.path);
        (is_plain_type(path) || (is_fmt_trait(path) && !self.old.iter().any(|file| calls_fmt(file))))
            && !before
                .is_none_or(|old| old.tokens.iter().any(|token| token.is_ident() && token.name() == name))
            && !self.old.iter().any(in_macro)
    }

    /// Whether something in it has an effect beyond it.
    fn leaks(&self, file: &File, candidate: &Candidate) -> bool {
        let mut in_frame = file.frame[candidate.frame.clone()].iter();
        let is_type = matches!(candidate.form, Form::Type { .. } | Form::Alias { .. });
        let words = ["impl", "trait", "mod", "extern", "macro_rules"];
        let entities = &file.entities[candidate.entities.clone()];
        (is_type && in_frame.any(|token| token.is_ident() && words.contains(&&*token.text)))
            || entities.iter().any(|entity| entity.leaks || !entity.local_items.is_empty())
    }
}

/// Names that macros of other crates may use without a path.
fn is_everywhere(name: &str) -> bool {
    let more =
        ["Option", "Some", "None", "Result", "Ok", "Err", "Box", "String", "Vec", "str", "bool", "char"];
    let number = name
        .strip_prefix(['u', 'i', 'f'])
        .is_some_and(|rest| rest == "size" || (!rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit())));
    number || more.contains(&name) || PRELUDE.contains(&name)
}

/// Traits whose import can alter the meaning of nothing but `fmt`.
fn is_fmt_trait(path: &[String]) -> bool {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    matches!(names.as_slice(), ["std" | "core" | "alloc", "fmt", "Debug" | "Display"])
}

/// Whether `fmt` is anything but a module in a path, an import of that, or the definition of a function.
fn calls_fmt(file: &File) -> bool {
    let text = |at: Option<usize>| at.and_then(|at| file.tokens.get(at)).map_or("", |token| &*token.text);
    (0..file.tokens.len()).filter(|at| file.tokens[*at].name() == "fmt").any(|at| {
        let back = |count| text(at.checked_sub(count));
        let is_module = text(Some(at + 1)) == ":" && text(Some(at + 2)) == ":" && text(Some(at + 3)) != "<";
        let is_import = back(4) == "use" && matches!(back(3), "std" | "core") && text(Some(at + 1)) == ";";
        !(back(1) == "fn" || (is_module && back(1) != ".") || is_import)
    })
}

/// Types of the standard library, under the names that it gives to nothing else.
fn is_plain_type(path: &[String]) -> bool {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let [root, module @ .., name] = names.as_slice() else { return false };
    matches!(*root, "std" | "core" | "alloc")
        && match module {
            ["collections"] => {
                ["HashMap", "HashSet", "BTreeMap", "BTreeSet", "VecDeque", "BinaryHeap", "LinkedList"]
                    .contains(name)
            }
            ["sync"] => {
                ["Arc", "Mutex", "RwLock", "Condvar", "Once", "OnceLock", "LazyLock", "Barrier", "Weak"]
                    .contains(name)
            }
            ["rc"] => ["Rc", "Weak"].contains(name),
            ["cell"] => ["Cell", "RefCell", "OnceCell", "LazyCell"].contains(name),
            ["borrow"] => *name == "Cow",
            ["time"] => ["Duration", "Instant", "SystemTime"].contains(name),
            ["path"] => ["Path", "PathBuf"].contains(name),
            ["sync", "atomic"] => name.starts_with("Atomic") || *name == "Ordering",
            _ => false,
        }
}
