//! Which names a piece of source can reach, and the closure over all of it.

use super::additions::Candidate;
use super::closures::Extent;
use super::items::{Entity, File, Owner};
use super::lookup::Tainters;
use super::pieces::without_name;
use super::tokens::{Context, Token, TokenKind};
use super::{Doubt, ItemKind, Sure};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// How often a name occurs.
#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    /// As what is called: `name(…)`, `.name(…)`, `name::<…>(…)`.
    called: usize,
    /// In any other way.
    other: usize,
}

/// Names that could be those of functions, constants, statics or macros.
#[derive(Debug, Default)]
pub(super) struct Mentions {
    names: HashMap<String, Uses>,
    /// Whether names are made at compile time, so that any could be meant.
    pub wild: bool,
}

impl Mentions {
    pub(super) fn of(tokens: &[Token]) -> Self {
        let mut mentions = Self::default();
        mentions.add(tokens);
        mentions
    }

    pub(super) fn add(&mut self, tokens: &[Token]) {
        self.add_part(tokens, |_| true);
    }

    /// Counts those of the tokens only that are `wanted`.
    fn add_part(&mut self, tokens: &[Token], wanted: impl Fn(&Token) -> bool) {
        for at in (0..tokens.len()).filter(|at| wanted(&tokens[*at])) {
            match tokens[at].kind {
                TokenKind::Ident if tokens[at].is_keyword() => {}
                TokenKind::Ident if can_name_value(tokens, at) => self.ident(tokens, at),
                TokenKind::Literal => self.literal(tokens, at),
                _ => {}
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    fn ident(&mut self, tokens: &[Token], at: usize) {
        let name = tokens[at].name();
        let called = tokens.get(at + 1).is_some_and(|next| next.is_punct("!") && !next.is_joint());
        if called && matches!(name, "paste" | "concat_idents" | "include" | "seq") {
            self.wild = true;
        }
        if called && matches!(name, "write" | "writeln") {
            self.note("write_fmt");
        }
        let next = |ahead: usize| tokens.get(at + ahead).map(|token| &*token.text);
        let uses = self.names.entry(name.to_owned()).or_default();
        match next(1) == Some("(") || (next(1) == Some(":") && next(3) == Some("<")) {
            true => uses.called += 1,
            false => uses.other += 1,
        }
    }

    fn note(&mut self, name: &str) {
        self.names.entry(name.to_owned()).or_default().other += 1;
    }

    /// Strings name items too: captured arguments of format strings, paths in attributes of derives.
    fn literal(&mut self, tokens: &[Token], at: usize) {
        let text = &*tokens[at].text;
        if !text.contains('"') {
            return;
        }
        let assigned = at >= 2 && tokens[at - 1].is_punct("=");
        match tokens[at].context {
            Context::Attribute if assigned => {
                let text_only =
                    ["rename", "rename_all", "alias", "name", "feature", "reason", "note", "expected"];
                if !text_only.contains(&tokens[at - 2].name()) {
                    string_words(text).iter().for_each(|word| self.note(word));
                }
            }
            Context::Macro | Context::Attribute => {
                for argument in text.split('{').skip(1) {
                    let argument = argument.split('}').next().unwrap_or_default();
                    string_words(argument).iter().for_each(|word| self.note(word));
                }
            }
            Context::Code | Context::Doc => {}
        }
    }

    fn meet(&self, names: &HashSet<String>) -> Option<&String> {
        self.names.keys().find(|name| names.contains(*name))
    }
}

/// Names, each with how often code has to refer to it.
pub(super) type Counted = Vec<(String, usize)>;

/// How often machine code of an item has to refer to each name of a set, if no mention of it was computed away. A function
/// that is passed on as a generic argument is not referred to.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// References of a copy of the item, without its closures.
    pub own: Vec<(String, usize)>,
    /// References of a copy of each closure, by the line that it begins on. Those that begin beside the header count as the
    /// item's own, because the line is its, too.
    pub closures: BTreeMap<u32, Vec<(String, usize)>>,
}

/// `None` if the item may mention any name.
pub(super) fn expected(
    entity: &Entity,
    names: &HashSet<String>,
    functions: &HashSet<&str>,
) -> Option<Expected> {
    if entity.mentions.wild {
        return None;
    }
    let mut expected = Expected::default();
    if entity.mentions.meet(names).is_none() {
        return Some(expected);
    }
    let count = |mentions: &Mentions| -> Counted {
        let mentioned = mentions.names.iter().filter(|(name, _)| names.contains(*name));
        let counted = mentioned.map(|(name, uses)| {
            let other = if functions.contains(name.as_str()) { 0 } else { uses.other };
            (name.clone(), uses.called + other)
        });
        counted.filter(|(_, count)| *count > 0).collect()
    };
    // The braces of the body are in the header, without what is between them.
    let mut header = entity.header.iter().rev().skip_while(|token| matches!(&*token.text, "{" | "}"));
    let header_ends = header.next().map_or(entity.span.last_line, |token| token.last_line);
    let line_of = |token: &Token| {
        let around = entity.closures.iter().filter(|closure| closure.holds(token));
        around.map(Extent::first_line).filter(|line| *line > header_ends).max()
    };
    let lines: BTreeSet<u32> = entity.closures.iter().map(Extent::first_line).collect();
    for line in lines.into_iter().filter(|line| *line > header_ends) {
        let mut part = Mentions::default();
        part.add_part(&entity.body, |token| line_of(token) == Some(line));
        expected.closures.insert(line, count(&part));
    }
    let mut own = Mentions::of(&without_name(entity.header.clone(), &entity.name));
    own.add_part(&entity.body, |token| line_of(token).is_none());
    expected.own = count(&own);
    Some(expected)
}

/// Names that only functions have.
pub(super) fn function_names<'f>(files: &[&'f File]) -> HashSet<&'f str> {
    let named = |wanted: bool| {
        let all = files.iter().flat_map(|file| &file.entities);
        all.filter(move |entity| (entity.kind == ItemKind::Fn) == wanted).map(|e| &*e.name)
    };
    let others: HashSet<&str> = named(false).collect();
    named(true).filter(|name| !others.contains(name)).collect()
}

/// Identifiers in a string.
pub(super) fn string_words(text: &str) -> Vec<&str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).collect()
}

/// Whether the identifier at `at` can stand for a function, constant, static or macro: not a path's head, a field or a
/// declared parameter. In macros anything can.
fn can_name_value(tokens: &[Token], at: usize) -> bool {
    match tokens[at].context {
        Context::Doc => return false,
        Context::Macro | Context::Attribute => return true,
        Context::Code => {}
    }
    let punct =
        |at: Option<usize>, c: &str| at.and_then(|at| tokens.get(at)).is_some_and(|token| token.is_punct(c));
    let double_colon = punct(Some(at + 1), ":") && tokens[at + 1].is_joint() && punct(Some(at + 2), ":");
    if double_colon {
        return punct(Some(at + 3), "<");
    }
    if punct(Some(at + 1), ":") {
        // A pattern with a type may be a constant; elsewhere this declares or sets a field, or bounds a type.
        return at > 0 && &*tokens[at - 1].text == "let";
    }
    let after_dot = punct(at.checked_sub(1), ".") && !punct(at.checked_sub(2), ".");
    let called = tokens.get(at + 1).is_some_and(|next| &*next.text == "(");
    !after_dot || called
}

/// Names that macro input seems to define: what follows `fn`, `static` and the like.
pub(super) fn defined_names(tokens: &[Token]) -> Vec<String> {
    let mut names = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if !matches!(&*token.text, "fn" | "static" | "const" | "ref" | "mut" | "macro_rules") {
            continue;
        }
        let next = tokens[at + 1..].iter().find(|token| !token.is_punct("!"));
        names.extend(next.filter(|next| next.is_ident()).map(|next| next.name().to_owned()));
    }
    names
}

/// The names that a set of changed names can have an effect through.
pub(super) struct Closure<'a> {
    pub files: &'a [&'a File],
    /// Traits whose methods are reached by name only.
    pub traits: &'a LocalTraits,
    /// Items that only the new sources have; whatever reaches those names them.
    pub added: Vec<&'a Entity>,
    /// Items held by the added candidates.
    pub held: Vec<&'a Entity>,
    /// What only the new sources have at item level.
    pub candidates: Vec<&'a Candidate>,
}

impl Closure<'_> {
    /// Grows `names` to the fixpoint.
    pub(super) fn grow(&self, mut names: HashSet<String>) -> Sure<HashSet<String>> {
        for entity in self.entities() {
            if entity.mentions.wild {
                names.insert(entity.name.clone());
            }
        }
        loop {
            let before = names.len();
            for file in self.files {
                self.through(file, &mut names)?;
            }
            if names.len() == before {
                return Ok(names);
            }
        }
    }

    /// Adds the names through which alone a name of the set is met: macros, imports under another name, and constants and statics. What else
    /// mentions one of the set is code, which shows what it is made of.
    pub(super) fn grow_by_names(&self, mut names: HashSet<String>) -> HashSet<String> {
        loop {
            let before = names.len();
            let links = self.links(|kind| kind != ItemKind::Fn);
            let more: Vec<&str> = links.filter(|(by, _)| names.contains(*by)).map(|(_, name)| name).collect();
            names.extend(more.into_iter().map(str::to_owned));
            if names.len() == before {
                return names;
            }
        }
    }

    /// Which names of a set each of them is tainted by.
    pub(super) fn tainters(&self, names: &HashSet<String>) -> Tainters {
        let mut tainters = Tainters::default();
        let known = self.links(|_| true).filter(|(by, name)| names.contains(*by) && names.contains(*name));
        for (by, name) in known {
            tainters.names.entry(name.to_owned()).or_default().insert(by.to_owned());
        }
        let wild = self.entities().filter(|entity| entity.mentions.wild);
        tainters.wild = wild.map(|entity| entity.name.clone()).collect();
        tainters
    }

    /// Pairs of a name and another one whose meaning depends on it: that of an item of a kind that is `wanted`, of a macro, of an import.
    fn links(&self, wanted: impl Fn(ItemKind) -> bool) -> impl Iterator<Item = (&str, &str)> {
        let items = self.entities().filter(move |entity| wanted(entity.kind));
        let items = items.flat_map(|entity| entity.mentions.iter().map(|by| (by, &*entity.name)));
        let macros = self.files.iter().flat_map(|file| &file.macros).flat_map(|item| {
            let names = move || item.defines.iter().chain(item.definition.then_some(&item.name));
            item.mentions.iter().flat_map(move |by| names().map(move |name| (by, &**name)))
        });
        let imports = self.files.iter().flat_map(|file| &file.renames).filter(|(_, to)| to != "_");
        items.chain(macros).chain(imports.map(|(from, to)| (&**from, &**to)))
    }

    fn entities(&self) -> impl Iterator<Item = &Entity> {
        self.files.iter().flat_map(|file| &file.entities)
    }

    fn through(&self, file: &File, names: &mut HashSet<String>) -> Sure<()> {
        let doubt = |what: &str, name: &str| {
            Err(Doubt(format!(
                "{}: {what} depends on `{name}`, which changed or depends on a change",
                file.path
            )))
        };
        let candidates =
            file.candidates.iter().filter(|c| !self.candidates.iter().any(|added| std::ptr::eq(*added, *c)));
        let entities = file.entities.iter().filter(|entity| !self.is_added(entity));
        let shapes = candidates.map(|c| &c.shape).chain(entities.map(|entity| &entity.shape));
        if let Some(name) = shapes.chain([&file.shape]).find_map(|shape| shape.meet(names)) {
            return doubt("a type, an impl header or a signature", name);
        }
        for (from, to) in &file.renames {
            if names.contains(from) && to != "_" {
                names.insert(to.clone());
            }
        }
        for call in &file.macros {
            let Some(name) = call.mentions.meet(names).cloned() else { continue };
            let plain = call.definition || matches!(&*call.name, "thread_local" | "lazy_static");
            if !plain || (call.mentions.wild && !call.definition) {
                return doubt(&format!("a call of the macro `{}`", call.name), &name);
            }
            names.extend(call.defines.iter().cloned());
            if call.definition {
                names.insert(call.name.clone());
            }
        }
        for entity in &file.entities {
            if self.in_added_item(entity) {
                continue;
            }
            let cause = entity.mentions.meet(names).cloned();
            if !is_tainted(entity, names, cause.is_some()) {
                continue;
            }
            let cause = cause.unwrap_or_else(|| entity.name.clone());
            self.by_name_only(entity).or_else(|_| doubt(&format!("`{}`", entity.path), &cause))?;
            names.insert(entity.name.clone());
        }
        Ok(())
    }

    fn is_added(&self, entity: &Entity) -> bool {
        self.added.iter().any(|added| std::ptr::eq(*added, entity)) || self.in_added_item(entity)
    }

    /// Whether a new item at item level holds it, whose names are seeds as far as they have to be.
    pub(super) fn in_added_item(&self, entity: &Entity) -> bool {
        self.held.iter().any(|held| std::ptr::eq(*held, entity))
    }

    /// Whether whatever reaches the item has to name it.
    pub(super) fn by_name_only(&self, entity: &Entity) -> Sure<()> {
        if entity.leaks {
            return Err(Doubt(format!("`{}` has impls in its body", entity.path)));
        }
        match &entity.owner {
            Owner::Name if entity.name == "_" => {
                Err(Doubt(format!("`{}` is an unnamed constant", entity.path)))
            }
            Owner::Name => Ok(()),
            Owner::Trait { first, last } if self.traits.contains(first.as_deref(), last) => Ok(()),
            Owner::Trait { last, .. } => Err(Doubt(format!(
                "`{}` is of the trait `{last}`, which can be used without a name",
                entity.path
            ))),
        }
    }
}

/// Whether an item changed or can see a change.
pub(super) fn is_tainted(entity: &Entity, names: &HashSet<String>, mentions: bool) -> bool {
    mentions || entity.mentions.wild || names.contains(&entity.name)
}

pub(super) fn entity_is_tainted(entity: &Entity, names: &HashSet<String>) -> bool {
    is_tainted(entity, names, entity.mentions.meet(names).is_some())
}

/// Traits that the compared sources define, and no import makes another of the same name possible.
pub(super) struct LocalTraits {
    names: HashSet<String>,
    heads: HashSet<String>,
}

impl LocalTraits {
    pub(super) fn of(files: &[&File]) -> Self {
        let mut heads: HashSet<String> = ["crate", "self", "super"].map(str::to_owned).into();
        for file in files {
            heads.extend(file.modules.iter().cloned());
            // The folder of a crate mostly has its name; a name that is taken for external costs precision only.
            heads.extend(file.path.split('/').map(|part| part.replace('-', "_")));
        }
        for external in ["std", "core", "alloc"] {
            heads.remove(external);
        }
        let mut names: HashSet<String> = files.iter().flat_map(|file| file.traits.iter().cloned()).collect();
        for (first, name) in files.iter().flat_map(|file| &file.imports) {
            if !heads.contains(first) {
                names.remove(name);
            }
        }
        for prelude in PRELUDE {
            names.remove(*prelude);
        }
        Self { names, heads }
    }

    fn contains(&self, first: Option<&str>, last: &str) -> bool {
        self.names.contains(last) && first.is_none_or(|first| self.heads.contains(first))
    }
}

/// Traits that are in scope without an import, or that the language calls.
pub(super) const PRELUDE: &[&str] = &[
    "Send",
    "Sync",
    "Sized",
    "Unpin",
    "Copy",
    "Clone",
    "Drop",
    "Fn",
    "FnMut",
    "FnOnce",
    "AsyncFn",
    "AsyncFnMut",
    "AsyncFnOnce",
    "Iterator",
    "IntoIterator",
    "Extend",
    "FromIterator",
    "DoubleEndedIterator",
    "ExactSizeIterator",
    "Default",
    "Eq",
    "PartialEq",
    "Ord",
    "PartialOrd",
    "AsRef",
    "AsMut",
    "Into",
    "From",
    "TryFrom",
    "TryInto",
    "ToString",
    "ToOwned",
    "Future",
    "IntoFuture",
    "Hash",
    "Debug",
];
