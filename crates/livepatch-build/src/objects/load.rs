//! Which inputs of two links differ, and their objects.

use super::Unit;
use super::parse::{self, ParseError};
use crate::baseline::InputKind;
use crate::build::{Build, Input};
use livepatch_patch::Digest;
use object::read::archive::ArchiveFile;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::OnceLock;

/// Why inputs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kept copy of an input is gone or unreadable.
    #[error(
        "cannot read the kept copy of {input} at {path}; the store is incomplete: build the baseline again or import it"
    )]
    Read {
        /// The input.
        input: String,
        /// Where its copy should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An archive that cannot be taken apart.
    #[error("archive {0} is damaged: {1}")]
    Archive(String, String),
    /// See there.
    #[error(transparent)]
    Parse(#[from] ParseError),
}

/// Contents of the inputs of one link, read when they are asked for. [`Unit`]s borrow from it.
#[derive(Debug)]
pub struct Inputs {
    inputs: Vec<Input>,
    files: Vec<OnceLock<Vec<u8>>>,
}

/// The inputs of each build that have no equal counterpart in the other.
pub fn changed_inputs<'a>(old: &'a Build, new: &'a Build) -> (Vec<&'a Input>, Vec<&'a Input>) {
    let holds_objects = |input: &&Input| matches!(input.kind, InputKind::Object | InputKind::Archive);
    let only = |these: &'a Build, others: &Build| {
        let mut counts: HashMap<Digest, usize> = HashMap::new();
        for input in others.inputs.iter().filter(holds_objects) {
            *counts.entry(input.digest).or_default() += 1;
        }
        let differs = |input: &&Input| {
            holds_objects(input)
                && match counts.get_mut(&input.digest) {
                    Some(count) if *count > 0 => {
                        *count -= 1;
                        false
                    }
                    _ => true,
                }
        };
        these.inputs.iter().filter(differs).collect::<Vec<_>>()
    };
    (only(old, new), only(new, old))
}

impl Inputs {
    /// The inputs of one link, none of them read.
    pub fn new(inputs: &[Input]) -> Self {
        Self { inputs: inputs.to_vec(), files: inputs.iter().map(|_| OnceLock::new()).collect() }
    }

    fn bytes(&self, index: usize) -> Result<&[u8], LoadError> {
        let input = &self.inputs[index];
        if let Some(bytes) = self.files[index].get() {
            return Ok(bytes);
        }
        let bytes = std::fs::read(&input.blob).map_err(|source| LoadError::Read {
            input: input.path.clone(),
            path: input.blob.clone(),
            source,
        })?;
        Ok(self.files[index].get_or_init(|| bytes))
    }

    /// Every object of the inputs that `wanted` selects, as (input, member, contents).
    fn objects<'a>(&'a self, wanted: &dyn Fn(&Input) -> bool) -> Result<Vec<Contents<'a>>, LoadError> {
        let mut objects = Vec::new();
        for (index, input) in self.inputs.iter().enumerate() {
            match input.kind {
                _ if !wanted(input) => {}
                InputKind::Archive => {
                    let members = members(input, self.bytes(index)?)?;
                    objects.extend(members.into_iter().map(|(name, data)| (input, Some(name), data)));
                }
                InputKind::Object => objects.push((input, None, self.bytes(index)?)),
                InputKind::Shared | InputKind::Script => {}
            }
        }
        Ok(objects)
    }

    /// The objects of the inputs that `wanted` selects, but not those members whose contents `known` has.
    ///
    /// # Errors
    /// An input that cannot be read, a damaged archive or object.
    pub fn units(
        &self,
        wanted: &dyn Fn(&Input) -> bool,
        known: &HashSet<Digest>,
    ) -> Result<Vec<Unit<'_>>, LoadError> {
        let objects = self.objects(wanted)?;
        let units =
            objects.par_iter().filter(|(_, _, data)| known.is_empty() || !known.contains(&Digest::of(data)));
        let units =
            units.map(|(input, member, data)| Ok(parse::parse(&input.path, member.as_deref(), data)?));
        Ok(units.collect::<Result<Vec<_>, LoadError>>()?.into_iter().flatten().collect())
    }

    /// Digests of the objects of the inputs that `wanted` selects.
    ///
    /// # Errors
    /// As [`Self::units`].
    pub fn digests(&self, wanted: &dyn Fn(&Input) -> bool) -> Result<HashSet<Digest>, LoadError> {
        Ok(self.objects(wanted)?.par_iter().map(|(_, _, data)| Digest::of(data)).collect())
    }

    /// One object, named as the linker's map names it.
    ///
    /// # Errors
    /// As [`Self::units`].
    pub fn unit(&self, file: &str, member: Option<&str>) -> Result<Option<Unit<'_>>, LoadError> {
        for (input, name, data) in self.objects(&|input| input.path == file)? {
            if name.as_deref() == member {
                return Ok(parse::parse(&input.path, member, data)?);
            }
        }
        Ok(None)
    }
}

/// An object that is no input of a link.
pub(crate) fn object<'a>(name: &str, bytes: &'a [u8]) -> Result<Option<Unit<'a>>, ParseError> {
    parse::parse(name, None, bytes)
}

type Contents<'a> = (&'a Input, Option<String>, &'a [u8]);

fn members<'a>(input: &Input, bytes: &'a [u8]) -> Result<Vec<(String, &'a [u8])>, LoadError> {
    let fail = |e: object::Error| LoadError::Archive(input.path.clone(), e.to_string());
    let archive = ArchiveFile::parse(bytes).map_err(fail)?;
    if archive.is_thin() {
        return Err(LoadError::Archive(
            input.path.clone(),
            "thin archives keep their members elsewhere".into(),
        ));
    }
    let mut out = Vec::new();
    for member in archive.members() {
        let member = member.map_err(fail)?;
        let name = String::from_utf8_lossy(member.name()).into_owned();
        out.push((name, member.data(bytes).map_err(fail)?));
    }
    Ok(out)
}
