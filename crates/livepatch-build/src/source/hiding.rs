//! Changes that raw code may not show.
//!
//! On x86-64 some things steer the optimiser without a trace in the machine code of the function that says them: how a
//! memory access is ordered or that it is volatile, promises about values. Where any of that changed, raw code is no
//! witness, unless it was changed in bodies of functions alone, and raw code tells of each of these for another reason: then all that the
//! change can reach leads there. A new function may have no raw code, because it is inlined before there is any: then it is the
//! functions that name it that have to be told of.

use super::items::{Entity, File, Owner, parse};
use super::macros::Packages;
use super::tokens::Token;
use super::{ItemKind, SourceSet, closures};
use std::collections::{BTreeMap, HashMap, HashSet};

const WORDS: &[&str] = &[
    "Relaxed",
    "Acquire",
    "Release",
    "AcqRel",
    "SeqCst",
    "black_box",
    "asm",
    "global_asm",
    "naked_asm",
    "UnsafeCell",
    "SyncUnsafeCell",
    "PhantomPinned",
    "addr_of",
    "addr_of_mut",
    "raw",
    "assume",
    "NonNull",
];
const PARTS: &[&str] = &["unchecked", "volatile", "fence", "unaligned"];

/// Where there may be a change that raw code does not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hiding {
    /// Nowhere.
    Nowhere,
    /// In the bodies of these functions only. Where raw code changed for another reason, it is known to be changed.
    Functions(Vec<Suspect>),
    /// Perhaps in code that did not change itself.
    Anywhere,
}

/// A function with such a change in its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suspect {
    pub(crate) name: String,
    /// The type, trait, module or function that it is in, or else its file's name; empty for the root of a crate.
    pub(crate) parent: String,
    /// Whether all of the change is in one of its closures.
    pub(crate) in_closure: bool,
    /// Whether it is an `async fn`, whose body is compiled as a closure of it.
    pub(crate) is_async: bool,
    /// If it is new: the functions that name it, where these are all that do, and nothing named it so before.
    pub(crate) users: Option<Vec<Suspect>>,
}

impl Suspect {
    /// Whether a change of it is shown, or else of all that it became part of.
    pub(crate) fn is_shown(&self, shows: &impl Fn(&Self) -> bool) -> bool {
        shows(self) || self.users.as_ref().is_some_and(|users| users.iter().all(|user| user.is_shown(shows)))
    }
}

/// One function, and what it is in both sets: not more than one each. File, what it is in, how many definitions of macros before it
/// count, and name.
type Place<'f> = (&'f str, &'f str, usize, &'f str);

/// Whether the difference between two sets of sources may be such a change.
pub(super) fn between(old: &SourceSet, new: &SourceSet) -> Hiding {
    let (Some(was), Some(is)) = (changed_files(old, new), changed_files(new, old)) else {
        return Hiding::Anywhere;
    };
    let (olds, news) = (functions(&was), functions(&is));
    if outside(&was, &olds) != outside(&is, &news) {
        return Hiding::Anywhere;
    }
    let mut suspects = Vec::new();
    let mut changed: HashMap<(String, &str), usize> = HashMap::new();
    for place in olds.keys().chain(news.keys().filter(|place| !olds.contains_key(*place))) {
        let (old, new) = (olds.get(place).copied(), news.get(place).copied());
        let Some(any) = new.or(old).filter(|_| old.map(|e| &e.body) != new.map(|e| &e.body)) else {
            continue;
        };
        *changed.entry((parent(any), &any.name)).or_default() += 1;
        let words = |entity: Option<&Entity>| entity.map(|entity| telling(&entity.body)).unwrap_or_default();
        if words(old) != words(new) {
            suspects.push(*place);
        }
    }
    let words_of_old = |name: &str| old.files.iter().any(|file| has_word(&file.bytes, name));
    let change = Change { olds: &olds, news: &news, files: &is, was_named: &words_of_old };
    let suspects: Vec<Suspect> =
        suspects.into_iter().map(|place| change.suspect(place, &mut HashSet::new())).collect();
    let is_alone = |suspect: &Suspect| changed[&(suspect.parent.clone(), &*suspect.name)] == 1;
    match suspects.is_empty() {
        true => Hiding::Nowhere,
        false if suspects.iter().all(is_alone) => Hiding::Functions(suspects),
        false => Hiding::Anywhere,
    }
}

/// All that differs.
struct Change<'c, 'f> {
    olds: &'c BTreeMap<Place<'f>, &'f Entity>,
    news: &'c BTreeMap<Place<'f>, &'f Entity>,
    files: &'c [File],
    was_named: &'c dyn Fn(&str) -> bool,
}

impl<'f> Change<'_, 'f> {
    /// `seen` are functions that are being looked at.
    fn suspect(&self, place: Place<'f>, seen: &mut HashSet<Place<'f>>) -> Suspect {
        let (old, new) = (self.olds.get(&place).copied(), self.news.get(&place).copied());
        let any = new.or(old).expect("a place of one of them");
        let users = new.filter(|new| old.is_none() && new.owner == Owner::Name);
        Suspect {
            name: any.name.clone(),
            parent: parent(any),
            is_async: any.header.iter().any(|token| token.name() == "async"),
            in_closure: old.zip(new).is_some_and(|(old, new)| closures::around(old, new).is_some()),
            users: users.and_then(|new| self.users(place, new, seen)),
        }
    }

    fn users(&self, place: Place<'f>, new: &Entity, seen: &mut HashSet<Place<'f>>) -> Option<Vec<Suspect>> {
        if (self.was_named)(&new.name) {
            return None;
        }
        let named = |tokens: &[Token]| tokens.iter().filter(|token| token.name() == new.name).count();
        let all: usize = self.files.iter().map(|file| named(&file.tokens)).sum();
        let bodies: Vec<(Place<'f>, usize)> =
            self.news.iter().map(|(at, entity)| (*at, named(&entity.body))).filter(|(_, n)| *n > 0).collect();
        // Its own name stands in its header.
        if bodies.iter().map(|(_, n)| n).sum::<usize>() + 1 != all {
            return None;
        }
        seen.insert(place);
        let users = bodies.into_iter().map(|(at, _)| at).filter(|at| !seen.contains(at)).collect::<Vec<_>>();
        Some(users.into_iter().map(|at| self.suspect(at, seen)).collect())
    }
}

/// Whether a text has this identifier.
fn has_word(text: &[u8], word: &str) -> bool {
    let is_part = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    text.windows(word.len()).enumerate().any(|(at, found)| {
        found == word.as_bytes()
            && !is_part(at.checked_sub(1).and_then(|before| text.get(before)))
            && !is_part(text.get(at + word.len()))
    })
}

/// The files of one set that the other has not, or has with other contents; `None` if that cannot be told of their items.
fn changed_files(one: &SourceSet, other: &SourceSet) -> Option<Vec<File>> {
    let macros: Vec<&str> =
        one.files.iter().chain(&other.files).filter(|f| has_macros(&f.bytes)).map(|f| &*f.path).collect();
    let packages = Packages::of(one);
    one.rust_files_unlike(other)
        .map(|file| {
            let is_macro = !macros.is_empty() && packages.may_be_in_macro(&file.path, &macros);
            if is_macro { None } else { parse(file, one.test).ok() }
        })
        .collect()
}

/// Functions, by their places. Where a place has several, none of them; nor those with types or impls in their bodies.
fn functions(files: &[File]) -> BTreeMap<Place<'_>, &Entity> {
    let mut all: BTreeMap<Place<'_>, Vec<&Entity>> = BTreeMap::new();
    for (file, entity) in files.iter().flat_map(|file| file.entities.iter().map(move |entity| (file, entity)))
    {
        // Another meaning of a macro is another meaning of what uses it.
        let behind = if defines_telling(file) { entity.behind } else { 0 };
        all.entry((&*file.path, &*entity.container, behind, &*entity.name)).or_default().push(entity);
    }
    let alone = all.into_iter().filter_map(|(place, list)| match *list {
        [one] => Some((place, one)),
        _ => None,
    });
    let is_plain = |entity: &Entity| entity.kind == ItemKind::Fn && entity.local_items.is_empty();
    alone.filter(|(_, entity): &(_, &Entity)| is_plain(entity)).collect()
}

/// Whether a macro of this file may hide something.
fn defines_telling(file: &File) -> bool {
    let mut definitions = file.macros.iter().filter(|found| found.definition);
    definitions.any(|found| found.mentions.wild || found.mentions.iter().any(is_telling))
}

/// What is told outside of the bodies of these functions, and in values of constants and statics in them.
fn outside(files: &[File], functions: &BTreeMap<Place<'_>, &Entity>) -> Vec<String> {
    let mut words = Vec::new();
    for file in files {
        let own = functions.iter().filter(|((path, ..), _)| *path == file.path);
        let mut inside: HashSet<_> = own.flat_map(|(_, e)| e.body.iter().map(Token::position)).collect();
        let values = file.entities.iter().filter(|entity| entity.kind != ItemKind::Fn);
        values.flat_map(|entity| &entity.body).for_each(|token| _ = inside.remove(&token.position()));
        words.extend(telling(file.tokens.iter().filter(|token| !inside.contains(&token.position()))));
    }
    words
}

/// The last word of what the function is in, without generic arguments.
fn parent(entity: &Entity) -> String {
    let around = entity.path.strip_suffix(&*entity.name).unwrap_or_default();
    let around = around.trim_end_matches("::");
    let head = if around.ends_with('>') { around.split('<').next().unwrap_or_default() } else { around };
    let word = |text: &str| {
        text.rsplit(|c: char| !(c.is_alphanumeric() || c == '_'))
            .find(|word| !word.is_empty())
            .map(str::to_owned)
    };
    let file = entity.span.file.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
    let file = if matches!(file, "main" | "lib" | "mod") { "" } else { file };
    word(head).unwrap_or_else(|| file.to_owned())
}

fn has_macros(bytes: &[u8]) -> bool {
    let name: &[u8] = b"proc_macro";
    bytes.windows(name.len()).any(|window| window == name)
}

fn telling<'t>(tokens: impl IntoIterator<Item = &'t Token>) -> Vec<String> {
    let names = tokens.into_iter().filter(|token| token.is_ident()).map(Token::name);
    names.filter(|name| is_telling(name)).map(str::to_owned).collect()
}

fn is_telling(name: &str) -> bool {
    WORDS.contains(&name) || PARTS.iter().any(|part| name.contains(part))
}
