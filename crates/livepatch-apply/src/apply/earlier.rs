//! What earlier patches brought, and the process may still have.
//!
//! Patches are cumulative: each is made against the image. But between two of them the process runs, and keeps what the first one
//! brought: objects with vtables in it, function pointers, closures, values of its types. Where the next patch has such a function again,
//! the kept address leads to the newer code, as the address of a function of the image would. What the next patch does not have runs on as
//! it was, by the newest code that it had so far, if all that this calls is as it was, too. What cannot be led there with certainty is a reason to refuse: another closure under
//! the same number, a function whose newer code is only inside of others or that is called otherwise, a type with another layout, a table
//! of methods with another one in a slot, a variable that the compiler took apart.

mod addresses;
mod continued;
mod notes;
mod own;

use super::record::saved;
use super::{Job, Prepared};
use crate::branches::branches_into_entry;
use crate::error::ApplyError;
use crate::guard::Guard;
use crate::jump::{self, JUMP_SIZE};
use crate::names::demangled;
use crate::registry::{FunctionRecord, Record, State};
use crate::report::Policy;
use continued::{Becomes, Earlier, Walk};
use livepatch_patch::{NewItemKind, NewType, Place, RunAddr, SymbolId, Tag};
use own::Own;
use std::collections::HashMap;
use std::ops::Range;

impl Job<'_> {
    /// Whether what earlier patches brought goes together with this one.
    pub(super) fn check_earlier(&self, prepared: &Prepared<'_>) -> Result<(), ApplyError> {
        let state = prepared.state();
        self.same_types(&state)?;
        self.same_variables(&state)?;
        let earlier = self.reached(&state);
        // What a closure is made into by the standard library says nothing to anybody.
        let is_own = |function: &&Earlier<'_>| function.path().contains("{closure");
        let refused = || earlier.iter().filter(|function| function.refusal().is_some());
        if let Some(function) = refused().find(is_own).or_else(|| refused().next()) {
            return Err(ApplyError::refused(function.refusal().unwrap_or_default()));
        }
        self.check_taken(&state)?;
        earlier.iter().try_for_each(|function| self.check_entry(prepared, function))
    }

    /// Whether addresses of functions of the image that earlier patches took lead to what this patch has for these.
    fn check_taken(&self, state: &State) -> Result<(), ApplyError> {
        let own = Own::of(self.patch, state);
        let others = state.patches.iter().filter(|record| record.id != self.id);
        let mut taken = others.flat_map(|record| record.taken.iter().map(move |taken| (record, taken)));
        match taken.find_map(|(record, taken)| Some((record, taken, own.parts(taken)?))) {
            None => Ok(()),
            Some((record, taken, why)) => Err(ApplyError::refused(format!(
                "the process may keep the address of `{}` that patch {} took, and in this patch {why}, or restart the program",
                demangled(&taken.symbol),
                named(record)
            ))),
        }
    }

    /// Whether a jump fits over the start of a function of an earlier patch.
    fn check_entry(&self, prepared: &Prepared<'_>, earlier: &Earlier<'_>) -> Result<(), ApplyError> {
        let (start, process) = (earlier.start, &prepared.view.process);
        let code = process.read_vec(start, earlier.size as usize)?;
        let why = match self.options.policy {
            _ if earlier.room < JUMP_SIZE as u64 => "is too short for a jump to its newer code",
            Policy::Immediate if branches_into_entry(start, &code, process) => {
                "may branch back into its first instructions, which the jump overwrites; use the quiescent policy"
            }
            _ => return Ok(()),
        };
        Err(ApplyError::refused(format!("{} {why}", earlier.which())))
    }

    /// Redirects functions of earlier patches. `at` tells where a function of this patch is.
    pub(super) fn earlier(
        &self,
        prepared: &Prepared<'_>,
        state: &State,
        at: &dyn Fn(SymbolId) -> Option<RunAddr>,
    ) -> Result<Vec<FunctionRecord>, ApplyError> {
        let same = self.same_as_earlier(state);
        let mut functions = Vec::new();
        for function in self.reached(state) {
            let Becomes::Continued(symbol) = function.becomes else { continue };
            if same.iter().any(|range| range.start == function.start) {
                continue;
            }
            let Some(new) = at(symbol).filter(|new| *new != function.start) else { continue };
            let Place::Section { size: new_size, .. } = self.patch.symbols[symbol.0 as usize].place else {
                continue;
            };
            functions.push(FunctionRecord {
                path: self.path(symbol),
                symbol: function.symbol.to_owned(),
                old: function.start,
                old_size: function.size,
                new,
                new_size,
                saved: saved(prepared, state, &[], function.start)?,
                jump: jump::encode(function.start, new)
                    .map_err(|error| ApplyError::refused(error.to_string()))?,
            });
        }
        let own = Own::of(self.patch, state);
        functions.extend(carried(state, &self.walks(state, &own)).into_iter().cloned());
        Ok(functions)
    }

    /// Forbids what a jump overwrites in functions of earlier patches, where the policy does not forbid all of a patch.
    pub(super) fn guard_earlier(
        &self,
        prepared: &Prepared<'_>,
        state: &State,
        index: usize,
        guard: &mut Guard,
    ) {
        if self.options.policy != Policy::Immediate {
            return;
        }
        let process = &prepared.view.process;
        for function in &state.patches[index].functions {
            if state.is_in_patch(function.old) {
                let code = process.read_vec(function.old, function.old_size as usize).unwrap_or_default();
                guard.function(Policy::Immediate, function.old, &code, &function.path, process);
            }
        }
    }

    /// Values that were made with one layout must not meet code for another one.
    fn same_types(&self, state: &State) -> Result<(), ApplyError> {
        let own: HashMap<&str, _> = self.patch.meta.types.iter().map(|new| (&*new.name, new)).collect();
        for record in &state.patches {
            let other =
                |known: &&NewType| own.get(&*known.name).is_some_and(|newer| !known.goes_on_as(newer));
            if let Some(known) = record.types.iter().find(other) {
                return Err(ApplyError::refused(another(&known.name, record)));
            }
        }
        Ok(())
    }

    /// What an earlier patch brought as a variable has to be one in this patch, too, and the other way round.
    fn same_variables(&self, state: &State) -> Result<(), ApplyError> {
        let meta = &self.patch.meta;
        let own = meta.new_items.iter().filter(|item| item.kind != NewItemKind::Function);
        let own: HashMap<Tag, &str> = own
            .map(|item| {
                let name = &self.patch.symbols[item.symbol.0 as usize].name;
                (Tag::of_symbol(name), item.path.as_str())
            })
            .collect();
        for record in &state.patches {
            let statics = record.statics.iter().map(|known| &known.name);
            let mut names = statics.chain(record.thread_locals.iter().map(|known| &known.name));
            let gone = names.find(|name| meta.vanished.contains(&Tag::of_symbol(name)));
            let gone = gone.map(|name| demangled(name));
            let came = || record.vanished.iter().find_map(|tag| Some((*own.get(tag)?).to_owned()));
            if let Some(name) = gone.or_else(came).filter(|_| state.active().is_some()) {
                return Err(ApplyError::refused(format!(
                    "the compiler left out `{name}` as a whole or made parts of it, in this patch or in patch {}, so its value cannot go on; use \
                     a static of another name, or roll the earlier patch back first (the value starts anew then)",
                    named(record)
                )));
            }
        }
        Ok(())
    }

    /// Functions of other patches that the process may come to, and that are something in this patch.
    fn reached<'s>(&self, state: &'s State) -> Vec<Earlier<'s>> {
        let own = Own::of(self.patch, state);
        let mut walks = self.walks(state, &own);
        let carried = carried(state, &walks);
        walks.iter_mut().for_each(|walk| walk.carried.clone_from(&carried));
        walks.iter().flat_map(Walk::all).collect()
    }

    fn walks<'s, 'o>(&self, state: &'s State, own: &'o Own<'o>) -> Vec<Walk<'s, 'o>> {
        let others = state.patches.iter().filter(|record| record.id != self.id);
        others.map(|record| Walk::new(record, state, own)).collect()
    }

    /// Where code of earlier patches is that this patch has, too: a thread in there need not leave it, and nothing need be led away from
    /// it. Without an applied patch a variable may begin anew, and which code uses which is not asked. The snapshot method looks at
    /// nothing but stacks when it has to take back what a killed run did, and so gets along without.
    pub(super) fn same_as_earlier(&self, state: &State) -> Vec<Range<RunAddr>> {
        if state.active().is_none() || self.options.policy == Policy::Snapshot {
            return Vec::new();
        }
        let own = Own::of(self.patch, state);
        let walks = self.walks(state, &own);
        let same = walks.iter().flat_map(|walk| {
            let (code, same) = (walk.record.code(), walk.same());
            let same = code.into_iter().filter(move |function| same.contains(&function.start));
            same.map(|function| function.start..function.start.offset(function.size as i64))
        });
        same.collect()
    }

    fn path(&self, symbol: SymbolId) -> String {
        let item = self.patch.meta.new_items.iter().find(|item| item.symbol == symbol);
        item.map_or_else(|| demangled(&self.patch.symbols[symbol.0 as usize].name), |item| item.path.clone())
    }
}

/// Redirects of the active patch from functions that the newer one does not have to those of patches in between.
fn carried<'s>(state: &'s State, walks: &[Walk<'s, '_>]) -> Vec<&'s FunctionRecord> {
    let functions = state.active().into_iter().flat_map(|active| &state.patches[active].functions);
    functions.filter(|led| walks.iter().any(|walk| walk.is_gone(led.old))).collect()
}

/// Why values that a patch made of a type do not go together with the type as it is now.
fn another(name: &str, record: &Record) -> String {
    let patch = named(record);
    match (name.strip_suffix("::{vtable}"), name.strip_suffix("::{methods}")) {
        (Some(table), _) => format!(
            "the process may keep objects that patch {patch} made as `{table}`, and in this patch other functions are in the slots of that \
             table (::{{vtable}}): a method is overridden now, or is not, the type has a `Drop` or has none; leave these as they were, or \
             give the new type another name"
        ),
        (_, Some(object)) => format!(
            "the process may keep objects that patch {patch} made as `{object}`, and in this patch the trait has other methods or has them in \
             another order; leave the trait as it was, or give the new one another name"
        ),
        _ => format!(
            "the process may keep values of `{name}` as patch {patch} made them, and this patch has another layout for the type, or awaits in \
             another order; leave it as it was, or give the new one another name"
        ),
    }
}

/// A patch by its name and the begin of its id.
fn named(record: &Record) -> String {
    format!("{} ({:.16})", record.name, record.id.to_string())
}

impl Record {
    /// Forgets redirects of functions that lie in one of these patches: they are found anew with each application.
    pub(super) fn forget_earlier(&mut self, patches: &[Range<RunAddr>]) {
        self.functions.retain(|function| !patches.iter().any(|text| text.contains(&function.old)));
    }
}
