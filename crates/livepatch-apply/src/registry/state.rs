//! What the registry says: everything that a later run of the tool must know about the process.

use crate::landing::Pad;
use crate::names::demangled;
use livepatch_patch::{Bias, BuildId, Digest, Identity, NewType, Once, RunAddr, Selection, Tag};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Range;

/// The state of one module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Build-id of the module.
    pub build_id: BuildId,
    /// Load bias of the module.
    pub bias: Bias,
    /// Every patch that was ever in force, oldest first, and behind them one that is about to be. A record stays once its code could be
    /// reached: statics and text stay in the process, and what the program keeps of them is asked about with every later patch. Of one
    /// whose code could not, nothing can be kept ([`State::cancel`]).
    pub patches: Vec<Record>,
    /// Carriers that the loader of the process accepted, whether their patch came into force or not: they cannot be unloaded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carriers: Vec<CarrierRecord>,
    /// Landing pads that were made, in the order of their places.
    pub pads: Vec<Pad>,
    /// What is under way. Left behind only by a run that was killed.
    pub journal: Option<Journal>,
}

/// Where a patch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatchState {
    /// Mapped; the switch to it has begun.
    Applying,
    /// Its functions run.
    Applied,
    /// The switch away from it has begun.
    RollingBack,
    /// Mapped; the image's functions run again.
    RolledBack,
    /// Mapped; a newer patch took its place.
    Replaced,
}

/// One patch in the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Digest of the patch file; for a part of it one that stands for that part.
    pub id: Digest,
    /// Name given by its author.
    pub name: String,
    /// What part of the patch file it is; empty for all of it.
    #[serde(default, skip_serializing_if = "Selection::is_empty")]
    pub selection: Selection,
    /// Where it stands.
    pub state: PatchState,
    /// When it was last applied, in nanoseconds since the Unix epoch.
    pub applied_at: u64,
    /// Where it is mapped.
    pub mapping: Mapping,
    /// Functions that it redirects.
    pub functions: Vec<FunctionRecord>,
    /// Its other code: new functions, and copies of functions of the image that only its own code calls.
    pub further: Vec<CodeRecord>,
    /// Writable statics that it brought in, or went on with.
    pub statics: Vec<StaticRecord>,
    /// Thread-locals that it brought in, or went on with.
    pub thread_locals: Vec<ThreadLocalRecord>,
    /// Its named constants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constants: Vec<ConstantRecord>,
    /// Start and size of its unwind tables.
    pub eh_frame: Option<Region>,
    /// Digest of text and read-only part as linked.
    pub contents: Digest,
    /// The object that carries its thread-locals, if it brought any.
    pub carrier: Option<Carrier>,
    /// Types that it brought, of which the process may have values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<NewType>,
    /// Variables that it would have brought, had the compiler not left them out or taken them apart.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub vanished: BTreeSet<Tag>,
    /// Functions that it brought and that only compute what is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub once: Vec<Once>,
    /// Its functions that the process may keep the address of, and those that they lead to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<KeptRecord>,
    /// Functions of the image of which its code or data takes the address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<TakenRecord>,
}

/// A piece of the target's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// First byte.
    pub start: RunAddr,
    /// Size in bytes.
    pub size: u64,
}

impl Region {
    /// As a half-open range.
    pub fn range(self) -> Range<RunAddr> {
        self.start..self.start.offset(self.size as i64)
    }
}

/// The three parts of a mapped patch, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Start of the text.
    pub base: RunAddr,
    /// Size of the code part.
    pub text: u64,
    /// Size of the read-only part.
    pub rodata: u64,
    /// Size of the writable part.
    pub data: u64,
}

impl Mapping {
    /// The code part.
    pub fn text_range(&self) -> Range<RunAddr> {
        self.base..self.base.offset(self.text as i64)
    }

    /// All three parts.
    pub fn total(&self) -> u64 {
        self.text.saturating_add(self.rodata).saturating_add(self.data)
    }
}

/// One redirected function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionRecord {
    /// Demangled path.
    pub path: String,
    /// Mangled name.
    pub symbol: String,
    /// Start of the function, in the image or in an earlier patch.
    pub old: RunAddr,
    /// Its size in bytes.
    pub old_size: u64,
    /// Start of the new function. What this patch does not have, and an earlier one does, is led to where that has it.
    pub new: RunAddr,
    /// Its size in bytes.
    pub new_size: u64,
    /// The image's bytes under the jump.
    pub saved: Code,
    /// The jump.
    pub jump: Code,
}

/// A function in the patch's text that no entry leads to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CodeRecord {
    /// Mangled name.
    pub symbol: String,
    /// Its first byte.
    pub start: RunAddr,
    /// Its size in bytes.
    pub size: u64,
}

/// A function of a patch that the process may come to after the patch was taken away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// Its first byte; [`Record::code`] knows the rest.
    pub start: RunAddr,
    /// What its code is ([`livepatch_patch::Patch::code_digest`]).
    pub code: Digest,
    /// The process may have its address. If not, only such functions lead to it.
    pub addressed: bool,
    /// The functions of the patch, and of the image, that it calls or jumps to.
    pub calls: Vec<RunAddr>,
    /// Which one of the source it is, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// No other item of the source goes by the same path.
    #[serde(default)]
    pub sole: bool,
    /// It may be another than the function of the image that it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub altered: bool,
    /// Symbols of others whose address may be this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// Those of them that did what they do in the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shipped: Vec<String>,
}

/// A function of the image whose address the process may have from a patch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakenRecord {
    /// Mangled name.
    pub symbol: String,
    /// Its first byte.
    pub start: RunAddr,
    /// Symbols of others whose address this may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// Those of them that did what they do in the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shipped: Vec<String>,
}

/// A writable static in the data of a patch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StaticRecord {
    /// Mangled name.
    pub name: String,
    /// Where it is.
    pub address: RunAddr,
    /// Size in bytes.
    pub size: u64,
    /// Digest of the type's layout.
    pub type_digest: Option<Digest>,
    /// No other item of the source goes by the same path.
    #[serde(default)]
    pub sole: bool,
    /// Digest of what it begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<Digest>,
}

/// A static that nothing writes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConstantRecord {
    /// Mangled name.
    pub name: String,
    /// Where it is.
    pub address: RunAddr,
    /// Digest of what it is.
    pub value: Digest,
}

/// A thread-local in a carrier object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadLocalRecord {
    /// Mangled name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Digest of the type's layout.
    pub type_digest: Option<Digest>,
    /// No other item of the source goes by the same path.
    #[serde(default)]
    pub sole: bool,
    /// Digest of what it begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<Digest>,
    /// Loader's number of the carrier.
    pub module: u64,
    /// Offset in the carrier's block.
    pub offset: u64,
    /// Offset from the thread pointer, if the carrier is in the static area.
    pub tp_offset: Option<i64>,
}

/// The object that was loaded for the sake of its TLS segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carrier {
    /// Handle that `dlopen` gave.
    pub handle: u64,
    /// Loader's number of the module.
    pub module: u64,
    /// Start of its block relative to the thread pointer, if static.
    pub tp_offset: Option<i64>,
}

/// A carrier and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarrierRecord {
    /// Digest of its file.
    pub file: Digest,
    /// Where it is.
    pub carrier: Carrier,
}

/// The five bytes at a function's entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(pub [u8; crate::jump::JUMP_SIZE]);

/// An operation under way: enough to finish or to undo it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub enum Journal {
    /// A patch is being loaded; nothing points to the mapping but, possibly, the unwinder.
    Loading {
        /// What was mapped.
        mapping: Mapping,
        /// Its unwind tables, once they are there.
        eh_frame: Option<RunAddr>,
        /// What is being done about them.
        step: FrameStep,
    },
    /// Entries are being rewritten.
    Switching {
        /// The intended writes.
        writes: Vec<EntryWrite>,
        /// State of each patch (by index) if all writes were made.
        after: Vec<(usize, PatchState)>,
        /// State of each patch (by index) if none was made.
        before: Vec<(usize, PatchState)>,
        /// Whether breakpoints lead to the landing area, which knows the world that was committed to.
        by_breakpoints: bool,
    },
}

/// What a call from the call site, if it was made, does about the unwind tables of a patch that is being loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameStep {
    /// Nothing: they are not known to the unwinder.
    None,
    /// It announces them.
    Registering,
    /// It revokes them.
    Revoking,
}

/// One rewritten entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryWrite {
    /// Start of the function.
    pub at: RunAddr,
    /// What is there when the operation starts.
    pub before: Code,
    /// What the operation puts there.
    pub after: Code,
}

/// A function in the text of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function<'a> {
    /// Its path, if the patch says.
    path: Option<&'a str>,
    /// Mangled name.
    pub symbol: &'a str,
    /// Its first byte.
    pub start: RunAddr,
    /// Its size in bytes.
    pub size: u64,
}

impl Function<'_> {
    /// Demangled path.
    pub fn path(&self) -> String {
        match self.path {
            Some(path) => path.to_owned(),
            None => demangled(self.symbol),
        }
    }
}

impl Record {
    /// All functions in its text, by address.
    pub fn code(&self) -> Vec<Function<'_>> {
        let text = self.mapping.text_range();
        let redirected = self.functions.iter().filter(|f| text.contains(&f.new)).map(|f| Function {
            path: Some(&f.path),
            symbol: &f.symbol,
            start: f.new,
            size: f.new_size,
        });
        let further = self.further.iter().map(|f| Function {
            path: None,
            symbol: &f.symbol,
            start: f.start,
            size: f.size,
        });
        let mut code: Vec<_> = redirected.chain(further).collect();
        code.sort_by_key(|function| (function.start, function.symbol));
        // Several functions of the image may have become one.
        code.dedup_by_key(|function| (function.start, function.symbol));
        code
    }
}

impl State {
    /// A module without patches.
    pub fn new(build_id: BuildId, bias: Bias) -> Self {
        let (patches, carriers, pads) = (Vec::new(), Vec::new(), Vec::new());
        Self { build_id, bias, patches, carriers, pads, journal: None }
    }

    /// The patch whose functions run, if any: there is at most one.
    pub fn active(&self) -> Option<usize> {
        self.patches.iter().position(|p| p.state == PatchState::Applied)
    }

    /// The record of a patch file.
    pub fn find(&self, id: &Digest) -> Option<usize> {
        self.patches.iter().position(|p| p.id == *id)
    }

    /// A loaded carrier of this very file that no patch uses. The patch that it was loaded for never ran, so that its blocks are as they
    /// began.
    pub fn spare_carrier(&self, file: &Digest) -> Option<Carrier> {
        let is_used = |carrier| self.patches.iter().any(|record| record.carrier == Some(carrier));
        let known = self.carriers.iter().filter(|known| known.file == *file);
        known.map(|known| known.carrier).find(|carrier| !is_used(*carrier))
    }

    /// Takes back a switch of which no entry was ever written, by the states before it. The patch that was loaded for it is forgotten:
    /// no instruction of it could be reached, and so the program has nothing of it.
    pub fn cancel(&mut self, before: &[(usize, PatchState)]) {
        let is_loaded_for_it = |index: &usize| {
            self.patches.get(*index).is_some_and(|record| record.state == PatchState::Applying)
        };
        let loaded = before.iter().map(|(index, _)| *index).find(is_loaded_for_it);
        self.settle(before);
        if let Some(index) = loaded {
            self.patches.remove(index);
        }
    }

    /// Puts patches into the states that a finished or undone switch left them in.
    pub fn settle(&mut self, states: &[(usize, PatchState)]) {
        for (index, state) in states {
            if let Some(record) = self.patches.get_mut(*index) {
                record.state = *state;
            }
        }
        self.journal = None;
    }
}
