//! How each package of a build was compiled, as far as the names of its symbols depend on it.
//!
//! cargo gives each compilation a number (`-C metadata`) that it derives from the package's version and source, its
//! features and profile, and the numbers of everything that it depends on. The compiler hashes the number into every
//! symbol of the crate. A bumped dependency, an added one or another feature so renames every function of all crates above
//! it, although their code is the same. The compiler wrapper leaves a note beside each output
//! (`deps/NAME-HASH.livepatch`), so that two builds can be compared ([`compare`]) and a rebuild can be given the numbers
//! of its baseline ([`pins`]).

mod compare;
mod note;

pub(crate) use compare::{Pins, compare, is_in_program, pins};
pub(crate) use note::{discard_unpinned, note_of, read, write};

use livepatch_patch::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One compilation of a package's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Name of the package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Name of the crate, as paths begin with it.
    pub crate_name: String,
    /// The value of `-C metadata` that cargo asked for.
    pub asked: String,
    /// The value of `-C metadata` that it was compiled with.
    pub metadata: String,
    /// Enabled features.
    pub features: BTreeSet<String>,
    /// The other arguments that decide what the code is: crate types, edition, code generation.
    pub settings: BTreeSet<String>,
    /// The package's folder.
    pub manifest_dir: String,
    /// The folder of what its build script generated, if it has one.
    pub out_dir: Option<String>,
    /// Whether cargo takes it for the user's own code: a member of the workspace or another local package.
    #[serde(default)]
    pub local: bool,
    /// Where raw code was made: the digest of the library that it belongs to, see `raw.rs`.
    #[serde(default)]
    pub raw: Option<Digest>,
}

impl Unit {
    /// What two builds have in common of one target, whatever its version and features are.
    fn target(&self) -> (&str, &str, Vec<&str>) {
        let kind = self.settings.iter().filter(|setting| setting.starts_with("--crate-type"));
        (&self.package, &self.crate_name, kind.map(String::as_str).collect())
    }
}
