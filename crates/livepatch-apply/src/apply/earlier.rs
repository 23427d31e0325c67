//! What earlier patches brought, and the process may still have.
//!
//! Patches are cumulative: each is made against the image. But between two of them the process runs, and keeps what the first one
//! brought: objects with vtables in it, function pointers, closures, values of its types. Where the next patch has such a function again,
//! the kept address leads to the newer code, as the address of a function of the image would. What cannot be led there with certainty is a
//! reason to refuse: another closure under the same number, a type with another layout.

use super::record::saved;
use super::{Job, Prepared};
use crate::branches::branches_into_entry;
use crate::error::ApplyError;
use crate::guard::Guard;
use crate::jump::{self, JUMP_SIZE};
use crate::registry::{CodeRecord, FunctionRecord, Record, State};
use crate::report::Policy;
use livepatch_patch::{Place, RunAddr, SymbolId, plain};
use std::collections::HashMap;

/// A function of an earlier patch, and what continues it in this one.
struct Continued<'s> {
    record: &'s Record,
    code: &'s CodeRecord,
    symbol: SymbolId,
    /// Bytes from its start to the next function.
    room: u64,
}

impl Job<'_> {
    /// Whether what earlier patches brought goes together with this one.
    pub(super) fn check_earlier(&self, prepared: &Prepared<'_>) -> Result<(), ApplyError> {
        let state = prepared.state();
        self.same_types(&state)?;
        let continued = self.continued(&state);
        let is_other =
            |c: &&Continued<'_>| !self.is_named(c.symbol) && c.code.kept != self.patch.code_digest(c.symbol);
        let others: Vec<_> = continued.iter().filter(is_other).collect();
        // What a closure is made into by the standard library says nothing to anybody.
        let own = others.iter().find(|c| self.path(c.symbol).contains("{closure")).or(others.first());
        if let Some(c) = own {
            return Err(ApplyError::refused(format!(
                "the process may keep values that run {}, and this patch has other code under that name, which may be another closure; leave \
                 what the earlier patch brought as it was and write what is new elsewhere, or restart the program",
                self.which(c)
            )));
        }
        continued.iter().try_for_each(|c| self.check_entry(prepared, c))
    }

    /// Whether a jump fits over the start of a function of an earlier patch.
    fn check_entry(&self, prepared: &Prepared<'_>, continued: &Continued<'_>) -> Result<(), ApplyError> {
        let (start, process) = (continued.code.start, &prepared.view.process);
        let code = process.read_vec(start, continued.code.size as usize)?;
        let why = match self.options.policy {
            _ if continued.room < JUMP_SIZE as u64 => "is too short for a jump to its newer code",
            Policy::Immediate if branches_into_entry(start, &code, process) => {
                "may branch back into its first instructions, which the jump overwrites; use the quiescent policy"
            }
            _ => return Ok(()),
        };
        Err(ApplyError::refused(format!("{} {why}", self.which(continued))))
    }

    fn which(&self, continued: &Continued<'_>) -> String {
        format!("`{}` of patch {}", self.path(continued.symbol), named(continued.record))
    }

    /// Redirects functions of earlier patches. `at` tells where a function of this patch is.
    pub(super) fn earlier(
        &self,
        prepared: &Prepared<'_>,
        state: &State,
        at: &dyn Fn(SymbolId) -> Option<RunAddr>,
    ) -> Result<Vec<FunctionRecord>, ApplyError> {
        let mut functions = Vec::new();
        for Continued { code, symbol, .. } in self.continued(state) {
            let Some(new) = at(symbol).filter(|new| *new != code.start) else { continue };
            let Place::Section { size: new_size, .. } = self.patch.symbols[symbol.0 as usize].place else {
                continue;
            };
            let saved = saved(prepared, state, &[], code.start)?;
            functions.push(FunctionRecord {
                path: self.path(symbol),
                symbol: code.symbol.clone(),
                old: code.start,
                old_size: code.size,
                new,
                new_size,
                saved,
                jump: jump::encode(code.start, new)
                    .map_err(|error| ApplyError::refused(error.to_string()))?,
            });
        }
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
            if state.patches.iter().any(|record| record.mapping.text_range().contains(&function.old)) {
                let code = process.read_vec(function.old, function.old_size as usize).unwrap_or_default();
                guard.function(Policy::Immediate, function.old, &code, &function.path, process);
            }
        }
    }

    /// Values that were made with one layout must not meet code for another one.
    fn same_types(&self, state: &State) -> Result<(), ApplyError> {
        let own: HashMap<&str, _> =
            self.patch.meta.types.iter().map(|new| (&*new.name, new.digest)).collect();
        for record in &state.patches {
            let other = |known: &&livepatch_patch::NewType| {
                own.get(&*known.name).is_some_and(|digest| *digest != known.digest)
            };
            if let Some(known) = record.types.iter().find(other) {
                return Err(ApplyError::refused(format!(
                    "the process may keep values of `{}` as patch {} made them, and this patch has another layout for the type; leave it as it \
                     was, or give the new one another name",
                    known.name,
                    named(record)
                )));
            }
        }
        Ok(())
    }

    /// Functions of other patches whose address the process may keep, and that this patch has, too.
    fn continued<'s>(&self, state: &'s State) -> Vec<Continued<'s>> {
        let redirects = self.patch.meta.redirects.iter().map(|redirect| redirect.symbol);
        let redirected: std::collections::BTreeSet<SymbolId> = redirects.collect();
        let own = self.patch.addressed().into_iter().filter(|symbol| !redirected.contains(symbol));
        let own: HashMap<&str, SymbolId> =
            own.map(|symbol| (plain(&self.patch.symbols[symbol.0 as usize].name), symbol)).collect();
        let mut found = Vec::new();
        for record in state.patches.iter().filter(|record| record.id != self.id) {
            let starts: Vec<RunAddr> = record.code().iter().map(|function| function.start).collect();
            for code in record.further.iter().filter(|code| code.kept.is_some()) {
                if let Some(symbol) = own.get(plain(&code.symbol)) {
                    let next = starts.iter().copied().filter(|start| *start > code.start).min();
                    let end = next.unwrap_or(record.mapping.text_range().end);
                    found.push(Continued { record, code, symbol: *symbol, room: end.0 - code.start.0 });
                }
            }
        }
        found
    }

    fn path(&self, symbol: SymbolId) -> String {
        let item = self.patch.meta.new_items.iter().find(|item| item.symbol == symbol);
        item.map_or_else(|| self.patch.symbols[symbol.0 as usize].name.clone(), |item| item.path.clone())
    }

    fn is_named(&self, symbol: SymbolId) -> bool {
        self.patch.meta.new_items.iter().any(|item| item.symbol == symbol && item.named)
    }
}

/// A patch by its name and the begin of its id.
fn named(record: &Record) -> String {
    format!("{} ({:.16})", record.name, record.id.to_string())
}

impl Record {
    /// Forgets redirects of functions that lie in one of these patches: they are found anew with each application.
    pub(super) fn forget_earlier(&mut self, patches: &[std::ops::Range<RunAddr>]) {
        self.functions.retain(|function| !patches.iter().any(|text| text.contains(&function.old)));
    }
}
