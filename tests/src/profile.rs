//! The ways to build a case.

use std::str::FromStr;

/// A way to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `--release` as it is.
    Release,
    /// The development profile.
    Dev,
    /// Link-time optimisation over everything.
    LtoFat,
    /// Link-time optimisation with summaries.
    LtoThin,
    /// One codegen unit.
    Cgu1,
    /// Optimised for size.
    OptZ,
    /// v0 symbol mangling.
    V0,
    /// Panics abort.
    Abort,
    /// `--release` with incremental compilation.
    Incremental,
}

impl Profile {
    /// All profiles in which unchanged source has to give an empty difference.
    pub const ALL: [Self; 9] = [
        Self::Release,
        Self::Dev,
        Self::LtoFat,
        Self::LtoThin,
        Self::Cgu1,
        Self::OptZ,
        Self::V0,
        Self::Abort,
        Self::Incremental,
    ];

    /// The name in directives.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
            Self::LtoFat => "lto-fat",
            Self::LtoThin => "lto-thin",
            Self::Cgu1 => "cgu1",
            Self::OptZ => "opt-z",
            Self::V0 => "v0",
            Self::Abort => "abort",
            Self::Incremental => "incremental",
        }
    }

    /// Arguments for `cargo build`.
    pub fn cargo_args(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            _ => &["--release"],
        }
    }

    /// The folder in the target folder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            _ => "release",
        }
    }

    /// Lines for the manifest.
    pub fn manifest(self) -> &'static str {
        match self {
            Self::Release | Self::Dev | Self::V0 => "",
            Self::LtoFat => "[profile.release]\nlto = \"fat\"\n",
            Self::LtoThin => "[profile.release]\nlto = \"thin\"\n",
            Self::Cgu1 => "[profile.release]\ncodegen-units = 1\n",
            Self::OptZ => "[profile.release]\nopt-level = \"z\"\n",
            Self::Abort => "[profile.release]\npanic = \"abort\"\n",
            Self::Incremental => "[profile.release]\nincremental = true\n",
        }
    }

    /// The project's `.cargo/config.toml`.
    pub fn config(self) -> &'static str {
        match self {
            Self::V0 => "[build]\nrustflags = [\"-Csymbol-mangling-version=v0\"]\n",
            _ => "",
        }
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|profile| profile.name() == name);
        known.ok_or_else(|| format!("unknown profile `{name}`"))
    }
}
