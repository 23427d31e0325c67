//! Whether there is raw code of all that differs between two builds.

use crate::build::Build;
use crate::objects::changed_inputs;
use crate::units::{self, Unit};
use std::collections::BTreeSet;

/// Whether every crate that may differ has raw code in both builds.
pub(super) fn is_complete(old: &Build, new: &Build) -> bool {
    let (old_inputs, new_inputs) = changed_inputs(old, new);
    let covered = |build: &Build, path: &str| {
        let file = path.rsplit('/').next().unwrap_or_default();
        let of_crate = |stem: &str| {
            file.strip_prefix("lib").and_then(|rest| rest.strip_suffix(".rlib")) == Some(stem)
                || file.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.'))
        };
        // A list of symbols that rustc makes for shared objects.
        file == "symbols.o" || build.raw.iter().any(|(stem, _)| of_crate(stem)) || is_foreign(build, file)
    };
    let uncovered =
        old_inputs.iter().map(|input| (old, input)).chain(new_inputs.iter().map(|input| (new, input)));
    let uncovered: Vec<_> = uncovered
        .filter(|(build, input)| !covered(build, &input.path))
        .map(|(_, input)| &input.path)
        .collect();
    let complete = uncovered.is_empty() && has_all(old) && has_all(new) && foreign(old) == foreign(new);
    if !complete {
        tracing::debug!(?uncovered, "no raw code of all that differs");
    }
    complete
}

/// Crates of others that are the same in both builds, in each version that is there.
pub(crate) fn unchanged(old: &Build, new: &Build) -> BTreeSet<String> {
    let (was, is) = (foreign(old), foreign(new));
    let units =
        || old.manifest.units.iter().chain(&new.manifest.units).filter(|unit| units::is_in_program(unit));
    let identity = |unit: &Unit| (unit.package.clone(), unit.version.clone(), unit.metadata.clone());
    let is_same = |unit: &Unit| {
        let (package, version, metadata) = identity(unit);
        let id = (&*package, &*version, &*metadata);
        !unit.local && was.contains(&id) && is.contains(&id)
    };
    let others: BTreeSet<&str> =
        units().filter(|unit| !is_same(unit)).map(|unit| &*unit.crate_name).collect();
    units().map(|unit| unit.crate_name.clone()).filter(|name| !others.contains(&**name)).collect()
}

/// Crates that may have another source than before, and of which there is no raw code to tell what became of their closures.
pub(crate) fn unseen(old: &Build, new: &Build) -> BTreeSet<String> {
    let (was, is) = (foreign(old), foreign(new));
    let bumped =
        was.iter().filter(|unit| !is.contains(unit)).chain(is.iter().filter(|unit| !was.contains(unit)));
    let packages: BTreeSet<&str> = bumped.map(|(package, ..)| *package).collect();
    let units =
        old.manifest.units.iter().chain(&new.manifest.units).filter(|unit| units::is_in_program(unit));
    let is_unseen = |unit: &&Unit| match unit.local {
        true => !has_raw(old, &unit.crate_name) || !has_raw(new, &unit.crate_name),
        false => packages.contains(&*unit.package),
    };
    units.filter(is_unseen).map(|unit| unit.crate_name.clone()).collect()
}

/// Whether a file is the library of a crate that is nobody's to change. Two builds of one version differ in where they were made.
fn is_foreign(build: &Build, file: &str) -> bool {
    let name = file.strip_prefix("lib").and_then(|rest| rest.strip_suffix(".rlib")?.rsplit_once('-'));
    let Some((name, _)) = name else { return false };
    let mut units = build.manifest.units.iter().filter(|unit| unit.crate_name == name).peekable();
    units.peek().is_some() && units.all(|unit| !unit.local)
}

/// Whether the local crates of a build have raw code, the linked one among them.
fn has_all(build: &Build) -> bool {
    let units = build.manifest.units.iter().filter(|unit| units::is_in_program(unit) && unit.local);
    let linked = &build.manifest.link.crate_name;
    // Without link-time optimisation a crate that differs shows as an input of the link.
    let needed = is_compiled_together(build);
    has_raw(build, linked)
        && units.into_iter().all(|unit| has_raw(build, &unit.crate_name) || (unit.raw.is_none() && !needed))
}

fn has_raw(build: &Build, name: &str) -> bool {
    let is_of =
        |stem: &str| stem.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    build.raw.iter().any(|(stem, _)| is_of(stem))
}

/// Whether link-time optimisation compiles crates of others together with ours.
pub(super) fn is_compiled_together(build: &Build) -> bool {
    let settings = build.manifest.units.iter().flat_map(|unit| &unit.settings);
    settings.into_iter().any(|setting| setting.starts_with("-C lto") && !setting.ends_with("=off"))
}

/// What identifies the crates that are nobody's to change.
fn foreign(build: &Build) -> Vec<(&str, &str, &str)> {
    let units = build.manifest.units.iter().filter(|unit| units::is_in_program(unit) && !unit.local);
    let mut all: Vec<_> = units.map(|unit| (&*unit.package, &*unit.version, &*unit.metadata)).collect();
    all.sort_unstable();
    all
}
