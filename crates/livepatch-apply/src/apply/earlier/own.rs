//! What the patch that is applied has for functions that earlier patches brought, and for those of the image that these lead to.

use super::continued::Becomes;
use crate::registry::{KeptRecord, State, TakenRecord};
use livepatch_patch::{Identity, NewItem, Patch, Place, RunAddr, SectionKind, SymbolId, Tag, plain};
use std::collections::{HashMap, HashSet};

/// The functions of the patch that is applied.
pub(super) struct Own<'p> {
    pub(super) patch: &'p Patch,
    /// All, by name.
    code: HashMap<&'p str, SymbolId>,
    /// Names of functions that others stand for, or may stand for.
    also: HashMap<&'p str, Vec<SymbolId>>,
    /// Those that replace functions of the image, by the addresses of these.
    pub(super) redirects: HashMap<RunAddr, SymbolId>,
    /// New ones.
    items: HashMap<SymbolId, &'p NewItem>,
    /// New ones by what is known of which they are.
    known: HashMap<Tag, Vec<SymbolId>>,
    /// Functions of earlier patches by the same, each with its symbol.
    kept: HashMap<Tag, Vec<(&'p KeptRecord, &'p str)>>,
}

impl<'p> Own<'p> {
    pub(super) fn of(patch: &'p Patch, state: &'p State) -> Self {
        let is_code = |place: &Place| match place {
            Place::Section { section, .. } => patch.sections[section.0 as usize].kind == SectionKind::Text,
            _ => false,
        };
        let items: HashMap<_, _> = patch.meta.new_items.iter().map(|item| (item.symbol, item)).collect();
        let mut also: HashMap<&str, Vec<SymbolId>> = HashMap::new();
        for item in &patch.meta.new_items {
            item.also.iter().for_each(|name| also.entry(plain(name)).or_default().push(item.symbol));
        }
        let symbols = patch.symbols.iter().enumerate().filter(|(_, symbol)| is_code(&symbol.place));
        let symbols = symbols.map(|(index, symbol)| (plain(&symbol.name), SymbolId(index as u32)));
        let code = symbols.collect();
        let redirects = patch.meta.redirects.iter().map(|to| (to.old.at(state.bias), to.symbol)).collect();
        let mut known: HashMap<Tag, Vec<SymbolId>> = HashMap::new();
        for item in patch.meta.new_items.iter() {
            if let Some(identity) = &item.identity {
                known.entry(identity.function).or_default().push(item.symbol);
            }
        }
        let mut kept: HashMap<Tag, Vec<_>> = HashMap::new();
        for record in &state.patches {
            let symbols: HashMap<_, _> = record.code().iter().map(|code| (code.start, code.symbol)).collect();
            for of in record.kept.iter().filter(|of| of.sole) {
                if let (Some(identity), Some(symbol)) = (&of.identity, symbols.get(&of.start)) {
                    kept.entry(identity.function).or_default().push((of, *symbol));
                }
            }
        }
        Self { patch, code, also, redirects, items, known, kept }
    }

    /// Whether a function of this patch replaces one of the image.
    pub(super) fn is_redirect(&self, symbol: SymbolId) -> bool {
        self.redirects.values().any(|own| *own == symbol)
    }

    pub(super) fn is_same_code(&self, kept: &KeptRecord, newer: SymbolId) -> bool {
        self.patch.code_digest(newer) == Some(kept.code)
    }

    /// Whether it is beyond doubt that a function of this patch is that one of the source, called in the same way.
    pub(super) fn continues(&self, kept: &KeptRecord, newer: SymbolId) -> bool {
        let known = kept.identity.as_ref().filter(|_| kept.sole);
        let own = self.items.get(&newer).filter(|item| item.sole).and_then(|item| item.identity.as_ref());
        let alone =
            |identity: &Identity| self.known.get(&identity.function).is_some_and(|all| *all == [newer]);
        known.zip(own).is_some_and(|(known, own)| alone(known) && own.continues(known))
    }

    /// What continues a function of an earlier patch, which replaced the one of the image at this address, if any.
    pub(super) fn becomes(&self, kept: &KeptRecord, symbol: &str, image: Option<RunAddr>) -> Option<Becomes> {
        if let Some(old) = image {
            let newer = self.redirects.get(&old);
            return Some(newer.map_or(Becomes::Back, |newer| Becomes::Continued(*newer)));
        }
        match self.directly(kept, symbol) {
            Some(Becomes::Other) => {
                Some(self.through(kept, &mut HashSet::new()).map_or(Becomes::Other, Becomes::Continued))
            }
            other => other,
        }
    }

    /// What continues a function by way of those which continued it in other patches.
    fn through(&self, start: &KeptRecord, seen: &mut HashSet<RunAddr>) -> Option<SymbolId> {
        let identity = start.identity.as_ref().filter(|_| start.sole && seen.insert(start.start))?;
        let versions = self.kept.get(&identity.function)?.iter();
        let others = versions.filter(|(of, _)| of.identity.as_ref().is_some_and(|of| of.continues(identity)));
        others.filter(|(of, _)| of.start != start.start).find_map(|(of, symbol)| {
            match self.directly(of, symbol)? {
                Becomes::Continued(newer) => Some(newer),
                Becomes::Other => self.through(of, seen),
                _ => None,
            }
        })
    }

    /// What continues a function of an earlier patch, by what is known of that one alone.
    fn directly(&self, kept: &KeptRecord, symbol: &str) -> Option<Becomes> {
        let of_path = || self.known.get(&kept.identity.as_ref()?.function)?.first().copied();
        let own = self.named(symbol).or_else(of_path);
        let others = || kept.also.iter().map(|other| plain(other));
        // What does what it did in the image says nothing of which function this one has become.
        let telling = || others().filter(|other| !self.is_as_shipped(other, &kept.shipped));
        let Some(newer) = own.or_else(|| telling().find_map(|other| self.named(other))) else {
            let is_doubtful = |name: &str| self.also.contains_key(name);
            return match self.is_inlined(symbol) {
                _ if is_doubtful(plain(symbol)) || telling().any(is_doubtful) => Some(Becomes::Other),
                true => Some(Becomes::Inlined),
                false if others().any(|other| self.is_inlined(other)) => Some(Becomes::Inlined),
                false => kept.altered.then_some(Becomes::Back),
            };
        };
        let is_same = self.is_same_code(kept, newer);
        // Whoever keeps its address may mean any of those that it stands for. What this patch does not have is as it was, and so is what
        // does what it did in the image, whatever code of its own this patch has for it.
        let agrees = |other: &str| match self.named(other) {
            _ if self.is_as_shipped(other, &kept.shipped) => is_same && !self.is_inlined(other),
            Some(own) => self.patch.code_digest(own) == self.patch.code_digest(newer),
            None => is_same && !self.also.contains_key(other) && !self.is_inlined(other),
        };
        let itself = own.is_some() || agrees(plain(symbol));
        let is_it = own.is_some() && self.continues(kept, newer) || is_same;
        Some(match itself && is_it && others().all(agrees) {
            true => Becomes::Continued(newer),
            false => Becomes::Other,
        })
    }

    /// Why the address of a function of the image would not lead to what this patch has for it, and what to do.
    pub(super) fn parts(&self, taken: &TakenRecord) -> Option<&'static str> {
        let altered = |name: &str| self.patch.meta.altered.contains(&Tag::of_symbol(name));
        let others = || taken.also.iter().map(|other| plain(other));
        let newer = self.redirects.get(&taken.start);
        let symbol = plain(&taken.symbol);
        let is_parted = |other: &str| match (newer, self.named(other)) {
            (Some(newer), Some(own)) => self.patch.code_digest(*newer) != self.patch.code_digest(own),
            // Whatever has no code of its own is as the image has it.
            (Some(_), None) => true,
            (None, own) => {
                let is_here = own.is_some() || self.also.contains_key(other);
                is_here && !self.is_as_shipped(other, &taken.shipped) || self.is_inlined(other)
            }
        };
        if others().any(is_parted) {
            return Some(
                "that is not the same code any more as another function that the address may stand for; leave both as they were and write what \
                 is new elsewhere",
            );
        }
        let may_be_new = self.also.contains_key(symbol) && !self.is_same(symbol);
        let is_elsewhere = self.is_inlined(symbol) || altered(symbol) || may_be_new;
        (newer.is_none() && is_elsewhere).then_some(
            "its new code is only inside of other functions, or only they call it; make it a function of its own (`#[inline(never)]`) \
             that is also called by unchanged code, or leave it as it was",
        )
    }

    /// The function of this name, or the only one that may stand for it.
    fn named(&self, symbol: &str) -> Option<SymbolId> {
        let own = self.code.get(plain(symbol)).copied();
        own.or_else(|| {
            self.also.get(plain(symbol)).and_then(|all| all.first().filter(|_| all.len() == 1).copied())
        })
    }

    /// Whether it is beyond doubt that a function does what the image's of that name does.
    fn is_same(&self, symbol: &str) -> bool {
        self.patch.meta.same.contains(&Tag::of_symbol(symbol))
    }

    /// Whether a function does what the image's does, here and in an earlier patch in which `shipped` did.
    fn is_as_shipped(&self, symbol: &str, shipped: &[String]) -> bool {
        self.is_same(symbol) && shipped.iter().any(|other| plain(other) == symbol)
    }

    fn is_inlined(&self, symbol: &str) -> bool {
        self.patch.meta.inlined.contains(&Tag::of_symbol(symbol))
    }
}
