//! What the registry is told of a patch that was loaded.

use super::{Job, Prepared, now};
use crate::bind::instances;
use crate::error::{ApplyError, Mismatch};
use crate::load::Loaded;
use crate::registry::{
    Code, CodeRecord, ConstantRecord, FunctionRecord, KeptRecord, PatchState, Record, State, StaticRecord,
    TakenRecord, ThreadLocalRecord,
};
use crate::{jump, target};
use livepatch_patch::link::{Binding, TlsPlace};
use livepatch_patch::{Bias, NewItemKind, Place, RunAddr, SectionKind, SymbolId, Tag};
use std::collections::BTreeSet;

impl Job<'_> {
    /// The record of a patch that was loaded.
    pub(super) fn record(
        &self,
        prepared: &Prepared<'_>,
        state: &State,
        loaded: Loaded,
    ) -> Result<Record, ApplyError> {
        let mut functions = Vec::new();
        for (redirect, code) in self.patch.meta.redirects.iter().zip(&prepared.code) {
            let symbol = redirect.symbol.0 as usize;
            let missing = || Mismatch::Patch(format!("`{}` has no new code", redirect.path));
            let Place::Section { size: new_size, .. } = self.patch.symbols[symbol].place else {
                return Err(missing().into());
            };
            let new = loaded.symbols.get(symbol).copied().flatten().ok_or_else(missing)?;
            if !loaded.mapping.text_range().contains(&new) {
                return Err(missing().into());
            }
            let old = redirect.old.at(prepared.module.image.bias);
            let saved = saved(prepared, state, code, old)?;
            let jump = jump::encode(old, new).map_err(|error| ApplyError::refused(error.to_string()))?;
            functions.push(FunctionRecord {
                path: redirect.path.clone(),
                symbol: self.patch.symbols[symbol].name.clone(),
                old,
                old_size: redirect.old_size,
                new,
                new_size,
                saved,
                jump,
            });
        }
        functions.extend(
            self.earlier(prepared, state, &|symbol| {
                loaded.symbols.get(symbol.0 as usize).copied().flatten()
            })?,
        );
        let (statics, thread_locals) = self.new_data(state, &loaded);
        Ok(Record {
            id: self.id,
            name: self.patch.meta.name.clone(),
            selection: self.selected.selection.clone(),
            state: PatchState::Applying,
            applied_at: now(),
            mapping: loaded.mapping,
            functions,
            further: self.further(&loaded),
            kept: self.kept(state.bias, &loaded),
            taken: self.taken(prepared),
            statics,
            thread_locals,
            constants: self.constants(&loaded),
            eh_frame: loaded.eh_frame,
            contents: loaded.contents,
            carrier: loaded.carrier,
            types: self.patch.meta.types.clone(),
            vanished: self.patch.meta.vanished.clone(),
            once: self.patch.meta.once.clone(),
        })
    }

    /// Code of the patch that no entry leads to.
    fn further(&self, loaded: &Loaded) -> Vec<CodeRecord> {
        let redirected: BTreeSet<_> = self.patch.meta.redirects.iter().map(|r| r.symbol.0 as usize).collect();
        let others = self.patch.symbols.iter().enumerate().filter(|(index, _)| !redirected.contains(index));
        let code = others.filter_map(|(index, symbol)| {
            let Place::Section { section, size, .. } = symbol.place else { return None };
            let is_code = self.patch.sections[section.0 as usize].kind == SectionKind::Text;
            let start = loaded.symbols[index].filter(|_| is_code)?;
            Some(CodeRecord { symbol: symbol.name.clone(), start, size })
        });
        code.filter(|code| loaded.mapping.text_range().contains(&code.start)).collect()
    }

    /// Code of the patch that the process may come to when it is no longer applied.
    fn kept(&self, bias: Bias, loaded: &Loaded) -> Vec<KeptRecord> {
        let at = |symbol: &SymbolId| loaded.symbols.get(symbol.0 as usize).copied().flatten();
        let text = loaded.mapping.text_range();
        let anywhere = |symbol: &SymbolId| match self.patch.symbols[symbol.0 as usize].place {
            Place::Image { addr, .. } => Some(addr.at(bias)),
            _ => at(symbol),
        };
        let altered = &self.patch.meta.altered;
        let kept = self.patch.kept().into_iter().filter_map(|kept| {
            let start = at(&kept.symbol).filter(|start| text.contains(start))?;
            let item = self.patch.meta.new_items.iter().find(|item| item.symbol == kept.symbol);
            let also = item.map(|item| item.also.clone()).unwrap_or_default();
            Some(KeptRecord {
                start,
                code: self.patch.code_digest(kept.symbol)?,
                addressed: kept.addressed,
                calls: kept.calls.iter().filter_map(anywhere).collect(),
                identity: item.and_then(|item| item.identity.clone()),
                sole: item.is_some_and(|item| item.sole),
                altered: altered.contains(&Tag::of_symbol(&self.patch.symbols[kept.symbol.0 as usize].name)),
                shipped: self.shipped(&also),
                also,
            })
        });
        kept.collect()
    }

    /// Functions of the image whose address the process may have from this patch.
    fn taken(&self, prepared: &Prepared<'_>) -> Vec<TakenRecord> {
        let image = &prepared.module.image;
        let taken = self.patch.taken_of_image().into_iter().filter_map(|id| {
            let symbol = &self.patch.symbols[id.0 as usize];
            let Place::Image { addr, .. } = symbol.place else { return None };
            let start = addr.at(image.bias);
            image.segment(start).filter(|segment| segment.execute)?;
            let stands = self.patch.meta.stands.iter().find(|of| of.symbol == id);
            let also = stands.map(|of| of.also.clone()).unwrap_or_default();
            Some(TakenRecord { symbol: symbol.name.clone(), start, shipped: self.shipped(&also), also })
        });
        taken.collect()
    }

    /// Those of these functions that do what they do in the image.
    fn shipped(&self, symbols: &[String]) -> Vec<String> {
        let same = &self.patch.meta.same;
        symbols.iter().filter(|symbol| same.contains(&Tag::of_symbol(symbol))).cloned().collect()
    }

    /// Constants that the process may keep references to.
    fn constants(&self, loaded: &Loaded) -> Vec<ConstantRecord> {
        let constants = self.named_constants().into_iter().filter_map(|id| {
            let name = self.patch.symbols[id.0 as usize].name.clone();
            let address = loaded.symbols[id.0 as usize]?;
            Some(ConstantRecord { name, address, value: self.patch.code_digest(id)? })
        });
        constants.collect()
    }

    /// Statics and thread-locals that live in this patch, and those of earlier ones that it goes on with, for later patches to find.
    fn new_data(&self, state: &State, loaded: &Loaded) -> (Vec<StaticRecord>, Vec<ThreadLocalRecord>) {
        let (mut statics, mut thread_locals) = (Vec::new(), Vec::new());
        let earlier: Vec<&Record> = state.patches.iter().collect();
        for item in &self.patch.meta.new_items {
            let index = item.symbol.0 as usize;
            let Some(symbol) = self.patch.symbols.get(index) else { continue };
            let Place::Section { size, .. } = symbol.place else { continue };
            let (name, type_digest, sole) = (symbol.name.clone(), item.type_digest, item.sole);
            let own = self.patch.code_digest(item.symbol);
            let running = || instances(item.kind, &name, &earlier).first().and_then(|of| of.initial.copied());
            match (item.kind, loaded.bindings[index], loaded.symbols[index]) {
                (NewItemKind::Static, Binding::Own, Some(address)) => {
                    statics.push(StaticRecord { name, address, size, type_digest, sole, initial: own });
                }
                (NewItemKind::Static, Binding::At(address), _) if !item.call_site => {
                    let initial = running();
                    statics.push(StaticRecord { name, address, size, type_digest, sole, initial });
                }
                (NewItemKind::ThreadLocal, Binding::Tls(TlsPlace { module, offset, tp_offset }), _) => {
                    let is_own = loaded.carrier.is_some_and(|carrier| carrier.module == module);
                    let initial = if is_own { own } else { running() };
                    thread_locals.push(ThreadLocalRecord {
                        name,
                        size,
                        type_digest,
                        sole,
                        initial,
                        module,
                        offset,
                        tp_offset,
                    });
                }
                _ => {}
            }
        }
        (statics, thread_locals)
    }
}

/// The bytes that belong at the start of a function: what lies under the jump of an earlier patch is what that one saved.
pub(super) fn saved(
    prepared: &Prepared<'_>,
    state: &State,
    code: &[u8],
    old: RunAddr,
) -> Result<Code, ApplyError> {
    let known = state.patches.iter().flat_map(|record| &record.functions).find(|f| f.old == old);
    Ok(match known {
        Some(function) => function.saved,
        None => target::entry(&prepared.view.process, code, old)?,
    })
}
