//! The changed items of the source that the code of a function holds.
//!
//! What is inlined visibly, debug information names. What was inlined and computed away is among the names that the function's source
//! mentions more often than its code shows them (`diff/traces.rs`). A name can stand for several changed items: raw code says which of them
//! the function can have met, and what their full names are. The name of a macro or constant stands for the changed items that it is
//! made of.

use super::describe::Builds;
use super::origin::name;
use crate::diff::program::{At, Program};
use crate::diff::traces::{Traces, family, last_name};
use crate::diff::{Diff, Meaning};
use crate::emit::Replaced;
use crate::findings::Place;
use crate::guard::{FunctionInfo, FunctionRef, demangle};
use crate::source::{ChangedItem, ItemKind, Side, Tainted, same_file};
use livepatch_patch::item::{Hints, ItemName, segments, without_arguments};
use std::collections::{BTreeMap, HashMap};

/// What changed in the source, and where it can have gone.
pub(super) struct Source<'s> {
    items: &'s [ChangedItem],
    tainted: &'s Tainted,
    traces: Traces<'s, 's>,
    program: &'s Program<'s>,
    /// What raw code tells of the program's own crates.
    names: Option<&'s Meaning>,
    /// The same if it tells of everything.
    meaning: Option<&'s Meaning>,
    /// Functions of the patch and what is inlined into them, by symbol.
    described: HashMap<&'s str, Described<'s>>,
    functions: &'s [FunctionInfo],
    linked: &'s str,
}

/// Path, receiver and place of a function.
type Described<'s> = (&'s str, Option<&'s str>, Option<&'s Place>);

impl<'s> Source<'s> {
    pub(super) fn new(
        builds: &'s Builds<'_>,
        diff: &'s Diff<'s>,
        (items, tainted): (&'s [ChangedItem], &'s Tainted),
        functions: &'s [FunctionInfo],
    ) -> Self {
        let inlined = functions.iter().flat_map(|info| &info.inlined);
        let inlined = inlined.filter_map(|f| {
            Some((f.symbol.as_deref()?, (&*f.path, f.receiver.as_deref(), f.place.as_ref())))
        });
        let own = functions.iter().map(|f| (&*f.symbol, (&*f.path, f.receiver.as_deref(), f.place.as_ref())));
        Self {
            items,
            tainted,
            traces: Traces::new(&diff.new, Side::New),
            program: &diff.new,
            names: diff.meaning.any(),
            meaning: diff.meaning.all().filter(|meaning| meaning.tells_all(builds.source)),
            described: inlined.chain(own).collect(),
            functions,
            linked: &builds.new.manifest.link.crate_name,
        }
    }

    /// The changed items in a function's code, and whether there are certainly no others.
    pub(super) fn held(
        &self,
        replaced: &Replaced,
        own: &ItemName,
        info: Option<&FunctionInfo>,
    ) -> (Vec<ItemName>, bool) {
        let Some(info) = info else { return (vec![own.clone()], false) };
        let mut held: BTreeMap<String, ItemName> = BTreeMap::new();
        let mut hold = |item: ItemName| {
            held.entry(item.key()).or_insert(item);
        };
        if self.changed(info.place.as_ref()) {
            hold(own.clone());
        }
        for inlined in info.inlined.iter().filter(|inlined| self.changed(inlined.place.as_ref())) {
            let symbol = inlined.symbol.as_deref().unwrap_or(&inlined.path);
            hold(self.named(
                symbol,
                Some(&inlined.path),
                inlined.receiver.as_deref(),
                inlined.place.as_ref(),
            ));
        }
        let Some(missing) = self.traces.missing(self.tainted, replaced.new, info) else {
            return (held.into_values().collect(), false);
        };
        let lost = self.lost(replaced, info);
        let mut certain = true;
        let places =
            || info.inlined.iter().map(|inlined| inlined.place.as_ref()).chain([info.place.as_ref()]);
        let is_shown =
            |item: &&ChangedItem| places().any(|place| self.is_in(std::slice::from_ref(*item), place));
        for (word, untraced) in missing {
            let mut named: Vec<&ChangedItem> = self.items.iter().filter(|item| item.name == word).collect();
            if named.is_empty() && untraced {
                // A macro, a constant or a function that has something of the changed items in it.
                let behind = self.tainted.behind(&word);
                named = self.items.iter().filter(|item| behind.contains(item.name.as_str())).collect();
            }
            certain &= !named.is_empty() || !untraced;
            let hidden = named.into_iter().filter(|item| !is_shown(item));
            hidden.flat_map(|item| self.meant(item, lost.as_deref())).for_each(&mut hold);
        }
        (held.into_values().collect(), certain)
    }

    /// The changed items, of those that the old source has, in the code of a function that a replaced one brings along.
    pub(super) fn carried(&self, info: &FunctionInfo) -> Vec<ItemName> {
        let existing = |place: Option<&Place>| {
            let mut items = self.items.iter().filter(|item| item.old.is_some());
            items.any(|item| self.is_in(std::slice::from_ref(item), place))
        };
        let own = (info.symbol.as_str(), &info.path, info.receiver.as_deref(), info.place.as_ref());
        let inlined = info.inlined.iter().map(|inlined| {
            let symbol = inlined.symbol.as_deref().unwrap_or(&inlined.path);
            (symbol, &inlined.path, inlined.receiver.as_deref(), inlined.place.as_ref())
        });
        let held = std::iter::once(own).chain(inlined).filter(|(.., place)| existing(*place));
        held.map(|(symbol, path, receiver, place)| self.named(symbol, Some(path), receiver, place)).collect()
    }

    /// Changed functions that have the code of this old function because the optimiser made one of all with equal code.
    pub(super) fn merged(&self, diff: &Diff<'_>, old: At) -> Vec<ItemName> {
        let symbols = self.names.map(|names| names.merged_into(&diff.old, old)).unwrap_or_default();
        symbols.into_iter().map(|symbol| self.described(symbol)).collect()
    }

    /// Names, as raw code has them, of changed functions that were computed away in this one and what is inlined into it; `None`
    /// where raw code does not tell: a function that differs although its own text did not change has something of another one in it,
    /// which the compiler put there before it made raw code.
    fn lost(&self, replaced: &Replaced, info: &FunctionInfo) -> Option<Vec<&str>> {
        let meaning = self.meaning?;
        let own = [(Some(info.symbol.as_str()), info.place.as_ref())];
        let inlined = info.inlined.iter().map(|f: &FunctionRef| (f.symbol.as_deref(), f.place.as_ref()));
        let is_mixed = |(symbol, place): (Option<&str>, Option<&Place>)| {
            symbol.is_none_or(|symbol| meaning.is_changed(symbol)) && !self.changed(place)
        };
        if own.into_iter().chain(inlined).any(is_mixed) {
            return None;
        }
        meaning.lost(info, self.program, replaced.new)
    }

    /// The functions that a changed item is compiled to, of those that can be `lost` in a function; the item itself where it has no code.
    fn meant(&self, item: &ChangedItem, lost: Option<&[&str]>) -> Vec<ItemName> {
        let mut symbols: Vec<&str> = self.shown_in(item).collect();
        if let Some(names) = self.names.filter(|_| symbols.is_empty() && item.kind == ItemKind::Fn) {
            symbols = names.changed_functions().filter(|symbol| is_of_item(symbol, item)).collect();
        }
        if symbols.is_empty() {
            return vec![self.by_source(item)];
        }
        let is_lost =
            |symbol: &str, lost: &[&str]| self.names.is_none_or(|names| lost.contains(&names.key(symbol)));
        let symbols = symbols.into_iter().filter(|symbol| lost.is_none_or(|lost| is_lost(symbol, lost)));
        symbols.map(|symbol| self.described(symbol)).collect()
    }

    fn described(&self, symbol: &str) -> ItemName {
        match self.described.get(symbol) {
            Some((path, receiver, place)) => self.named(symbol, Some(path), *receiver, *place),
            None => self.instance(symbol).unwrap_or_else(|| name(symbol, None, None)),
        }
    }

    /// The name of a function without debug information, from that of another instance of the same item, which has the same path.
    fn instance(&self, symbol: &str) -> Option<ItemName> {
        let path = demangle(symbol);
        let (other, (debug_path, receiver, place)) =
            self.described.iter().find(|(other, _)| demangle(other) == path)?;
        Some(self.named(other, Some(debug_path), *receiver, *place))
    }

    /// The name of a function, with what the source tells of it.
    pub(super) fn named(
        &self,
        symbol: &str,
        path: Option<&str>,
        receiver: Option<&str>,
        place: Option<&Place>,
    ) -> ItemName {
        let mut local = self.items.iter().filter(|item| item.local);
        let local = local.any(|item| self.is_in(std::slice::from_ref(item), place));
        ItemName { local, ..name(symbol, path, receiver) }
    }

    /// Symbols of what debug information has in the lines of an item.
    fn shown_in(&self, item: &ChangedItem) -> impl Iterator<Item = &'s str> {
        let inside = |place| self.is_in(std::slice::from_ref(item), place);
        let shown = self.described.iter().filter(move |(_, (.., place))| inside(*place));
        shown.map(|(symbol, _)| *symbol)
    }

    /// The name of an item in its module, as far as file names tell it.
    fn by_source(&self, item: &ChangedItem) -> ItemName {
        let file = item.new.as_ref().or(item.old.as_ref()).map_or("", |span| span.file.as_str());
        let inside = file.rsplit_once("src/").map_or("", |(_, inside)| inside).trim_end_matches(".rs");
        let modules = inside.split('/').filter(|name| !matches!(*name, "" | "main" | "lib" | "mod" | "bin"));
        let inlined = self.functions.iter().flat_map(|info| &info.inlined).map(|f| (&f.path, &f.place));
        let all = self.functions.iter().map(|info| (&info.path, &info.place)).chain(inlined);
        let mut here = all.filter(|(_, place)| place.as_ref().is_some_and(|p| same_file(file, &p.file)));
        let root = here.find_map(|(path, _)| Some(*segments(path).first()?).filter(|name| is_word(name)));
        let path: Vec<&str> = [root.unwrap_or(self.linked)].into_iter().chain(modules).collect();
        let name = ItemName::new(&format!("{}::{}", path.join("::"), item.path), Hints::default());
        ItemName { local: item.local, ..name }
    }

    fn changed(&self, place: Option<&Place>) -> bool {
        self.is_in(self.items, place)
    }

    fn is_in(&self, items: &[ChangedItem], place: Option<&Place>) -> bool {
        place.is_some_and(|p| self.tainted.is_in_changed_item(items, &p.file, p.line, Side::New))
    }
}

fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Whether a function is called like an item and stands in something that is called like what the item stands in.
fn is_of_item(symbol: &str, item: &ChangedItem) -> bool {
    if !symbol.contains(item.name.as_str()) {
        return false;
    }
    let path = demangle(symbol);
    if last_name(family(&path)) != item.name {
        return false;
    }
    let named = name(symbol, None, None);
    let last = |path: &str| {
        let path = without_arguments(path.trim_start_matches(['&', '*', '(', '[']));
        last_name(segments(&path).pop().unwrap_or_default()).to_owned()
    };
    let around = segments(&item.path);
    match around.len().checked_sub(2).map(|at| last(around[at])) {
        None => named.self_type.is_none(),
        Some(outer) => {
            let inside = [named.self_type.as_deref(), named.trait_path.as_deref(), Some(&*named.scope)];
            inside.into_iter().flatten().any(|path| last(path) == outer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_items() {
        let item = |path: &str, name: &str| ChangedItem {
            name: name.to_owned(),
            path: path.to_owned(),
            kind: ItemKind::Fn,
            local: false,
            old: None,
            new: None,
            within: None,
            renumbers: false,
        };
        let load = "_ZN5depot5fleet5Truck4load17h0123456789abcdefE";
        assert!(is_of_item(load, &item("Truck::load", "load")));
        assert!(!is_of_item(load, &item("TruckSpec::load", "load")));
        assert!(!is_of_item(load, &item("Truck::unload", "unload")));
        assert!(is_of_item("_ZN1a1b4load17h0123456789abcdefE", &item("load", "load")));
        let of_trait = "_ZN51_$LT$a..Xor$LT$K$GT$$u20$as$u20$a..codec..Codec$GT$3enc17h0123456789abcdefE";
        assert!(is_of_item(of_trait, &item("Xor<K>::enc", "enc")));
        assert!(!is_of_item(of_trait, &item("Rot::enc", "enc")));
        assert!(!is_of_item(of_trait, &item("enc", "enc")));
    }
}
