//! The patch as a value: what `create` makes, what the container stores, what the linker links.
//!
//! A patch is a small relocatable object. Its sections hold the new functions and what they newly need; its symbols
//! are either defined in those sections or say where in the baseline image (or in which imported library
//! symbol) the thing lives. The list of [`Redirect`]s says which functions of the image are to be replaced.

use crate::addr::LinkAddr;
use crate::awaits::Await;
use crate::ident::{Arch, BuildId, Digest};
use crate::item::ItemName;
use crate::kept::Tag;
use crate::reloc::RelocKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// A whole patch.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// Target, redirects and everything a person wants to know.
    pub meta: Meta,
    /// Contents, indexed by [`SectionId`].
    pub sections: Vec<Section>,
    /// Names and places, indexed by [`SymbolId`].
    pub symbols: Vec<Symbol>,
}

/// Index into [`Patch::sections`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SectionId(pub u32);

/// Index into [`Patch::symbols`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SymbolId(pub u32);

/// The part of a patch that is stored as JSON in its `.livepatch.meta` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Name given by the author (by default the artifact's name).
    pub name: String,
    /// Version of livepatch that made the patch.
    pub tool: String,
    /// First line of `rustc --version` of the compiler that made it.
    pub rustc: String,
    /// Creation time, seconds since the Unix epoch.
    pub created: u64,
    /// The only image that this patch fits.
    pub target: Target,
    /// Functions of the image that are replaced.
    pub redirects: Vec<Redirect>,
    /// Functions of the image that have no counterpart in the patch, and that replaced functions jump to.
    #[serde(default)]
    pub orphans: Vec<Orphan>,
    /// Symbols defined in the patch that have no counterpart in the image: new functions, statics, thread-locals.
    pub new_items: Vec<NewItem>,
    /// Named constants of the image whose value is another in the patch.
    #[serde(default)]
    pub constants: Vec<Constant>,
    /// Libraries, by soname, that the rebuilt image asks the loader for and the baseline does not. Imports may be of these.
    #[serde(default)]
    pub libraries: Vec<String>,
    /// Why no part of the patch can be applied by itself, if that is so whatever the part.
    #[serde(default)]
    pub indivisible: Option<String>,
    /// What is worth knowing for whoever applies it.
    #[serde(default)]
    pub notes: Vec<Note>,
    /// Types that patched code handles and that the image does not have. Values of them outlive the patch.
    #[serde(default)]
    pub types: Vec<NewType>,
    /// Functions ([`Tag::of_symbol`]) that are inlined into patched code, are not as they were in the image, and that the patch does not
    /// have as such.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub inlined: BTreeSet<Tag>,
    /// Functions of the source that was shipped ([`Tag::of_symbol`]) that may not be what they were, and that are in the patch without
    /// being replaced: only patched code leads to these.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub altered: BTreeSet<Tag>,
    /// Functions of the source that was shipped ([`Tag::of_symbol`]) that do what they did, and of which the patch has a copy, or code that
    /// may stand for them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub same: BTreeSet<Tag>,
    /// Functions of the image whose address in the patch stands for that of others, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stands: Vec<Stands>,
    /// Variables ([`Tag::of_symbol`]) that the image does not have and of which the compiler left out the whole or made parts.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub vanished: BTreeSet<Tag>,
    /// New functions that only compute what is kept once it is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub once: Vec<Once>,
}

/// A type that comes with a patch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewType {
    /// Its path, with generic arguments.
    pub name: String,
    /// Digest of its layout.
    pub digest: Digest,
    /// Of futures: what each of those in its name awaits, as far as the source tells that of one function.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub awaits: Vec<Vec<Await>>,
}

impl NewType {
    /// Whether values that were made of one may meet code for the other.
    pub fn goes_on_as(&self, newer: &Self) -> bool {
        let moved = |(old, new): (&Vec<Await>, &Vec<Await>)| Await::moved(old, new).is_some();
        let same = self.digest == newer.digest && self.awaits.len() == newer.awaits.len();
        same && !self.awaits.iter().zip(&newer.awaits).any(moved)
    }
}

/// A function of the image that had the same code as new ones, so that its address may stand for theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stands {
    /// Its symbol.
    pub symbol: SymbolId,
    /// The symbols of the others.
    pub also: Vec<String>,
}

/// A function that computes what is kept once it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Once {
    /// Its path in the source.
    pub path: String,
    /// What keeps the value, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<String>,
    /// What it is: its text, or its raw code where a macro made it.
    pub body: Tag,
}

/// Something about a patch that is no obstacle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Code of its rule, such as `LP0111`.
    pub code: String,
    /// What it says, in one line.
    pub title: String,
    /// Source path of what it is about.
    pub item: String,
    /// `file:line` of the item in the new source, if known.
    pub place: Option<String>,
    /// Why it is so.
    pub reason: String,
    /// What can be done.
    pub help: String,
    /// In a patch the functions ([`Meta::redirects`]) that it is about; none if it is about whatever is chosen of the patch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<u32>,
}

/// The image that a patch fits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Its build-id.
    pub build_id: BuildId,
    /// Its instruction set.
    pub arch: Arch,
    /// Its file name when it was built (for messages only).
    pub file_name: String,
    /// How it is loaded.
    pub kind: ImageKind,
    /// Its `PT_TLS` segment, if it has one.
    pub tls: Option<TlsSegment>,
}

/// How an image gets into a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// The main executable: its thread-locals have fixed offsets from the thread pointer.
    Executable,
    /// A shared object, loaded at start or by `dlopen`.
    SharedObject,
}

/// The `PT_TLS` program header of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsSegment {
    /// Address of the initialisation image.
    pub addr: LinkAddr,
    /// Size in memory (`p_memsz`).
    pub size: u64,
    /// Alignment (`p_align`).
    pub align: u64,
}

/// One function of the image that enters new code after `apply`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Redirect {
    /// The new function, defined in the patch.
    pub symbol: SymbolId,
    /// Demangled path without hash.
    pub path: String,
    /// Where the old function starts in the image.
    pub old: LinkAddr,
    /// Size of the old function in bytes.
    pub old_size: u64,
    /// Bytes from `old` that the jump may overwrite: the function and the padding behind it. At least 5.
    pub room: u64,
    /// Digest of the old function's `old_size` bytes as linked; a process whose bytes differ is refused.
    pub old_digest: Digest,
    /// Why it is in the patch.
    pub reason: Reason,
    /// `file:line` of the new definition, if known.
    pub place: Option<String>,
    /// What a selection has to know about it. A function without it can only be applied with all others.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// All that changed in it only computes values that are kept once they are there, or runs once.
    #[serde(default)]
    pub initialises: bool,
}

impl Meta {
    /// Whether all that the patch changes only computes values that are kept once they are there, or runs
    /// once: it has no effect where they are, or where that code has run.
    pub fn only_initialises(&self) -> bool {
        !self.redirects.is_empty() && self.redirects.iter().all(|redirect| redirect.initialises)
    }

    /// The notes as reports have them: without numbers of functions.
    pub fn told(&self) -> Vec<Note> {
        self.notes.iter().map(|note| Note { functions: Vec::new(), ..note.clone() }).collect()
    }
}

/// Where a replaced function comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its name in the source.
    pub item: ItemName,
    /// Every item of the source that changed and whose code is in it: itself, and what is inlined into it. Empty for a
    /// function whose code differs only because of what the compiler knew about functions that changed.
    pub holds: Vec<ItemName>,
    /// Other functions ([`Meta::redirects`]) without which its code, old or new, is not proven right.
    pub tied: Vec<u32>,
    /// Those of `holds` that the optimiser gave the code of this function, because theirs is equal: whoever calls one of these comes here, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merged: Vec<ItemName>,
}

/// A function of the image that the rebuilt one lacks and that nothing calls once the functions that jump to it are replaced.
///
/// A thread in it is in what the patch replaces, although no replaced function is on its stack: the function that jumped to
/// it (a tail call) left its frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// Demangled path without hash.
    pub path: String,
    /// Where it starts in the image.
    pub old: LinkAddr,
    /// Its size in bytes.
    pub old_size: u64,
    /// The functions ([`Meta::redirects`]) that jump to it, themselves or through others that are so.
    pub from: Vec<u32>,
}

/// A named constant whose value changed: all functions that read it have to be applied together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constant {
    /// Demangled path.
    pub path: String,
    /// The symbol that defines the new value.
    pub symbol: SymbolId,
}

/// Why a function is in a patch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "path")]
pub enum Reason {
    /// Its own code changed.
    Changed,
    /// Code of this function, inlined into it, changed.
    Inlines(String),
    /// It differs, and calls this function, which changed: it may have been compiled for what that was.
    Calls(String),
    /// Nothing that changed shows in it, but something may have been inlined into it and computed away.
    Reached,
    /// The image has no such function.
    New,
}

/// The words of reports and of the command line's JSON.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => f.write_str("changed"),
            Self::Inlines(path) => write!(f, "inlines {path}"),
            Self::Calls(path) => write!(f, "may have been compiled for {path}"),
            Self::Reached => f.write_str("may hold what changed"),
            Self::New => f.write_str("new"),
        }
    }
}

/// An item that the patch brings into the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewItem {
    /// Demangled path.
    pub path: String,
    /// The symbol that defines it.
    pub symbol: SymbolId,
    /// What it is.
    pub kind: NewItemKind,
    /// For statics and thread-locals: digest of the type's layout. A later patch shares the running instance only if
    /// name, size and this digest agree.
    pub type_digest: Option<Digest>,
    /// For functions: which one of the source it is, as far as debug information and the source say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// No other item of the source goes by the same path.
    #[serde(default)]
    pub sole: bool,
    /// A call site of the crate `tracing`: a cache, for which any with the same type digest will do, or a new one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub call_site: bool,
    /// For functions: symbols of others that had the same code, so that its address may stand for theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Which function of the source a new function is, in any build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its path, generic arguments and receiver.
    pub function: Tag,
    /// What it takes and returns, and how.
    pub interface: Tag,
    /// What stands for the numbers in its path, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numbers: Vec<Number>,
}

/// A closure or async block, which has nothing but a number among those of what it stands in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Number {
    /// Its number, from 0.
    pub own: u32,
    /// Of all that are counted with it what stands in front of the body, and the whole text.
    pub all: Vec<(Tag, Tag)>,
    /// Of the text of macro calls among them, which may have others in their arguments.
    pub around: Tag,
}

impl Identity {
    /// Whether this is beyond doubt the function that another one was in an earlier source.
    pub fn continues(&self, earlier: &Self) -> bool {
        self.function == earlier.function
            && self.interface == earlier.interface
            && self.numbers.len() == earlier.numbers.len()
            && self.numbers.iter().zip(&earlier.numbers).all(|(own, was)| own.continues(was))
    }
}

impl Number {
    /// Whether it is that of an earlier source: it is the same text, or no other can have taken its place. With another text it must be the
    /// only one of its kind that has one.
    fn continues(&self, earlier: &Self) -> bool {
        let (Some(own), Some(was)) = (self.all.get(self.own as usize), earlier.all.get(earlier.own as usize))
        else {
            return false;
        };
        let headers = |all: &[(Tag, Tag)]| all.iter().map(|(header, _)| *header).collect::<Vec<_>>();
        let is_sole = |all: &[(Tag, Tag)]| all.iter().filter(|other| *other == own).count() == 1;
        let in_step = headers(&self.all) == headers(&earlier.all);
        let others = || self.all.iter().zip(&earlier.all).filter(|(is, was)| is.0 == own.0 && is != was);
        self.own == earlier.own
            && match own == was {
                true => in_step || is_sole(&self.all) && is_sole(&earlier.all),
                // Nor can it have come out of a macro's arguments.
                false => in_step && self.around == earlier.around && others().count() == 1,
            }
    }
}

/// Kinds of new items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NewItemKind {
    /// Code.
    Function,
    /// Writable data that keeps its value across later patches.
    Static,
    /// A thread-local variable.
    ThreadLocal,
}

/// A piece of contents with one protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// ELF section name, for tools and people; carries no meaning.
    pub name: String,
    /// Where it is mapped and how.
    pub kind: SectionKind,
    /// Alignment in bytes, a power of two up to the page size.
    pub align: u64,
    /// Contents; empty for zero-filled kinds.
    pub bytes: Vec<u8>,
    /// Size in memory; equals `bytes.len()` unless the kind is zero-filled.
    pub size: u64,
    /// Relocations, sorted by offset.
    pub relocs: Vec<Reloc>,
}

/// Where a section goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectionKind {
    /// Code: mapped read and execute.
    Text,
    /// Constants, including those with absolute addresses in them: read-only once relocated.
    ReadOnly,
    /// Initialised writable data.
    Data,
    /// Zero-filled writable data.
    Bss,
    /// Initialisation image of new thread-locals.
    TlsData,
    /// Zero-filled new thread-locals.
    TlsBss,
    /// Unwind tables in `.eh_frame` format; at most one section, ended by a zero word.
    EhFrame,
}

/// One place in a section that depends on addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloc {
    /// Offset in the section.
    pub offset: u64,
    /// What is computed and how wide it is.
    pub kind: RelocKind,
    /// Against what.
    pub symbol: SymbolId,
    /// Constant added.
    pub addend: i64,
}

/// A name and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Mangled name as the compiler wrote it.
    pub name: String,
    /// Where the thing lives.
    pub place: Place,
}

/// Where a symbol's thing lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the patch.
    Section {
        /// Which section.
        section: SectionId,
        /// Offset in it.
        offset: u64,
        /// Size in bytes (0 if unknown).
        size: u64,
    },
    /// In the baseline image.
    Image {
        /// Its image-relative address.
        addr: LinkAddr,
        /// Size in bytes (0 if unknown).
        size: u64,
    },
    /// A thread-local of the baseline image.
    ImageTls {
        /// Offset from the start of the image's `PT_TLS` segment.
        offset: u64,
    },
    /// A dynamic symbol of another module of the process.
    Import {
        /// A GOT slot of the image that the loader fills with exactly this symbol's address, if there is one.
        got: Option<LinkAddr>,
        /// Whether there need not be such a symbol: its address is 0 then.
        weak: bool,
    },
}
