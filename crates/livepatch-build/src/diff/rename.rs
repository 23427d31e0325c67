//! Symbols that changed although what they name did not.
//!
//! The compiler hashes into a symbol how many `impl` blocks stand before that of a method in its module. A block that is
//! added, removed or moved so renames the methods of all blocks behind it, their closures and what is nested in them. What is
//! there under one symbol in the old program only, and under another in the new one only, and is the same by all else that is
//! known of it, is read under the old name in the new program ([`Program::set_aliases`]).
//!
//! | of the program ([`of_programs`]) | of raw code ([`by_order`]) |
//! |---|---|
//! | functions by the path and the type of debug information, generic arguments included, and by what they take and return; variables by their path | by the path of the symbol, and the order in which they stand |
//! | a wrong pair would redirect a function to another one, so what is not unique is left alone | a wrong pair shows itself by other code, and then both count as changed |

use super::described::described;
use super::names::{is_mangled, normalise};
use super::pair::ByName;
use super::program::{At, Program};
use crate::build::Build;
use crate::guard::{FunctionInfo, GuardError, demangle};
use crate::objects::Kind;
use std::collections::{BTreeMap, HashMap};

/// New names and the old ones that stand for them.
pub(super) type Aliases<'a> = HashMap<&'a str, &'a str>;

/// What a symbol says but for the hash: names of one source path have it in common.
pub(crate) fn base(symbol: &str) -> Option<String> {
    let symbol = normalise(symbol);
    if let Some(path) = symbol.strip_prefix("_ZN") {
        let hash = path.len().checked_sub("17h0123456789abcdefE".len())?;
        return path.get(hash..)?.starts_with("17h").then(|| path[..hash].to_owned());
    }
    is_mangled(symbol).then(|| demangle(symbol))
}

/// Names that only one of the programs has, by what they have in common, if both have some.
fn groups<'a>(old: &ByName<'a>, new: &ByName<'a>) -> Vec<[Vec<(&'a str, At)>; 2]> {
    let mut groups: BTreeMap<String, [Vec<(&'a str, At)>; 2]> = BTreeMap::new();
    for (side, (these, others)) in [(old, new), (new, old)].into_iter().enumerate() {
        for (name, ats) in these.iter().filter(|(name, _)| !others.contains_key(*name)) {
            if let (Some(base), Some(at)) = (base(name), ats.first()) {
                groups.entry(base).or_default()[side].push((name, *at));
            }
        }
    }
    groups.into_values().filter(|[old, new]| !old.is_empty() && !new.is_empty()).collect()
}

/// Pairs names of raw code.
pub(super) fn by_order<'a>(old: &ByName<'a>, new: &ByName<'a>) -> Aliases<'a> {
    let mut aliases = Aliases::new();
    for [mut old, mut new] in groups(old, new) {
        old.sort_by_key(|(_, at)| *at);
        new.sort_by_key(|(_, at)| *at);
        if old.len() == new.len() {
            aliases.extend(new.iter().zip(&old).map(|((new, _), (old, _))| (*new, *old)));
        }
    }
    aliases
}

/// What is known of symbols that only one of two programs has.
#[derive(Default)]
pub(super) struct Renamed<'a> {
    pub(super) aliases: Aliases<'a>,
    /// Old functions, and new ones of the same path that take or return something else.
    pub(super) called_otherwise: Vec<(At, At)>,
}

/// Pairs names of two linked programs.
///
/// # Errors
/// Debug information that cannot be read.
pub(super) fn of_programs<'a>(
    (old, old_names, old_build): (&Program<'a>, &ByName<'a>, &Build),
    (new, new_names, new_build): (&Program<'a>, &ByName<'a>, &Build),
) -> Result<Renamed<'a>, GuardError> {
    let groups = groups(old_names, new_names);
    let mut renamed = Renamed::default();
    if groups.is_empty() {
        return Ok(renamed);
    }
    let side = |side: usize| groups.iter().flat_map(move |group| group[side].iter().copied());
    let was = identities(old, side(0), old_build)?;
    let is = identities(new, side(1), new_build)?;
    for [olds, news] in &groups {
        for (new_name, new_at) in news {
            let own = is.get(new_at);
            let is_same = |old_at: &At| {
                let kinds = (old.section(*old_at).kind, new.section(*new_at).kind);
                match (was.get(old_at), own) {
                    (Some(was), Some(is)) => was.became(is) && kinds == (Kind::Text, Kind::Text),
                    (None, None) => kinds.0 == kinds.1 && kinds.0 != Kind::Text,
                    _ => false,
                }
            };
            let fitting: Vec<_> = olds.iter().filter(|(_, at)| is_same(at)).collect();
            let rivals =
                news.iter().filter(|(_, at)| is.get(at).map(|is| &is.same) == own.map(|is| &is.same));
            if let ([(old_name, _)], 1) = (&*fitting, rivals.count()) {
                renamed.aliases.insert(*new_name, *old_name);
            }
            let is_otherwise = |at: &At| was.get(at).zip(own).is_some_and(|(was, is)| was.is_otherwise(is));
            let otherwise = olds.iter().map(|(_, at)| *at).filter(is_otherwise);
            renamed.called_otherwise.extend(otherwise.map(|old_at| (old_at, *new_at)));
        }
    }
    tracing::debug!(aliases = ?renamed.aliases, "renamed");
    Ok(renamed)
}

/// What debug information says of a function: its path, and the type that it is a method of.
struct Identity {
    /// As it is.
    whole: (String, Option<String>),
    /// Without the numbers of `impl` blocks.
    same: (String, Option<String>),
    /// What it takes and returns, without those numbers.
    signature: String,
}

impl Identity {
    fn of(info: &FunctionInfo) -> Self {
        let same = (without_numbers(&info.path), info.receiver.as_deref().map(without_numbers));
        let whole = (info.path.clone(), info.receiver.clone());
        Self { whole, same, signature: without_numbers(&info.signature) }
    }

    /// Whether it is the same function behind another number of `impl` blocks. The path of an inherent method does not have that
    /// number. Where a closure is among the generic arguments and no number changed, its captures did. A function that takes or returns
    /// something else has another symbol because of that (legacy mangling): nobody can call the one as the other, and it is a new one, as if
    /// it had another name.
    fn became(&self, new: &Self) -> bool {
        let (path, receiver) = &self.same;
        let text = [Some(path), receiver.as_ref()];
        let closures =
            text.into_iter().flatten().any(|text| text.contains("{closure") || text.contains("{async"));
        let is_same = self.same == new.same && self.signature == new.signature;
        is_same && (!closures || self.whole != new.whole)
    }

    /// Whether it has the path of this one and takes or returns something else.
    fn is_otherwise(&self, new: &Self) -> bool {
        self.same == new.same && self.signature != new.signature
    }
}

fn identities<'a>(
    program: &Program<'a>,
    names: impl Iterator<Item = (&'a str, At)>,
    build: &Build,
) -> Result<HashMap<At, Identity>, GuardError> {
    let infos = described(program, build, names.map(|(_, at)| at))?;
    Ok(infos.into_iter().map(|(at, info)| (at, Identity::of(&info))).collect())
}

/// A path without the numbers of `impl` blocks in it.
pub(crate) fn without_numbers(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find("{impl#") {
        out.push_str(&rest[..at]);
        out.push_str("{impl}");
        rest = rest[at..].find('}').map_or("", |end| &rest[at + end + 1..]);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_symbols_of_one_path_have_in_common() {
        let one = base("_ZN3app3ops5Scale3run17h0123456789abcdefE.llvm.77").unwrap();
        assert_eq!(base("_ZN3app3ops5Scale3run17hfedcba9876543210E").as_ref(), Some(&one));
        assert_ne!(base("_ZN3app3ops5Scale4name17hfedcba9876543210E").as_ref(), Some(&one));
        assert_eq!(base("_RNvMs_Cs1234_3appNtB4_5Scale3run"), base("_RNvMs0_Cs1234_3appNtB5_5Scale3run"));
        assert_eq!(base("main"), None);
    }

    #[test]
    fn numbers_of_blocks_do_not_count() {
        assert_eq!(without_numbers("app::{impl#3}::run::{closure#1}"), "app::{impl}::run::{closure#1}");
        assert_eq!(without_numbers("app::run<u8>"), "app::run<u8>");
    }
}
