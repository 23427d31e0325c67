//! What the guard is asked about.

use super::report::Callers;
use crate::source::ChangedType;
use livepatch_patch::LinkAddr;
use std::collections::BTreeSet;
use std::path::Path;

/// A change to be judged: the two linked, unstripped images and what the patch would touch.
#[derive(Clone, Copy, Debug)]
pub struct GuardInput<'a> {
    /// The baseline's unstripped image, the one that runs.
    pub old_image: &'a Path,
    /// The rebuilt unstripped image.
    pub new_image: &'a Path,
    /// Functions that will be redirected; they exist in both images.
    pub functions: &'a [ChangedFunction],
    /// Functions of the old image that the transition waits for besides those: nothing continues them, and they are jumped to.
    pub orphans: &'a BTreeSet<LinkAddr>,
    /// Old and new symbols of functions that have other ones in the new image, whether they are redirected or not.
    pub renamed: &'a [(String, String)],
    /// Named variables that exist in both images and that the patch refers to.
    pub statics: &'a [SharedStatic],
    /// Functions that the patch brings in and that no old code calls.
    pub new_functions: &'a [NewFunction],
    /// Variables that the patch brings in.
    pub new_statics: &'a [NewStatic],
    /// Crates of others of which both builds have the same version, with the same features.
    pub unchanged: &'a BTreeSet<String>,
    /// Types that the new source declares with other contents.
    pub types: &'a [ChangedType],
}

/// Whether the function at an address of the old image is equal to the one at an address of the new image, and is not redirected.
pub type SameCode<'s> = dyn Fn(LinkAddr, LinkAddr) -> bool + 's;

/// Whether the closure or async body of this symbol is the one that had it in the old image; `None` if that is not known.
pub type SameClosure<'s> = dyn Fn(&str) -> Option<bool> + 's;

/// Whether a crate may have another source, of which nothing tells what became of its closures.
pub type Unseen<'s> = dyn Fn(&str) -> bool + 's;

/// Whoever is asked where the images alone do not tell.
#[derive(Clone, Copy)]
pub struct Witness<'s> {
    /// About functions at two addresses.
    pub same_code: &'s SameCode<'s>,
    /// About closures.
    pub same_closure: &'s SameClosure<'s>,
    /// About crates: whether its closures may have moved without anybody knowing.
    pub unseen: &'s Unseen<'s>,
}

/// A function to be redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedFunction {
    /// Its symbol in the old image, as in the symbol table.
    pub symbol: String,
    /// Its symbol in the new image (differs where a hash or a `.llvm.` suffix was matched).
    pub new_symbol: String,
    /// Its address in the old image.
    pub old: LinkAddr,
    /// Its size in the old image, in bytes.
    pub old_size: u64,
    /// Its address in the new image.
    pub new: LinkAddr,
    /// Its size in the new image, in bytes.
    pub new_size: u64,
    /// What is known of its callers in the old build and in the new one.
    pub callers: [Callers; 2],
}

/// A function that exists in the new image only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFunction {
    /// Its symbol in the new image.
    pub symbol: String,
    /// Its address in the new image.
    pub new: LinkAddr,
    /// Its size, in bytes.
    pub new_size: u64,
}

/// Where a variable lives in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StaticPlace {
    /// A static at this address.
    Data(LinkAddr),
    /// A thread-local at this offset in the module's TLS block (the value of its symbol).
    Tls(u64),
}

/// A variable that exists in both images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedStatic {
    /// Its symbol in the old image.
    pub old_symbol: String,
    /// Its symbol in the new image.
    pub new_symbol: String,
    /// Its place in the old image.
    pub old: StaticPlace,
    /// Its size in the old image, in bytes.
    pub old_size: u64,
    /// Its place in the new image.
    pub new: StaticPlace,
    /// Its size in the new image, in bytes.
    pub new_size: u64,
}

/// A variable that exists in the new image only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewStatic {
    /// Its symbol in the new image.
    pub symbol: String,
    /// Its place in the new image.
    pub new: StaticPlace,
    /// Its size, in bytes.
    pub size: u64,
}
