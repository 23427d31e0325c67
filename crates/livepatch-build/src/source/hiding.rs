//! Changes that raw code may not show.
//!
//! On x86-64 some things steer the optimiser without a trace in the machine code of the function that says them: how a
//! memory access is ordered or that it is volatile, promises about values. Where any of that changed, raw code is no
//! witness, unless it was changed in bodies of functions alone, and raw code tells of each of these for another reason: then all that the
//! change can reach leads there.

use super::SourceSet;
use super::items::Entity;
use super::macros::Packages;
use super::tokens::{Token, flatten};
use proc_macro2::TokenStream;

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
    /// In the bodies of the functions of these names only, each with whether in a closure of it. Where raw code changed for another
    /// reason, it is known to be changed.
    Functions(Vec<(String, bool)>),
    /// Perhaps in code that did not change itself.
    Anywhere,
}

/// The body of a changed function on one side: its file, where it begins and ends, and the telling words in it.
#[derive(Clone, Debug)]
struct Body {
    file: String,
    extent: ((u32, u32), (u32, u32)),
    words: Vec<String>,
}

/// A function whose body changed, with whether all of the change is in one of its closures.
#[derive(Clone, Debug)]
pub(super) struct Telling {
    name: (String, bool),
    old: Option<Body>,
    new: Option<Body>,
}

impl Telling {
    pub(super) fn of(name: (String, bool), old: Option<&Entity>, new: Option<&Entity>) -> Self {
        let body = |entity: &Entity| {
            let extent = (entity.body.first()?.position(), entity.body.last()?.position());
            Some(Body { file: entity.span.file.clone(), extent, words: telling(entity.body.iter()) })
        };
        Self { name, old: old.and_then(body), new: new.and_then(body) }
    }
}

/// Whether the difference between two sets of sources may be such a change; `functions` are those whose bodies changed.
pub(super) fn between(old: &SourceSet, new: &SourceSet, functions: &[Telling]) -> Hiding {
    let macros: Vec<&str> =
        old.files.iter().chain(&new.files).filter(|f| has_macros(&f.bytes)).map(|f| &*f.path).collect();
    let packages = Packages::of(new);
    let changed = |one: &SourceSet, other: &SourceSet, bodies: &[&Body]| -> Option<Vec<String>> {
        let mut words = Vec::new();
        for file in one.files.iter().filter(|file| file.is_rust()) {
            let at = other.files.binary_search_by(|other| other.path.cmp(&file.path));
            if at.is_ok_and(|at| other.files[at].bytes == file.bytes) {
                continue;
            }
            if !macros.is_empty() && packages.may_be_in_macro(&file.path, &macros) {
                return None;
            }
            let bodies: Vec<_> = bodies.iter().filter(|body| body.file == file.path).collect();
            let outside = |token: &&Token| {
                bodies.iter().all(|body| !(body.extent.0..=body.extent.1).contains(&token.position()))
            };
            words.extend(telling(tokens(&file.bytes)?.iter().filter(outside)));
        }
        Some(words)
    };
    let bodies = |side: fn(&Telling) -> Option<&Body>| functions.iter().filter_map(side).collect::<Vec<_>>();
    let was = changed(old, new, &bodies(|function| function.old.as_ref()));
    let is = changed(new, old, &bodies(|function| function.new.as_ref()));
    if was.is_none() || was != is {
        return Hiding::Anywhere;
    }
    let words = |body: &Option<Body>| body.as_ref().map(|body| body.words.clone()).unwrap_or_default();
    let differ = functions.iter().filter(|function| words(&function.old) != words(&function.new));
    let names: Vec<_> = differ.map(|function| function.name.clone()).collect();
    if names.is_empty() { Hiding::Nowhere } else { Hiding::Functions(names) }
}

fn has_macros(bytes: &[u8]) -> bool {
    let name: &[u8] = b"proc_macro";
    bytes.windows(name.len()).any(|window| window == name)
}

fn tokens(bytes: &[u8]) -> Option<Vec<Token>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let tokens = text.parse::<TokenStream>().ok().map(flatten);
    proc_macro2::extra::invalidate_current_thread_spans();
    tokens
}

fn telling<'t>(tokens: impl Iterator<Item = &'t Token>) -> Vec<String> {
    let names = tokens.filter(|token| token.is_ident()).map(Token::name);
    let telling = names.filter(|name| WORDS.contains(name) || PARTS.iter().any(|part| name.contains(part)));
    telling.map(str::to_owned).collect()
}
