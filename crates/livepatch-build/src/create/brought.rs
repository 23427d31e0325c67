//! What a patch brings into the process, as later patches have to know it: what is kept of one patch has to go together with the next.

use super::describe::Builds;
use super::notes::{of_macro, parts};
use crate::diff::call_sites::{description, is_call_site};
use crate::diff::callers::callers;
use crate::diff::rename::without_numbers;
use crate::diff::traces::last_name;
use crate::diff::{Diff, Meaning};
use crate::emit::{Brought, Emitted, name_of};
use crate::findings::Place;
use crate::guard::{self, Callers, FunctionInfo, GuardReport};
use crate::source::{Anonymous, Body, SourceDiff, same_file};
use livepatch_patch::{
    Digest, Identity, NewItem, NewItemKind, NewType, Number, Once, Stands, Symbol, SymbolId, Tag, plain,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// New functions, statics and thread-locals.
pub(super) fn new_items(
    diff: &Diff<'_>,
    emitted: &Emitted,
    judged: &GuardReport,
    known: &Known<'_>,
) -> Vec<NewItem> {
    let functions = functions_by_name(judged);
    let statics = statics_by_path(diff, emitted);
    let also = diff.stands_for(emitted, &judged.functions);
    let callers = callers(&diff.new, &emitted.brought.iter().map(|item| item.at).collect());
    let item = |item: &Brought| {
        let symbol = name_of(&diff.new, item.at);
        let variable = judged.new_statics.iter().find(|info| info.symbol == symbol);
        let function = judged.functions.iter().find(|info| info.symbol == symbol);
        let call_site = item.kind != NewItemKind::Function && is_call_site(&diff.new, item.at);
        let sole = match (function, variable) {
            (Some(info), _) => {
                functions.get(&names_of(&info.symbol, &info.path, info.receiver.as_deref())) == Some(&1)
            }
            _ => statics.get(&path_of_static(symbol)) == Some(&1),
        };
        NewItem {
            path: guard::demangle(symbol),
            symbol: item.symbol,
            kind: item.kind,
            type_digest: match variable {
                Some(info) if call_site => Some(Digest::of(
                    format!("{} {}", info.type_digest, description(&diff.new, item.at)).as_bytes(),
                )),
                Some(info) => Some(info.type_digest),
                None => known.type_of_others(&guard::demangle(symbol)).filter(|_| function.is_none()),
            },
            identity: function.and_then(|info| identity(info, callers[&item.at], known)),
            sole,
            call_site,
            also: also.get(&item.at).into_iter().flatten().cloned().collect(),
        }
    };
    emitted.brought.iter().map(item).collect()
}

/// Names of a function that stay the same when `impl` blocks before it come and go. The symbol tells the trait, the path generic
/// arguments, the receiver what `Self` is.
type Names = [String; 3];

fn names_of(symbol: &str, path: &str, receiver: Option<&str>) -> Names {
    [guard::demangle(symbol), without_numbers(path), receiver.map(without_numbers).unwrap_or_default()]
}

/// How many functions of patched code, also inlined ones, go by the same names.
fn functions_by_name(judged: &GuardReport) -> BTreeMap<Names, usize> {
    let own = judged.functions.iter().map(|info| (info.symbol.as_str(), &info.path, &info.receiver));
    let inlined = judged
        .functions
        .iter()
        .flat_map(|info| &info.inlined)
        .filter_map(|function| Some((function.symbol.as_deref()?, &function.path, &function.receiver)));
    let mut symbols: BTreeMap<Names, BTreeSet<&str>> = BTreeMap::new();
    for (symbol, path, receiver) in own.chain(inlined) {
        symbols.entry(names_of(symbol, path, receiver.as_deref())).or_default().insert(plain(symbol));
    }
    symbols.into_iter().map(|(names, symbols)| (names, symbols.len())).collect()
}

/// How many new variables have a symbol of the same path, in which closures and items of one name have no number.
fn statics_by_path(diff: &Diff<'_>, emitted: &Emitted) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for item in emitted.brought.iter().filter(|item| item.kind != NewItemKind::Function) {
        *counts.entry(path_of_static(name_of(&diff.new, item.at))).or_default() += 1;
    }
    counts
}

/// Parts of a variable (`X.0`) are variables of their own.
fn path_of_static(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(plain(symbol)))
}

/// Which function of the source it is; `None` for what is known by a number, such as a closure, or what is generic over one, if the source does
/// not tell what that number stands for. The body of an `async fn` is known by the function's name, where the source tells what it awaits.
fn identity(info: &FunctionInfo, callers: Callers, known: &Known<'_>) -> Option<Identity> {
    let texts = [Some(info.path.as_str()), info.receiver.as_deref()];
    let numbers = texts.into_iter().flatten().map(|text| known.numbers(text)).collect::<Option<Vec<_>>>()?;
    let function = names_of(&info.symbol, &info.path, info.receiver.as_deref()).join(" ");
    let returns = if info.convention.may_drop_result(callers) { "perhaps nothing" } else { "as declared" };
    let interface = format!("{} {returns} {:?}", info.interface, known.calling(&info.path)?);
    let numbers = numbers.into_iter().flatten().collect();
    Some(Identity { function: Tag::of(&function), interface: Tag::of(&interface), numbers })
}

/// What names may be told by.
pub(super) struct Known<'k> {
    /// Crates of others, whose closures have the same numbers in both builds.
    pub unchanged: &'k BTreeSet<String>,
    pub source: &'k SourceDiff,
    pub judged: &'k GuardReport,
    /// Where functions are declared, by path.
    places: HashMap<&'k str, &'k Place>,
    pub meaning: Option<&'k Meaning>,
}

impl<'k> Known<'k> {
    pub(super) fn new(builds: &'k Builds<'k>, judged: &'k GuardReport, meaning: Option<&'k Meaning>) -> Self {
        let own = judged.functions.iter().map(|info| (info.path.as_str(), &info.place));
        let inlined = judged.functions.iter().flat_map(|info| &info.inlined);
        let inlined = inlined.map(|function| (function.path.as_str(), &function.place));
        let mut places = HashMap::new();
        for (path, place) in own.chain(inlined) {
            if let Some(place) = place {
                places.entry(path).or_insert(place);
            }
        }
        Self { unchanged: builds.unchanged, source: builds.source, judged, places, meaning }
    }

    /// New functions that compute what is kept once it is there. What each does is told by the source or, if a macro made it, by raw code.
    pub(super) fn once(&self, initialisers: &BTreeMap<&str, Option<&str>>) -> Vec<Once> {
        let mut found = BTreeMap::new();
        for (symbol, path, _) in self.judged.functions.iter().flat_map(parts) {
            let Some(keeper) = initialisers.get(plain(symbol)) else { continue };
            let raw = || self.meaning?.code_of(symbol).map(|code| Tag::of(&code));
            let Some(body) = self.text(path).or_else(raw) else { continue };
            let (path, keeper) = (
                of_macro(path).to_owned(),
                keeper.map(|keeper| guard::as_declared(&guard::demangle(keeper))),
            );
            found.entry(path.clone()).or_insert(Once { path, keeper, body });
        }
        found.into_values().collect()
    }

    /// The text of a function or closure, where that is known.
    fn text(&self, path: &str) -> Option<Tag> {
        if MARKS.iter().any(|mark| path.contains(mark)) {
            let number = self.number(path)?;
            return number.all.get(number.own as usize).map(|(_, text)| *text);
        }
        self.body(path, path).map(|body| Tag::of(&body.text))
    }

    /// What stands for the numbers in a path or type; `None` if that is not known of one.
    fn numbers(&self, text: &str) -> Option<Vec<Number>> {
        let numbered = labels(text).filter(|(parent, label)| {
            !(guard::is_of_others(parent, self.unchanged)
                || label.starts_with("{async_fn") && self.bodies(parent).is_some())
        });
        numbered.map(|(parent, label)| self.number(&format!("{parent}::{label}"))).collect()
    }

    /// What stands for the last number of a path.
    fn number(&self, path: &str) -> Option<Number> {
        let mark = MARKS.iter().filter_map(|mark| path.find(mark)).min()?;
        let (function, labels) = (path[..mark].trim_end_matches("::"), &path[mark..]);
        let mut level = self.body(function, path)?.anonymous.as_ref()?;
        let mut number = None;
        for label in labels.split("::") {
            let own: u32 = label.rsplit_once('#')?.1.strip_suffix('}')?.parse().ok()?;
            let tags = |one: &Anonymous| (Tag::of(&one.header), Tag::of(&one.text));
            let (all, around) = (level.all.iter().map(tags).collect(), Tag::of(&level.macros));
            number = Some(Number { own, all, around });
            level = &level.all.get(own as usize)?.inner;
        }
        number
    }

    /// The body of a function or value: the one that the place of what is in it tells, or, where none is known, the only one of its name.
    fn body(&self, path: &str, within: &str) -> Option<&Body> {
        // Of a closure's type the name says that it is its environment.
        let place = self.places.get(within.replace("_env#", "#").as_str());
        let holds = |body: &&Body| {
            let lines = body.span.first_line..=body.span.last_line;
            place.is_none_or(|place| same_file(&body.span.file, &place.file) && lines.contains(&place.line))
        };
        let mut holding = self.named(path)?.filter(holds);
        holding.next().filter(|_| holding.next().is_none())
    }

    /// What stands for the type of a variable without debug information: in a crate that did not change it is the same in all builds.
    fn type_of_others(&self, path: &str) -> Option<Digest> {
        guard::is_of_others(path, self.unchanged).then(|| Digest::of(path.as_bytes()))
    }

    /// Functions of a name in files that changed. What a patch brings is there, or of a crate of others.
    fn named(&self, path: &str) -> Option<impl Iterator<Item = &Body>> {
        let name = last_name(path).to_owned();
        Some(self.source.bodies()?.iter().filter(move |body| body.name == name))
    }

    /// What the source says of how a function is called; `None` if it is not known.
    fn calling(&self, path: &str) -> Option<Vec<&str>> {
        Some(self.named(path)?.map(|body| body.calling.as_str()).filter(|text| !text.is_empty()).collect())
    }

    /// The functions of a name, if the source has one.
    fn bodies(&self, parent: &str) -> Option<Vec<&Body>> {
        Some(self.named(parent)?.collect()).filter(|bodies: &Vec<_>| !bodies.is_empty())
    }

    /// New types, futures with what their layouts do not tell: in which order they wait, and whose values their flags are for.
    pub(super) fn types(&self, types: &[NewType]) -> Vec<NewType> {
        let whole = |of: &NewType| {
            let awaiting = labels(&of.name).filter(|(_, label)| label.starts_with("{async"));
            let (mut awaits, mut further) = (Vec::new(), Vec::new());
            for (parent, _) in awaiting {
                let end = MARKS.iter().filter_map(|mark| parent.find(mark)).min();
                let function = end.map_or(parent, |end| parent[..end].trim_end_matches("::"));
                let bodies = self.bodies(function);
                match bodies.as_deref() {
                    Some([body]) => awaits.push(body.awaits.clone()),
                    // Which one it is of several is not known.
                    Some(bodies) => further.extend(bodies.iter().map(|body| format!("{:?}", body.awaits))),
                    None => {}
                }
                further.extend(bodies.into_iter().flatten().flat_map(|body| body.unnamed.clone()));
                let drops = self.meaning.map(|meaning| meaning.drop_of(last_name(function)));
                further.push(format!("{drops:?}"));
            }
            if further.is_empty() {
                return of.clone();
            }
            let digest = Digest::of(format!("{} {further:?}", of.digest).as_bytes());
            NewType { name: of.name.clone(), digest, awaits }
        };
        types.iter().map(whole).collect()
    }
}

/// How labels of closures and bodies begin.
const MARKS: [&str; 3] = ["{closure", "{async", "{coroutine"];

/// The closures and bodies that a path or type names, each with the path of what it is in.
fn labels(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let starts = text.match_indices('{').map(|(at, _)| at);
    let starts = starts.filter(|at| MARKS.iter().any(|mark| text[*at..].starts_with(mark)));
    starts.map(|at| {
        let in_path = |c: char| c.is_alphanumeric() || "_:{}#".contains(c);
        let begin = text[..at].char_indices().rev().take_while(|(_, c)| in_path(*c)).last();
        let parent = &text[begin.map_or(at, |(begin, _)| begin)..at];
        let end = text[at..].find('}').map_or(text.len(), |end| at + end + 1);
        (parent.trim_end_matches("::"), &text[at..end])
    })
}

/// Functions that are not what they were, and that the patch has only inside of others.
pub(super) fn inlined(diff: &Diff<'_>, emitted: &Emitted, judged: &GuardReport) -> BTreeSet<Tag> {
    let own = own_symbols(emitted);
    let meaning = diff.meaning.any();
    let inlined = judged.functions.iter().flat_map(|info| &info.inlined);
    let differ = inlined.filter(|function| meaning.is_none_or(|meaning| meaning.may_differ(function)));
    let changed = meaning.into_iter().flat_map(Meaning::changed_functions);
    let symbols = differ.filter_map(|function| function.symbol.as_deref()).chain(changed);
    symbols.filter(|symbol| !own.contains(plain(symbol))).map(Tag::of_symbol).collect()
}

/// Functions of the source that was shipped which the patch has for its own code alone, and that may not be what they were.
pub(super) fn altered(diff: &Diff<'_>, emitted: &Emitted, unchanged: &BTreeSet<String>) -> BTreeSet<Tag> {
    let brought: HashSet<SymbolId> = emitted.brought.iter().map(|item| item.symbol).collect();
    let meaning = diff.meaning.any();
    let may_differ = |name: &str| meaning.is_none_or(|meaning| meaning.may_lead_to_change(name, unchanged));
    let was_there = |name: &str| match meaning {
        Some(meaning) => meaning.had(name),
        None => !diff.old.image.symbols(name).is_empty(),
    };
    let altered = copies(emitted).filter(|(at, symbol)| {
        (!brought.contains(at) || was_there(&symbol.name)) && may_differ(&symbol.name)
    });
    altered.map(|(_, symbol)| Tag::of_symbol(&symbol.name)).collect()
}

/// Functions of the source that was shipped which do what they did, and which the patch has for its own code alone or has code that may
/// stand for.
pub(super) fn same(
    diff: &Diff<'_>,
    emitted: &Emitted,
    (items, stands): (&[NewItem], &[Stands]),
    unchanged: &BTreeSet<String>,
) -> BTreeSet<Tag> {
    let Some(meaning) = diff.meaning.all() else { return BTreeSet::new() };
    let is_same = |name: &&str| {
        (meaning.had(name) || !diff.old.image.symbols(name).is_empty())
            && !meaning.may_lead_to_change(name, unchanged)
    };
    let also = items.iter().map(|item| &item.also).chain(stands.iter().map(|of| &of.also));
    let also = also.flatten().map(String::as_str);
    let names = copies(emitted).map(|(_, symbol)| symbol.name.as_str()).chain(also);
    names.filter(is_same).map(Tag::of_symbol).collect()
}

/// Functions of the patch that replace none of the image.
fn copies(emitted: &Emitted) -> impl Iterator<Item = (SymbolId, &Symbol)> {
    let replaced: HashSet<SymbolId> = emitted.replaced.iter().map(|replaced| replaced.symbol).collect();
    let symbols = emitted.symbols.iter().enumerate().map(|(at, symbol)| (SymbolId(at as u32), symbol));
    symbols.filter(move |(at, symbol)| !replaced.contains(at) && emitted.is_code(symbol))
}

/// Functions of the image to which the patch leads where the source has new ones of the same code.
pub(super) fn stands(diff: &Diff<'_>, emitted: &Emitted, judged: &GuardReport) -> Vec<Stands> {
    let found = diff.image_stands_for(emitted, &judged.functions);
    found.into_iter().map(|(symbol, also)| Stands { symbol, also: also.into_iter().collect() }).collect()
}

/// New variables that are not in the patch as they are declared.
pub(super) fn vanished(diff: &Diff<'_>, emitted: &Emitted) -> BTreeSet<Tag> {
    let own = own_symbols(emitted);
    let new = diff.meaning.any().into_iter().flat_map(Meaning::new_variables);
    new.filter(|symbol| !own.contains(plain(symbol))).map(Tag::of_symbol).collect()
}

fn own_symbols(emitted: &Emitted) -> HashSet<&str> {
    emitted.symbols.iter().map(|symbol| plain(&symbol.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::labels;

    #[test]
    fn what_closures_are_in() {
        let found = |text| labels(text).collect::<Vec<_>>();
        assert_eq!(found("app::work::{async_fn#0}"), [("app::work", "{async_fn#0}")]);
        assert_eq!(
            found("std::sync::once::Once::call_once::{closure#0}<app::{impl#1}::get::{closure_env#2}>"),
            [("std::sync::once::Once::call_once", "{closure#0}"), ("app::{impl#1}::get", "{closure_env#2}")]
        );
        assert_eq!(
            found("app::work::{async_fn#0}::{async_block#1}"),
            [("app::work", "{async_fn#0}"), ("app::work::{async_fn#0}", "{async_block#1}")]
        );
        assert!(found("app::{impl#0}::run").is_empty());
    }
}
