//! Two builds' units against each other.

use super::Unit;
use crate::findings::{Change, Finding, rules};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Numbers and folders that a rebuild has to use in place of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pins(BTreeMap<String, Pin>);

/// What stands for one unit of the rebuild.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    /// The baseline's `-C metadata`.
    pub metadata: String,
    /// Folders as they are here and as they were.
    pub folders: Vec<(String, String)>,
}

impl Pins {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the unit for which cargo asks this number gets.
    pub(crate) fn of(&self, asked: &str) -> Option<&Pin> {
        self.0.get(asked)
    }

    /// For a rebuild in another target folder than the one in which the units were found.
    pub(crate) fn moved(mut self, from: &Path, to: &Path) -> Self {
        for (here, _) in self.0.values_mut().flat_map(|pin| &mut pin.folders) {
            if let Ok(rest) = Path::new(here).strip_prefix(from) {
                *here = to.join(rest).to_string_lossy().into_owned();
            }
        }
        self
    }

    /// With the folders also relative to the workspace, here and as it was: so the compiler sees its members.
    pub(crate) fn within(mut self, here: &Path, there: &Path) -> Self {
        for pin in self.0.values_mut() {
            let inside = pin.folders.iter().filter_map(|(new, old)| {
                let new = Path::new(new).strip_prefix(here).ok()?.to_str()?;
                let old = Path::new(old).strip_prefix(there).ok()?.to_str()?;
                (!new.is_empty() && new != old).then(|| (new.to_owned(), old.to_owned()))
            });
            let inside: Vec<_> = inside.collect();
            pin.folders.extend(inside);
        }
        self
    }

    /// The number that it is to be compiled with.
    pub(crate) fn wanted<'a>(&'a self, asked: &'a str) -> &'a str {
        self.0.get(asked).map_or(asked, |pin| &pin.metadata)
    }
}

/// Units of two builds that are the same target of the same package.
struct Pairs<'u> {
    pairs: Vec<(&'u Unit, &'u Unit)>,
    /// What is left of both.
    gone: Vec<&'u Unit>,
    added: Vec<&'u Unit>,
}

impl<'u> Pairs<'u> {
    fn of(old: &'u [Unit], new: &'u [Unit]) -> Self {
        let in_program = |units: &'u [Unit]| units.iter().filter(|unit| is_in_program(unit)).collect();
        let mut all = Self { pairs: Vec::new(), gone: in_program(old), added: in_program(new) };
        all.take(|unit| unit.metadata.clone());
        all.take(|unit| (unit.target(), &unit.settings, &unit.version, &unit.features));
        all.take(|unit| (unit.target(), &unit.settings, &unit.version));
        all.take(|unit| (unit.target(), &unit.settings));
        all.take(Unit::target);
        all
    }

    /// Pairs what is the only one of its kind on both sides.
    fn take<K: Ord>(&mut self, key: impl Fn(&'u Unit) -> K) {
        let mut groups: BTreeMap<K, (Vec<&'u Unit>, Vec<&'u Unit>)> = BTreeMap::new();
        for unit in std::mem::take(&mut self.gone) {
            groups.entry(key(unit)).or_default().0.push(unit);
        }
        for unit in std::mem::take(&mut self.added) {
            groups.entry(key(unit)).or_default().1.push(unit);
        }
        for (gone, added) in groups.into_values() {
            match (&*gone, &*added) {
                ([old], [new]) => self.pairs.push((old, new)),
                _ => {
                    self.gone.extend(gone);
                    self.added.extend(added);
                }
            }
        }
    }

    /// Targets of which both builds have units left, so that it is not clear which continues which.
    fn unclear(&self) -> BTreeSet<&'u str> {
        let targets: BTreeSet<_> = self.added.iter().map(|unit| unit.target()).collect();
        let gone = self.gone.iter().filter(|unit| targets.contains(&unit.target()));
        gone.map(|unit| &*unit.package).collect()
    }
}

/// Build scripts and procedural macros run in the compiler only.
pub(crate) fn is_in_program(unit: &Unit) -> bool {
    !unit.crate_name.starts_with("build_script_") && !unit.settings.contains("--crate-type proc-macro")
}

/// What a rebuild has to pretend, so that symbols are named as in the baseline; nothing where that would not do.
pub(crate) fn pins(old: &[Unit], new: &[Unit]) -> Pins {
    let all = Pairs::of(old, new);
    if !all.unclear().is_empty() || all.pairs.iter().any(|(old, new)| old.settings != new.settings) {
        return Pins::default();
    }
    let renamed = all.pairs.iter().filter(|(old, new)| old.metadata != new.metadata);
    let pin = |(old, new): &(&Unit, &Unit)| {
        let folders = [
            (Some(&new.manifest_dir), Some(&old.manifest_dir)),
            (new.out_dir.as_ref(), old.out_dir.as_ref()),
        ];
        let moved = folders.into_iter().filter_map(|(here, there)| Some((here?.clone(), there?.clone())));
        let folders = moved.filter(|(here, there)| here != there).collect();
        (new.asked.clone(), Pin { metadata: old.metadata.clone(), folders })
    };
    Pins(renamed.map(pin).collect())
}

/// What makes the symbols of two builds incomparable, in one finding about `name`.
pub(crate) fn compare(name: &str, old: &[Unit], new: &[Unit]) -> Option<Finding> {
    let all = Pairs::of(old, new);
    let other = |(old, new): &&(&Unit, &Unit)| old.metadata != new.metadata || old.settings != new.settings;
    let others: Vec<_> = all.pairs.iter().filter(other).collect();
    let unclear = all.unclear();
    if old.is_empty() || new.is_empty() || (others.is_empty() && unclear.is_empty()) {
        return None;
    }
    let mut changes = Vec::new();
    let mut settings: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for (old, new) in others {
        let package = &old.package;
        if old.version != new.version {
            let (old, new) = (Some(old.version.clone()), Some(new.version.clone()));
            changes.push(Change { what: format!("version of `{package}`"), old, new });
        }
        if old.features != new.features {
            let (old, new) = (only(&old.features, &new.features), only(&new.features, &old.features));
            changes.push(Change { what: format!("features of `{package}`"), old, new });
        }
        if old.settings != new.settings {
            let key = (only(&old.settings, &new.settings), only(&new.settings, &old.settings));
            settings.entry(key).or_default().push(package);
        }
    }
    for ((old, new), packages) in settings {
        let whose = match *packages {
            [one] => format!("`{one}`"),
            [first, ..] => format!("`{first}` and {} more", packages.len() - 1),
            [] => continue,
        };
        changes.push(Change { what: format!("settings of {whose}"), old, new });
    }
    changes.extend(unclear.into_iter().map(|package| Change {
        what: format!("`{package}`, which is built several times"),
        old: None,
        new: None,
    }));
    Some(Finding::new(&rules::built_otherwise::RULE, name).changes(changes))
}

/// What only the first set has.
fn only(set: &BTreeSet<String>, other: &BTreeSet<String>) -> Option<String> {
    let own: Vec<&str> = set.difference(other).map(String::as_str).collect();
    (!own.is_empty()).then(|| own.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(package: &str, version: &str, metadata: &str, settings: &[&str]) -> Unit {
        Unit {
            package: package.into(),
            version: version.into(),
            crate_name: package.into(),
            asked: metadata.into(),
            metadata: metadata.into(),
            features: BTreeSet::new(),
            settings: settings.iter().map(|text| (*text).to_owned()).collect(),
            manifest_dir: format!("/r/{package}-{version}"),
            out_dir: None,
            local: false,
            raw: None,
        }
    }

    #[test]
    fn a_bump_is_pinned_with_everything_above_it() {
        let old =
            [unit("app", "1.0.0", "a", &[]), unit("dep", "1.0.0", "b", &[]), unit("x", "1.0.0", "c", &[])];
        let new =
            [unit("app", "1.0.0", "d", &[]), unit("dep", "1.0.1", "e", &[]), unit("x", "1.0.0", "c", &[])];
        let pins = pins(&old, &new);
        assert_eq!(pins.of("e").unwrap().folders, [("/r/dep-1.0.1".into(), "/r/dep-1.0.0".into())]);
        assert_eq!([pins.wanted("d"), pins.wanted("e"), pins.wanted("c")], ["a", "b", "c"]);
        assert_eq!(pins.of("d").unwrap().folders, []);
        let finding = compare("app", &old, &new).unwrap();
        assert_eq!(finding.changes.len(), 1, "{finding:?}");
        assert_eq!(finding.changes[0].what, "version of `dep`");
    }

    #[test]
    fn equal_units_and_pinned_ones_are_no_finding() {
        let old = [unit("app", "1.0.0", "a", &[]), unit("dep", "1.0.0", "b", &[])];
        let pinned = [unit("app", "1.0.0", "a", &[]), unit("dep", "1.0.1", "b", &[])];
        assert!(compare("app", &old, &old).is_none());
        assert!(compare("app", &old, &pinned).is_none());
        assert!(pins(&old, &pinned).is_empty());
    }

    #[test]
    fn other_settings_are_never_pinned() {
        let old =
            [unit("app", "1.0.0", "a", &["-C opt-level=3"]), unit("dep", "1.0.0", "b", &["-C opt-level=3"])];
        let new =
            [unit("app", "1.0.0", "c", &["-C opt-level=z"]), unit("dep", "1.0.0", "d", &["-C opt-level=z"])];
        assert!(pins(&old, &new).is_empty());
        let finding = compare("app", &old, &new).unwrap();
        let [change] = &*finding.changes else { panic!("{finding:?}") };
        assert_eq!(
            (change.old.as_deref(), change.new.as_deref()),
            (Some("-C opt-level=3"), Some("-C opt-level=z"))
        );
        assert_eq!(change.what, "settings of `app` and 1 more");
    }

    #[test]
    fn two_versions_of_one_crate_are_told_apart_or_refused() {
        let two = |a: &str, b: &str, m: [&str; 2]| [unit("dep", a, m[0], &[]), unit("dep", b, m[1], &[])];
        let pinned = pins(&two("1.0.0", "2.0.0", ["a", "b"]), &two("1.0.1", "2.0.0", ["c", "b"]));
        assert_eq!(pinned.wanted("c"), "a");
        let (old, new) = (two("1.0.0", "2.0.0", ["a", "b"]), two("1.0.1", "2.0.1", ["c", "d"]));
        assert!(pins(&old, &new).is_empty());
        assert!(compare("app", &old, &new).is_some());
    }
}
