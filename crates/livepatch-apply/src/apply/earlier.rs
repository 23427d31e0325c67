//! What earlier patches brought, and the process may still have.
//!
//! Patches are cumulative: each is made against the image. But between two of them the process runs, and keeps what the first one
//! brought: objects with vtables in it, function pointers, closures, values of its types. Where the next patch has such a function again,
//! the kept address leads to the newer code, as the address of a function of the image would. What the next patch does not have runs on as
//! it was, and what that calls leads to the newer code in turn. What cannot be led there with certainty is a reason to refuse: another
//! closure under the same number, a function whose newer code is only inside of others, a type with another layout.

use super::record::saved;
use super::{Job, Prepared};
use crate::branches::branches_into_entry;
use crate::error::ApplyError;
use crate::guard::Guard;
use crate::jump::{self, JUMP_SIZE};
use crate::registry::{FunctionRecord, KeptRecord, Record, State};
use crate::report::Policy;
use livepatch_patch::{NameHash, Place, RunAddr, SectionKind, SymbolId, plain};
use std::collections::{HashMap, HashSet};

/// A function of an earlier patch that the process may come to.
struct Earlier<'s> {
    record: &'s Record,
    start: RunAddr,
    size: u64,
    /// Its mangled name.
    symbol: &'s str,
    /// Bytes from its start to the next function.
    room: u64,
    becomes: Becomes,
}

/// What it is in the patch that is applied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Becomes {
    /// This function.
    Continued(SymbolId),
    /// Something else has its name.
    Other,
    /// Part of other functions.
    Inlined,
}

impl Job<'_> {
    /// Whether what earlier patches brought goes together with this one.
    pub(super) fn check_earlier(&self, prepared: &Prepared<'_>) -> Result<(), ApplyError> {
        let state = prepared.state();
        self.same_types(&state)?;
        let earlier = self.reached(&state);
        let becomes = |what: Becomes| earlier.iter().filter(move |function| function.becomes == what);
        // What a closure is made into by the standard library says nothing to anybody.
        let own = becomes(Becomes::Other).find(|function| function.path().contains("{closure"));
        if let Some(function) = own.or_else(|| becomes(Becomes::Other).next()) {
            return Err(ApplyError::refused(format!(
                "the process may keep values that run {}, and this patch has other code under that name, which may be another closure; leave \
                 what the earlier patch brought as it was and write what is new elsewhere, or restart the program",
                function.which()
            )));
        }
        if let Some(function) = becomes(Becomes::Inlined).next() {
            return Err(ApplyError::refused(format!(
                "the process may keep the address of {}, or of what calls it, and in this patch it is only inlined into other functions; make it \
                 a function of its own (`#[inline(never)]`), or restart the program",
                function.which()
            )));
        }
        earlier.iter().try_for_each(|function| self.check_entry(prepared, function))
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
        let mut functions = Vec::new();
        for function in self.reached(state) {
            let Becomes::Continued(symbol) = function.becomes else { continue };
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

    /// Functions of other patches that the process may come to, and that are something in this patch.
    fn reached<'s>(&self, state: &'s State) -> Vec<Earlier<'s>> {
        let own = Own::of(self, state);
        let others = state.patches.iter().filter(|record| record.id != self.id);
        others.flat_map(|record| self.reached_in(record, state, &own)).collect()
    }

    fn reached_in<'s>(&self, record: &'s Record, state: &State, own: &Own<'_>) -> Vec<Earlier<'s>> {
        let code = record.code();
        let kept: HashMap<RunAddr, &KeptRecord> = record.kept.iter().map(|kept| (kept.start, kept)).collect();
        let mut left: Vec<RunAddr> =
            record.kept.iter().filter(|kept| kept.addressed).map(|kept| kept.start).collect();
        let (mut seen, mut found) = (HashSet::new(), Vec::new());
        while let Some(start) = left.pop() {
            let known = kept.get(&start).zip(code.iter().find(|function| function.start == start));
            let Some((kept, function)) = known.filter(|_| seen.insert(start)) else { continue };
            let image = record.functions.iter().find(|f| f.new == start && !state.is_in_patch(f.old));
            let Some(becomes) = self.becomes(kept, function.symbol, image.map(|f| f.old), own) else {
                left.extend(&kept.calls);
                continue;
            };
            let next = code.iter().map(|other| other.start).find(|other| *other > start);
            let end = next.unwrap_or(record.mapping.text_range().end);
            let room = end.0 - start.0;
            found.push(Earlier {
                record,
                start,
                size: function.size,
                symbol: function.symbol,
                room,
                becomes,
            });
        }
        found
    }

    /// What continues a function of an earlier patch, which replaced the one of the image at this address, if any.
    fn becomes(
        &self,
        kept: &KeptRecord,
        symbol: &str,
        image: Option<RunAddr>,
        own: &Own<'_>,
    ) -> Option<Becomes> {
        if let Some(old) = image {
            return own.redirects.get(&old).copied().map(Becomes::Continued);
        }
        match own.code.get(plain(symbol)) {
            Some(newer) if own.is_named(*newer) || self.patch.code_digest(*newer) == Some(kept.code) => {
                Some(Becomes::Continued(*newer))
            }
            Some(_) => Some(Becomes::Other),
            None => self.patch.meta.inlined.contains(&NameHash::of(symbol)).then_some(Becomes::Inlined),
        }
    }

    fn path(&self, symbol: SymbolId) -> String {
        let item = self.patch.meta.new_items.iter().find(|item| item.symbol == symbol);
        item.map_or_else(|| demangled(&self.patch.symbols[symbol.0 as usize].name), |item| item.path.clone())
    }
}

/// The functions of the patch that is applied.
struct Own<'p> {
    /// All, by name.
    code: HashMap<&'p str, SymbolId>,
    /// Those that replace functions of the image, by the addresses of these.
    redirects: HashMap<RunAddr, SymbolId>,
    /// Those of which the name says which function of the source it is.
    named: HashSet<SymbolId>,
}

impl<'p> Own<'p> {
    fn of(job: &Job<'p>, state: &State) -> Self {
        let patch = job.patch;
        let is_code = |place: &Place| match place {
            Place::Section { section, .. } => patch.sections[section.0 as usize].kind == SectionKind::Text,
            _ => false,
        };
        let symbols = patch.symbols.iter().enumerate().filter(|(_, symbol)| is_code(&symbol.place));
        let code = symbols.map(|(index, symbol)| (plain(&symbol.name), SymbolId(index as u32))).collect();
        let redirects: HashMap<_, _> =
            patch.meta.redirects.iter().map(|to| (to.old.at(state.bias), to.symbol)).collect();
        let items = patch.meta.new_items.iter().filter(|item| item.named).map(|item| item.symbol);
        let named = items.chain(redirects.values().copied()).collect();
        Self { code, redirects, named }
    }

    fn is_named(&self, symbol: SymbolId) -> bool {
        self.named.contains(&symbol)
    }
}

impl Earlier<'_> {
    fn path(&self) -> String {
        demangled(self.symbol)
    }

    fn which(&self) -> String {
        format!("`{}` of patch {}", self.path(), named(self.record))
    }
}

fn demangled(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(symbol))
}

/// A patch by its name and the begin of its id.
fn named(record: &Record) -> String {
    format!("{} ({:.16})", record.name, record.id.to_string())
}

impl State {
    fn is_in_patch(&self, at: RunAddr) -> bool {
        self.patches.iter().any(|record| record.mapping.text_range().contains(&at))
    }
}

impl Record {
    /// Forgets redirects of functions that lie in one of these patches: they are found anew with each application.
    pub(super) fn forget_earlier(&mut self, patches: &[std::ops::Range<RunAddr>]) {
        self.functions.retain(|function| !patches.iter().any(|text| text.contains(&function.old)));
    }
}
