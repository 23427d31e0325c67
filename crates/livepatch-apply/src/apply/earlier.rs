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
use crate::registry::{Function, FunctionRecord, KeptRecord, Record, State};
use crate::report::Policy;
use livepatch_patch::{
    Identity, NewItem, NewItemKind, Patch, Place, RunAddr, SectionKind, SymbolId, Tag, plain,
};
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
#[derive(Clone, PartialEq, Eq)]
enum Becomes {
    /// This function.
    Continued(SymbolId),
    /// Something else may have its name.
    Other,
    /// Part of other functions.
    Inlined,
    /// Nothing; but it calls this function, which is another now.
    Calls(String),
}

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
        let others = state.patches.iter().filter(|record| record.id != self.id);
        others.flat_map(|record| Walk::new(record, state, &own).all()).collect()
    }

    fn path(&self, symbol: SymbolId) -> String {
        let item = self.patch.meta.new_items.iter().find(|item| item.symbol == symbol);
        item.map_or_else(|| demangled(&self.patch.symbols[symbol.0 as usize].name), |item| item.path.clone())
    }
}

/// The functions of the patch that is applied.
struct Own<'p> {
    patch: &'p Patch,
    /// All, by name.
    code: HashMap<&'p str, SymbolId>,
    /// Names of functions that others stand for, or may stand for.
    also: HashMap<&'p str, Vec<SymbolId>>,
    /// Those that replace functions of the image, by the addresses of these.
    redirects: HashMap<RunAddr, SymbolId>,
    /// New ones.
    items: HashMap<SymbolId, &'p NewItem>,
    /// New ones by what is known of which they are.
    known: HashMap<Tag, Vec<SymbolId>>,
}

impl<'p> Own<'p> {
    fn of(patch: &'p Patch, state: &State) -> Self {
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
            if let Some(identity) = item.identity {
                known.entry(identity.function).or_default().push(item.symbol);
            }
        }
        Self { patch, code, also, redirects, items, known }
    }

    fn is_same_code(&self, kept: &KeptRecord, newer: SymbolId) -> bool {
        self.patch.code_digest(newer) == Some(kept.code)
    }

    /// Whether it is beyond doubt that a function of this patch is that one of the source, called in the same way.
    fn continues(&self, kept: &KeptRecord, newer: SymbolId) -> bool {
        let known = kept.identity.filter(|_| kept.sole);
        let item = self.items.get(&newer).filter(|item| item.sole);
        let alone =
            |identity: Identity| self.known.get(&identity.function).is_some_and(|all| *all == [newer]);
        known.is_some_and(|known| alone(known) && item.is_some_and(|item| item.identity == Some(known)))
    }

    /// What continues a function of an earlier patch, which replaced the one of the image at this address, if any.
    fn becomes(&self, kept: &KeptRecord, symbol: &str, image: Option<RunAddr>) -> Option<Becomes> {
        if let Some(old) = image {
            return self.redirects.get(&old).copied().map(Becomes::Continued);
        }
        let of_path = || self.known.get(&kept.identity?.function)?.first().copied();
        let Some(newer) = self.named(symbol).or_else(of_path) else {
            let is_doubtful = self.also.contains_key(plain(symbol));
            return match self.is_inlined(symbol) {
                _ if is_doubtful => Some(Becomes::Other),
                true => Some(Becomes::Inlined),
                false => None,
            };
        };
        // Whoever keeps its address may mean any of those that it stands for.
        for other in kept.also.iter().map(|other| plain(other)) {
            match self.named(other) {
                Some(own) if self.patch.code_digest(own) == self.patch.code_digest(newer) => {}
                None if !self.also.contains_key(other) && !self.is_inlined(other) => {}
                _ => return Some(Becomes::Other),
            }
        }
        let is_it = self.continues(kept, newer) || self.is_same_code(kept, newer);
        Some(if is_it { Becomes::Continued(newer) } else { Becomes::Other })
    }

    /// The function of this name, or the only one that may stand for it.
    fn named(&self, symbol: &str) -> Option<SymbolId> {
        let own = self.code.get(plain(symbol)).copied();
        own.or_else(|| {
            self.also.get(plain(symbol)).and_then(|all| all.first().filter(|_| all.len() == 1).copied())
        })
    }

    fn is_inlined(&self, symbol: &str) -> bool {
        self.patch.meta.inlined.contains(&Tag::of_symbol(symbol))
    }
}

/// The functions of one earlier patch.
struct Walk<'s, 'o> {
    record: &'s Record,
    own: &'o Own<'o>,
    code: Vec<Function<'s>>,
    kept: HashMap<RunAddr, &'s KeptRecord>,
    /// Functions of the image that they replaced.
    image: HashMap<RunAddr, RunAddr>,
}

impl<'s, 'o> Walk<'s, 'o> {
    fn new(record: &'s Record, state: &State, own: &'o Own<'o>) -> Self {
        let of_image = record.functions.iter().filter(|function| !state.is_in_patch(function.old));
        Self {
            record,
            own,
            code: record.code(),
            kept: record.kept.iter().map(|kept| (kept.start, kept)).collect(),
            image: of_image.map(|function| (function.new, function.old)).collect(),
        }
    }

    /// Those that something can come to.
    fn all(&self) -> Vec<Earlier<'s>> {
        let (mut found, mut staying) = (Vec::new(), Vec::new());
        for kept in self.record.kept.iter().filter(|kept| kept.addressed) {
            match self.becomes(kept.start) {
                Some(becomes) => found.extend(self.earlier(kept.start, becomes)),
                None => staying.push(kept.start),
            }
        }
        let mut seen = HashSet::new();
        while let Some(start) = staying.pop() {
            let calls = self.kept.get(&start).map(|kept| kept.calls.as_slice()).unwrap_or_default();
            for call in calls.iter().filter(|_| !seen.contains(&start)) {
                match self.is_other_now(*call) {
                    true => found.extend(self.earlier(start, Becomes::Calls(self.name(*call)))),
                    false => staying.push(*call),
                }
            }
            seen.insert(start);
        }
        found
    }

    fn becomes(&self, start: RunAddr) -> Option<Becomes> {
        let (kept, function) = (self.kept.get(&start)?, self.function(start)?);
        self.own.becomes(kept, function.symbol, self.image.get(&start).copied())
    }

    /// Whether a function that one which stays as it is calls is not what that was compiled for.
    fn is_other_now(&self, start: RunAddr) -> bool {
        let Some(kept) = self.kept.get(&start) else { return self.own.redirects.contains_key(&start) };
        match self.becomes(start) {
            Some(Becomes::Continued(newer)) => !self.own.is_same_code(kept, newer),
            Some(_) => true,
            None => false,
        }
    }

    fn function(&self, start: RunAddr) -> Option<&Function<'s>> {
        self.code.iter().find(|function| function.start == start)
    }

    fn name(&self, start: RunAddr) -> String {
        let of_image = || {
            let redirects = &self.own.patch.meta.redirects;
            let to = self.own.redirects.get(&start)?;
            Some(redirects.iter().find(|redirect| redirect.symbol == *to)?.path.clone())
        };
        let own = self.function(start).map(Function::path);
        own.or_else(of_image).unwrap_or_else(|| start.to_string())
    }

    fn earlier(&self, start: RunAddr, becomes: Becomes) -> Option<Earlier<'s>> {
        let function = self.function(start)?;
        let next = self.code.iter().map(|other| other.start).find(|other| *other > start);
        let end = next.unwrap_or(self.record.mapping.text_range().end);
        Some(Earlier {
            record: self.record,
            start,
            size: function.size,
            symbol: function.symbol,
            room: end.0 - start.0,
            becomes,
        })
    }
}

impl Earlier<'_> {
    fn path(&self) -> String {
        demangled(self.symbol)
    }

    fn which(&self) -> String {
        format!("`{}` of patch {}", self.path(), named(self.record))
    }

    /// Why it does not go together with the patch that is applied.
    fn refusal(&self) -> Option<String> {
        let which = self.which();
        Some(match &self.becomes {
            Becomes::Continued(_) => return None,
            Becomes::Other => format!(
                "the process may keep values that run {which}, and this patch has other code under that name, which may be another function, \
                 closure, or one that is called otherwise; leave what the earlier patch brought as it was and write what is new elsewhere, or \
                 restart the program"
            ),
            Becomes::Inlined => format!(
                "the process may keep the address of {which}, and in this patch it is only inlined into other functions; make it a function of \
                 its own (`#[inline(never)]`), or restart the program"
            ),
            Becomes::Calls(callee) => format!(
                "the process may keep the address of {which}, which this patch does not have, and which calls `{callee}`, another one now; leave \
                 the function where it is, or restart the program"
            ),
        })
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
