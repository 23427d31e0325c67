//! What the guard answers.

use crate::findings::{Finding, Place, Severity};
use livepatch_patch::{Digest, NewType};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Everything found, and what was learnt on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GuardReport {
    /// Refusals and notes, in order of code and item.
    pub findings: Vec<Finding>,
    /// One entry for each redirected and each new function with debug information, in the order given.
    pub functions: Vec<FunctionInfo>,
    /// One entry for each new static whose type is known, in the order given.
    pub new_statics: Vec<StaticInfo>,
    /// New symbols of redirected functions of which none may be replaced without the others: they make or call closures whose numbers
    /// may have moved.
    pub together: Vec<BTreeSet<String>>,
    /// Types that the patched code handles and that the old image does not have, but for those of the standard library and closures; and
    /// vtables that the old image does not have.
    pub new_types: Vec<NewType>,
}

impl GuardReport {
    /// Whether nothing stands against the patch.
    pub fn is_safe(&self) -> bool {
        self.refusals().next().is_none()
    }

    /// The findings that stop the patch.
    pub fn refusals(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Refusal)
    }
}

/// A function as the new image describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionInfo {
    /// Its symbol, as given.
    pub symbol: String,
    /// Its source path, for example `app::orders::total` or `app::main::{closure#0}`.
    pub path: String,
    /// The type that it is declared in, or what its generic parameter `Self` stands for.
    pub receiver: Option<String>,
    /// Where its result is.
    pub result: ResultIn,
    /// What its parameters are.
    pub takes: Taken,
    /// How it is called.
    #[serde(skip)]
    pub convention: Convention,
    /// Types of its parameters and of its result, as text.
    #[serde(skip)]
    pub signature: String,
    /// What it takes and returns, as text: equal for functions that can stand for each other.
    #[serde(skip)]
    pub interface: String,
    /// The crate that it was compiled in, as its code units are named.
    pub crate_key: String,
    /// Where it is declared.
    pub place: Option<Place>,
    /// Functions that are inlined into it, at any depth, each once, in order of first appearance.
    pub inlined: Vec<FunctionRef>,
    /// Whether it or what is inlined into it handles functions as values. Debug information does not say which ones.
    pub handles_functions: bool,
}

/// How a function is called, as far as debug information records it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Convention {
    /// Whether the optimiser altered it (`DW_CC_nocall`); `None` where debug information does not tell, as for methods.
    pub altered: Option<bool>,
    /// For each parameter, how it is passed, where that is recorded.
    pub passing: Vec<Option<String>>,
    /// So many registers hold the result at most, if it was not altered.
    pub results: usize,
}

/// What its own code unit shows of the callers of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    /// They are all that there are, so the optimiser was free to alter how they call it.
    pub are_known: bool,
    /// So many registers of the result are read by one or the other.
    pub results: usize,
}

impl Convention {
    /// As text, where it is not that of every function of a signature.
    pub(crate) fn altered(&self) -> String {
        if self.altered == Some(false) { String::new() } else { format!("{:?}", self.passing) }
    }

    /// Whether a caller of the one would call the other wrongly. An altered convention must agree in all that is recorded; otherwise
    /// only a clear contradiction counts, as descriptions of one place may differ.
    pub(crate) fn differs(&self, new: &Self, [own, news]: [Callers; 2]) -> bool {
        let clear = |convention: &Self, callers: Callers| {
            convention.altered.or((!callers.are_known).then_some(false))
        };
        match (clear(self, own), clear(new, news)) {
            (Some(false), Some(false)) => self.contradicts(new),
            (Some(before), Some(after)) => before != after || self.passing != new.passing,
            (None, None) => self.passing != new.passing,
            // Nothing of an old result is missed by callers of the new code. Those of the old code miss one that the new code does not
            // leave, which nobody knows of a result that is not read.
            (before, _) => {
                let all = self.passing.iter().all(Option::is_some) && self.passing == new.passing;
                !all || (before == Some(false) && new.may_drop_result(news))
            }
        }
    }

    /// Whether nothing shows that the optimiser left the whole result where it is declared to be.
    pub(crate) fn may_drop_result(&self, callers: Callers) -> bool {
        self.altered != Some(false) && callers.are_known && callers.results < self.results
    }

    fn contradicts(&self, other: &Self) -> bool {
        // `DW_OP_reg0` to `DW_OP_reg31`, alone.
        let register = |place: &Option<String>| {
            place.clone().filter(|place| place.len() == 4 && matches!(place.as_bytes()[1], b'5' | b'6'))
        };
        self.passing.len() == other.passing.len()
            && self.passing.iter().zip(&other.passing).any(|(a, b)| match (register(a), register(b)) {
                (Some(a), Some(b)) => a != b,
                _ => false,
            })
    }
}

/// What the parameters of a function are, by what a caller may have known of its code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// One of them may point to something.
    pub pointers: bool,
    /// One of them is a value that is passed in memory.
    pub memory: bool,
}

/// Where a function leaves its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ResultIn {
    /// It has none, or that is in memory.
    Memory,
    /// In a register; an integer that may have any value.
    IntegerRegister,
    /// In registers.
    Registers,
}

/// A function named by debug information.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FunctionRef {
    /// Its source path, without hash.
    pub path: String,
    /// Its symbol, if debug information has one.
    pub symbol: Option<String>,
    /// As [`FunctionInfo::receiver`].
    pub receiver: Option<String>,
    /// A place in it: where it is declared, or (in an inline stack) where execution stands in it.
    pub place: Option<Place>,
    /// How many copies of it are inlined, at any depth; 1 in an inline stack.
    pub times: u32,
}

/// The type of a static, condensed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StaticInfo {
    /// Its symbol, as given.
    pub symbol: String,
    /// Its source path.
    pub path: String,
    /// Name of its type.
    pub type_name: String,
    /// Digest over the layout of everything reachable from its type: equal digests, equal layouts.
    pub type_digest: Digest,
    /// Where it is declared.
    pub place: Option<Place>,
}

/// The guard could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// An image cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// An image is not an ELF file of the expected kind.
    #[error("{} is not a readable ELF image", path.display())]
    Elf {
        /// The image.
        path: PathBuf,
        /// Cause.
        #[source]
        source: object::Error,
    },
    /// An image is for another machine.
    #[error("{} is not a 64-bit little-endian x86-64 image", path.display())]
    Machine {
        /// The image.
        path: PathBuf,
    },
    /// Debug information is damaged.
    #[error("debug information of {} is damaged; rebuild it", path.display())]
    Dwarf {
        /// The image.
        path: PathBuf,
        /// Cause.
        #[source]
        source: gimli::Error,
    },
}
