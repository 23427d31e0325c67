//! Addresses that what earlier patches brought keeps in this one.
//!
//! The process may compare an address that it stored with one that this patch takes (`ptr::fn_addr_eq`, `ptr::eq`). So a function that
//! continues one of an earlier patch goes by the address of the earliest, which leads to it, and a constant that is what it was *is* the
//! earliest one.

use super::super::Job;
use super::continued::Becomes;
use super::own::Own;
use crate::registry::{ConstantRecord, Record, State};
use livepatch_patch::link::Binding;
use livepatch_patch::{Place, SectionKind, Symbol, SymbolId, plain};
use std::collections::{BTreeMap, HashMap};

impl Job<'_> {
    /// Binds what this patch has of its own and the process knows by another address.
    pub(in super::super) fn keep_addresses(&self, state: &State, bindings: &mut [Binding]) {
        for (symbol, constant) in self.constants_of_earlier(state) {
            // Which variable the earlier one leads to may be another matter than what it is called.
            let is_same = self.patch.code_digest(symbol) == Some(constant.value);
            if is_same && !self.patch.leads_to_variable(symbol) {
                bindings[symbol.0 as usize] = Binding::At(constant.address);
            }
        }
        let own = Own::of(self.patch, state);
        let walks = self.walks(state, &own);
        let kept = walks.iter().flat_map(|walk| walk.record.kept.iter().map(move |kept| (walk, kept)));
        let mut by_name = HashMap::new();
        for (walk, kept) in kept.filter(|(_, kept)| kept.addressed) {
            let Some(Becomes::Continued(symbol)) = walk.becomes(kept.start) else { continue };
            let name = plain(&self.patch.symbols[symbol.0 as usize].name);
            let is_it = walk.symbol(kept.start).is_some_and(|symbol| plain(symbol) == name);
            let binding = &mut bindings[symbol.0 as usize];
            // The address of a function that replaces one of the image is that one's. If several have become one, its own name counts.
            let is_known = by_name.get(&symbol).is_some_and(|by_name| *by_name || !is_it);
            if is_known || own.is_redirect(symbol) || matches!(binding, Binding::At(_)) {
                continue;
            }
            by_name.insert(symbol, is_it);
            *binding = Binding::OwnBehind(kept.start);
        }
    }

    /// The patch's own statics that nothing writes to. What the compiler made (texts, vtables) has no name in the source, and no lasting
    /// address in any build.
    pub(in super::super) fn named_constants(&self) -> Vec<SymbolId> {
        let is_named = |symbol: &Symbol| match symbol.place {
            Place::Section { section, offset: 0, .. } => {
                self.patch.sections[section.0 as usize].kind == SectionKind::ReadOnly
                    && rustc_demangle::try_demangle(plain(&symbol.name)).is_ok()
            }
            _ => false,
        };
        let mut named: BTreeMap<&str, Vec<SymbolId>> = BTreeMap::new();
        for (id, symbol) in self.patch.symbols.iter().enumerate().filter(|(_, symbol)| is_named(symbol)) {
            named.entry(plain(&symbol.name)).or_default().push(SymbolId(id as u32));
        }
        // Of several under one name it is not known which is which.
        named.into_values().filter(|ids| ids.len() == 1).flatten().collect()
    }

    /// Constants of this patch, and the earliest of that name which another patch brought.
    pub(super) fn constants_of_earlier<'s>(&self, state: &'s State) -> Vec<(SymbolId, &'s ConstantRecord)> {
        let others = || state.patches.iter().filter(|record: &&Record| record.id != self.id);
        let earliest = |name: &str| {
            others().flat_map(|record| &record.constants).find(|constant| plain(&constant.name) == name)
        };
        let own = self.named_constants().into_iter();
        let name = |id: SymbolId| plain(&self.patch.symbols[id.0 as usize].name);
        own.filter_map(|id| Some((id, earliest(name(id))?))).collect()
    }
}
