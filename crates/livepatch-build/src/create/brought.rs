//! What a patch brings into the process, as later patches have to know it: what is kept of one patch has to go together with the next.

use crate::diff::call_sites::{description, is_call_site};
use crate::diff::rename::without_numbers;
use crate::diff::{Diff, Meaning};
use crate::emit::{Brought, Emitted, name_of};
use crate::guard::{self, FunctionInfo, GuardReport};
use livepatch_patch::{Digest, Identity, NewItem, NewItemKind, Tag, plain};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// New functions, statics and thread-locals.
pub(super) fn new_items(diff: &Diff<'_>, emitted: &Emitted, judged: &GuardReport) -> Vec<NewItem> {
    let functions = functions_by_path(judged);
    let statics = statics_by_path(judged);
    let described: Vec<_> = judged.functions.iter().collect();
    let also = diff.stands_for(emitted, &described);
    let item = |item: &Brought| {
        let symbol = name_of(&diff.new, item.at);
        let variable = judged.new_statics.iter().find(|info| info.symbol == symbol);
        let function = judged.functions.iter().find(|info| info.symbol == symbol);
        let call_site = item.kind != NewItemKind::Function && is_call_site(&diff.new, item.at);
        let sole = match (function, variable) {
            (Some(info), _) => functions.get(&path_of(&info.path, info.receiver.as_deref())) == Some(&1),
            (_, Some(_)) => statics.get(&path_of_static(symbol)) == Some(&1),
            _ => false,
        };
        NewItem {
            path: guard::demangle(symbol),
            symbol: item.symbol,
            kind: item.kind,
            type_digest: variable.map(|info| match call_site {
                true => {
                    Digest::of(format!("{} {}", info.type_digest, description(&diff.new, item.at)).as_bytes())
                }
                false => info.type_digest,
            }),
            identity: function.and_then(identity),
            sole,
            call_site,
            also: also.get(&item.at).into_iter().flatten().cloned().collect(),
        }
    };
    emitted.brought.iter().map(item).collect()
}

/// What stays the same when `impl` blocks before it come and go.
fn path_of(path: &str, receiver: Option<&str>) -> (String, Option<String>) {
    (without_numbers(path), receiver.map(without_numbers))
}

/// How many functions of patched code, also inlined ones, go by the same path.
fn functions_by_path(judged: &GuardReport) -> BTreeMap<(String, Option<String>), usize> {
    let own = judged.functions.iter().map(|info| (&info.path, &info.receiver, Some(&info.symbol)));
    let inlined = judged.functions.iter().flat_map(|info| &info.inlined);
    let inlined = inlined.map(|function| (&function.path, &function.receiver, function.symbol.as_ref()));
    let mut symbols: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    for (path, receiver, symbol) in own.chain(inlined) {
        let symbol = symbol.map_or("", |symbol| plain(symbol));
        symbols.entry(path_of(path, receiver.as_deref())).or_default().insert(symbol);
    }
    symbols.into_iter().map(|(path, symbols)| (path, symbols.len())).collect()
}

/// How many new variables have a symbol of the same path, in which closures and items of one name have no number.
fn statics_by_path(judged: &GuardReport) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for info in &judged.new_statics {
        *counts.entry(path_of_static(&info.symbol)).or_default() += 1;
    }
    counts
}

/// Parts of a variable (`X.0`) are variables of their own.
fn path_of_static(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(plain(symbol)))
}

/// Which function of the source it is; `None` for what is known by a number: closures and async bodies, what is in one, or generic
/// over one.
fn identity(info: &FunctionInfo) -> Option<Identity> {
    let receiver = info.receiver.as_deref().unwrap_or_default();
    let numbered = [info.path.as_str(), receiver]
        .iter()
        .any(|text| text.contains("{closure") || text.contains("{async") || text.contains("{coroutine"));
    // The symbol tells the trait.
    let (path, receiver) = path_of(&info.path, info.receiver.as_deref());
    let function = format!("{} {path} {receiver:?}", guard::demangle(&info.symbol));
    (!numbered).then(|| Identity { function: Tag::of(&function), interface: Tag::of(&info.interface) })
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

/// New variables that are not in the patch as they are declared.
pub(super) fn vanished(diff: &Diff<'_>, emitted: &Emitted) -> BTreeSet<Tag> {
    let own = own_symbols(emitted);
    let new = diff.meaning.any().into_iter().flat_map(Meaning::new_variables);
    new.filter(|symbol| !own.contains(plain(symbol))).map(Tag::of_symbol).collect()
}

fn own_symbols(emitted: &Emitted) -> HashSet<&str> {
    emitted.symbols.iter().map(|symbol| plain(&symbol.name)).collect()
}
