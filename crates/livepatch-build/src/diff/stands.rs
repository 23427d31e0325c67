//! Functions, new ones and those of the image, whose address in a patch stands for that of others, too.
//!
//! LLVM gives functions of equal code one body, under the name of one of them. Where the others go without a symbol, raw code still
//! shows that they were meant: it takes an address that the machine code made of it does not take, and nothing of that function is
//! inlined there. Which of the addresses that the machine code does take stands for it is not said: one whose raw code looks the same, or,
//! if there is none, each of them may.

use super::program::At;
use super::uses::{Uses, held};
use super::{Diff, Meaning};
use crate::emit::{Emitted, name_of};
use crate::guard::{FunctionInfo, demangle, of_standard_library};
use crate::objects::Kind;
use livepatch_patch::{NewItemKind, Place, SymbolId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

impl Diff<'_> {
    /// For functions that a patch brings, the symbols of others that they may stand for.
    pub(crate) fn stands_for(
        &self,
        emitted: &Emitted,
        described: &[FunctionInfo],
    ) -> BTreeMap<At, BTreeSet<String>> {
        let mut found: BTreeMap<At, BTreeSet<String>> = BTreeMap::new();
        let Some(meaning) = self.meaning.any() else { return found };
        let functions = emitted.brought.iter().filter(|item| item.kind == NewItemKind::Function);
        let brought: HashMap<&str, At> =
            functions.map(|item| (meaning.key(name_of(&self.new, item.at)), item.at)).collect();
        let code = emitted.replaced.iter().map(|replaced| replaced.new).chain(brought.values().copied());
        for at in code {
            let symbol = name_of(&self.new, at);
            let Some(info) = described.iter().find(|info| info.symbol == symbol) else { continue };
            let (taken, missing) = self.addresses(meaning, info, at);
            let taken = taken.iter().filter_map(|name| brought.get_key_value(name.as_str()));
            let taken: Vec<(&str, At)> = taken.map(|(name, at)| (*name, *at)).collect();
            for other in missing {
                for at in self.candidates(meaning, &taken, &other) {
                    found.entry(at).or_default().insert(other.clone());
                }
            }
        }
        for item in emitted.brought.iter().map(|item| item.at).chain(emitted.constants.iter().map(|c| c.0)) {
            for (own, meant) in self.in_table(meaning, item) {
                if let Some(own) = brought.get(own.as_str()) {
                    found.entry(*own).or_default().insert(meant);
                }
            }
        }
        found.retain(|_, others| !others.is_empty());
        found
    }

    /// The same for functions of the image, by their symbols in the patch.
    pub(crate) fn image_stands_for(
        &self,
        emitted: &Emitted,
        described: &[FunctionInfo],
    ) -> BTreeMap<SymbolId, BTreeSet<String>> {
        let mut found: BTreeMap<SymbolId, BTreeSet<String>> = BTreeMap::new();
        let Some(meaning) = self.meaning.any() else { return found };
        let [_, graph] = meaning.graphs();
        let is_code = |name: &str| graph.nodes.get(name).is_some_and(|node| node.kind == Some(Kind::Text));
        let symbols = emitted.symbols.iter().enumerate();
        let of_image = symbols.filter(|(_, symbol)| matches!(symbol.place, Place::Image { .. }));
        let of_image = of_image.map(|(at, symbol)| (meaning.key(&symbol.name), SymbolId(at as u32)));
        let of_image: Vec<(&str, SymbolId)> = of_image.filter(|(name, _)| is_code(name)).collect();
        let shape = |name: &str| graph.nodes.get(meaning.key(name)).map(|node| node.shape);
        let functions = emitted.brought.iter().filter(|item| item.kind == NewItemKind::Function);
        for at in emitted.replaced.iter().map(|replaced| replaced.new).chain(functions.map(|item| item.at)) {
            let symbol = name_of(&self.new, at);
            let Some(info) = described.iter().find(|info| info.symbol == symbol) else { continue };
            let (taken, missing) = self.addresses(meaning, info, at);
            for other in missing {
                let is_alike = |name: &str| shape(name) == shape(&other);
                // One that looks the same is it, be it a new one.
                let any = taken.iter().any(|name| is_code(name) && is_alike(name));
                let of_image = of_image.iter().filter(|(name, _)| taken.contains(*name));
                for (_, id) in of_image.filter(|(name, _)| !any || is_alike(name)) {
                    found.entry(*id).or_default().insert(other.clone());
                }
            }
        }
        for at in emitted.brought.iter().map(|item| item.at).chain(emitted.constants.iter().map(|c| c.0)) {
            for (own, meant) in self.in_table(meaning, at) {
                for (_, id) in of_image.iter().filter(|(name, _)| *name == own) {
                    found.entry(*id).or_default().insert(meant.clone());
                }
            }
        }
        found
    }

    /// Those of some functions that may have the body of another one.
    fn candidates(&self, meaning: &Meaning, taken: &[(&str, At)], other: &str) -> Vec<At> {
        let [_, graph] = meaning.graphs();
        let shape = |name: &str| graph.nodes.get(meaning.key(name)).map(|node| node.shape);
        let alike = taken.iter().filter(|(name, _)| shape(name) == shape(other)).map(|(_, at)| *at);
        let alike: Vec<At> = alike.collect();
        if alike.is_empty() { taken.iter().map(|(_, at)| *at).collect() } else { alike }
    }

    /// Functions whose addresses a piece of machine code takes, and those whose addresses its raw code takes and the image does not have.
    fn addresses(
        &self,
        meaning: &Meaning,
        info: &FunctionInfo,
        at: At,
    ) -> (BTreeSet<String>, BTreeSet<String>) {
        let [_, graph] = meaning.graphs();
        let mut members = meaning.inlined(info);
        members.insert(meaning.key(&info.symbol));
        let machine = Uses::of(&self.new, at).renamed(|name| meaning.key(name));
        let nodes = members.iter().filter_map(|name| graph.nodes.get(*name));
        let meant = nodes.flat_map(|node| &node.others).map(|(name, _)| name.as_str());
        let is_code = |name: &&str| graph.nodes.get(*name).is_some_and(|node| node.kind == Some(Kind::Text));
        // Of the library's code it is not the source that changes, but what it is made for, and tables have that in their names.
        let is_own = |name: &&str| !of_standard_library(&demangle(name));
        let is_missing = |name: &&str| {
            !machine.others.contains_key(name)
                && !machine.calls.contains_key(name)
                && !members.contains(name)
                && self.new.image.symbols(meaning.new_name(name)).is_empty()
        };
        let missing = meant.filter(is_code).filter(is_missing).filter(is_own);
        let missing = missing.map(|name| meaning.new_name(name).to_owned()).collect();
        (machine.others.keys().map(|name| (*name).to_owned()).collect(), missing)
    }

    /// Functions that a table holds where raw code has others, each with that.
    fn in_table(&self, meaning: &Meaning, at: At) -> Vec<(String, String)> {
        if self.new.section(at).kind == Kind::Text {
            return Vec::new();
        }
        let [_, graph] = meaning.graphs();
        let Some(node) = graph.nodes.get(meaning.key(name_of(&self.new, at))) else { return Vec::new() };
        let mut found = Vec::new();
        for (offset, name) in held(&self.new, at) {
            let name = meaning.key(name);
            let meant = node.fields.iter().filter(|(at, meant)| *at == offset && meant != name);
            found.extend(meant.map(|(_, meant)| (name.to_owned(), meaning.new_name(meant).to_owned())));
        }
        found
    }
}
