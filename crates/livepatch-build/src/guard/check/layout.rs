//! Layouts of all types that redirected functions and shared variables can reach.

use crate::findings::{Change, Finding, Place, rules};
use crate::guard::escape::{Escapes, Scene, escapes};
use crate::guard::fixed;
use crate::guard::graph::{Graph, Named, Root, reach};
use crate::guard::input::GuardInput;
use crate::guard::names::{Nature, last, mentions, nature};
use crate::guard::scan::{Wanted, scan};
use crate::guard::side::{Image, Side};
use crate::guard::types::{Facts, Types, differences};
use crate::source::{ChangedType, is_foreign};
use gimli::Result;
use livepatch_patch::{Digest, NewType};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A type that differs between the builds.
struct Changed<'g> {
    old: BTreeSet<Facts>,
    new: &'g Named,
}

/// Compares types by name.
pub(in crate::guard) fn layouts(
    (old_image, old): (&Image<'_>, &Side),
    (new_image, new): (&Image<'_>, &Side),
    input: &GuardInput<'_>,
) -> Result<(Vec<Finding>, Vec<NewType>)> {
    let mut changed: BTreeMap<&str, Changed<'_>> = BTreeMap::new();
    let elsewhere = old_elsewhere(old_image, &old.graph, &new.graph)?;
    for (name, after) in &new.graph {
        match old.graph.get(name) {
            Some(before) if differ(before, after) => {
                changed.insert(name, Changed { old: before.layouts.clone(), new: after });
            }
            Some(_) => {}
            // Not reached by the old code, but the running program may have such values all the same.
            None => {
                if let Some(before) = elsewhere.get(name).filter(|before| has_layout(before))
                    && !after.layouts.is_subset(&before.layouts)
                {
                    changed.insert(name, Changed { old: before.layouts.clone(), new: after });
                }
            }
        }
    }
    let closures = closures(old_image, new_image, input, &changed)?;
    changed.retain(|name, _| !closures.harmless.contains(*name));
    let names: Vec<&str> = changed.keys().copied().collect();
    changed.retain(|name, _| !follows(name, &names));
    let mut findings: Vec<Finding> =
        changed.iter().map(|(name, c)| finding(name, c, new, &closures)).collect();
    let known = |name: &str| old.graph.get(name).or_else(|| elsewhere.get(name)).is_some_and(has_layout);
    let compared = new.graph.iter().filter(|(name, named)| has_layout(named) && known(name));
    let compared: BTreeSet<&str> = compared.map(|(name, _)| identifier(name)).collect();
    let unseen = input.types.iter().filter(|declared| !compared.contains(&*declared.name));
    findings.extend(unseen.map(undescribed));
    let is_own = |name: &str| !fixed::is_library(name) && nature(name) != Nature::Closure;
    let added = new.graph.iter().filter(|(name, named)| is_own(name) && has_layout(named) && !known(name));
    let added = added.map(|(name, named)| NewType {
        name: name.to_string(),
        digest: Digest::of(format!("{:?}", named.layouts).as_bytes()),
        awaits: Vec::new(),
    });
    let mut added: Vec<NewType> = added.collect();
    added.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((findings, added))
}

fn has_layout(named: &Named) -> bool {
    !named.layouts.is_empty()
}

/// The name that a type is declared with.
fn identifier(name: &str) -> &str {
    let last = last(name);
    last.split_once('<').map_or(last, |(name, _)| name)
}

/// A type of which the source tells that it changed, and debug information nothing.
fn undescribed(declared: &ChangedType) -> Finding {
    let place = Place { file: declared.span.file.clone(), line: declared.span.first_line };
    let what = "its declaration; the patched functions handle it in ways that debug information does not describe, such as casts of \
                pointers or numbers, or not at all";
    Finding::new(&rules::type_layout::RULE, &declared.path).at(Some(place)).change(what, None, None)
}

/// Whether a type may differ because it is made of one of these: that one is what the change is about. It stays, so nothing is
/// let through.
fn follows(name: &str, changed: &[&str]) -> bool {
    changed.iter().any(|other| !fixed::is_library(other) && mentions(name, other))
}

fn differ(old: &Named, new: &Named) -> bool {
    // What one build only declares cannot contradict the other.
    let unknown = |named: &Named| named.declared && named.layouts.is_empty();
    !unknown(old) && !unknown(new) && old.layouts != new.layouts
}

/// Types of the old image that only the new code reaches.
fn old_elsewhere(image: &Image<'_>, old: &Graph, new: &Graph) -> Result<Graph> {
    let missing: BTreeSet<&str> =
        new.keys().map(|name| &**name).filter(|name| !old.contains_key(*name)).collect();
    if missing.is_empty() {
        return Ok(Graph::new());
    }
    let wanted =
        Wanted { types: missing.iter().map(|name| last(name).to_owned()).collect(), ..Wanted::default() };
    let types = Types::new(&image.debug);
    let user: Arc<str> = "".into();
    let mut roots = Vec::new();
    for id in scan(&image.debug, &wanted)?.types {
        if missing.contains(&*types.name(Some(id))?) {
            roots.push(Root { id, user: user.clone() });
        }
    }
    reach(&types, roots)
}

/// What is known of the closures among the changed types.
#[derive(Default)]
struct Closures {
    /// Names of types whose change does no harm, as no value of them is alive outside of frames: see [`escapes`].
    harmless: BTreeSet<String>,
    /// How the others may be.
    exposed: BTreeMap<String, String>,
    places: BTreeMap<String, Place>,
}

fn closures(
    old: &Image<'_>,
    new: &Image<'_>,
    input: &GuardInput<'_>,
    changed: &BTreeMap<&str, Changed<'_>>,
) -> Result<Closures> {
    let closures: BTreeSet<String> = changed
        .keys()
        .filter(|name| nature(name) == Nature::Closure)
        .map(|name| (*name).to_owned())
        .collect();
    if closures.is_empty() {
        return Ok(Closures::default());
    }
    let redirected: (BTreeSet<u64>, BTreeSet<u64>) =
        input.functions.iter().map(|f| (f.old.0, f.new.0)).unzip();
    let before = Scene {
        image: old,
        others: new.elf.identities(),
        redirected: redirected.0,
        runs: Some(input.orphans),
        in_both: false,
    };
    let after = Scene {
        image: new,
        others: old.elf.identities(),
        redirected: redirected.1,
        runs: None,
        in_both: false,
    };
    let (before, after) = rayon::join(|| escapes(&before, &closures), || escapes(&after, &closures));
    let (before, mut after) = (before?, after?);
    let confined = |name: &str| {
        let inside = |side: &Escapes| side.contains.get(name).cloned().unwrap_or_default();
        let all: BTreeSet<String> = inside(&before).union(&inside(&after)).cloned().collect();
        let is_exposed = |c: &String| before.exposed.contains_key(c) || after.exposed.contains_key(c);
        !all.is_empty() && !all.iter().any(is_exposed)
    };
    let harmless = changed.keys().filter(|name| confined(name)).map(|name| (*name).to_owned()).collect();
    let mut places = before.places;
    places.append(&mut after.places);
    after.exposed.extend(before.exposed);
    Ok(Closures { harmless, exposed: after.exposed, places })
}

/// Debug information gives no place for most types; the place of a user of the type stands in.
fn place(changed: &Changed<'_>, new: &Side) -> Option<Place> {
    let functions = new.functions.iter().flatten().map(|f| (&f.path, &f.place));
    let variables = new.statics.iter().flatten().map(|v| (&v.path, &v.place));
    let users = functions.chain(variables);
    changed.new.place.clone().or_else(|| {
        let own = |place: &Place| !is_foreign(&place.file);
        let using = users.filter(|(path, _)| changed.new.users.contains(path.as_str()));
        let places: Vec<&Place> = using.filter_map(|(_, place)| place.as_ref()).collect();
        places.iter().find(|place| own(place)).or(places.first()).map(|place| (*place).clone())
    })
}

fn finding(name: &str, changed: &Changed<'_>, new: &Side, closures: &Closures) -> Finding {
    let changes = changes(changed);
    let vtable = changes.iter().any(|change| change.what == "field `vtable`");
    let rule = match nature(name) {
        Nature::Coroutine => &rules::coroutine::RULE,
        Nature::Closure => &rules::closure::RULE,
        Nature::Other if vtable => &rules::vtable::RULE,
        Nature::Other => &rules::type_layout::RULE,
    };
    let written = closures.places.get(name).cloned();
    let mut finding = Finding::new(rule, name).at(written.or_else(|| place(changed, new))).changes(changes);
    if let Some(how) = closures.exposed.get(name) {
        finding = finding.change(format!("may be alive when the patch is applied: {how}"), None, None);
    }
    finding.used_by = changed.new.users.iter().map(|user| user.to_string()).collect();
    finding
}

/// The differences between the layouts that are in one build only.
fn changes(changed: &Changed<'_>) -> Vec<Change> {
    let old: Vec<_> = changed.old.difference(&changed.new.layouts).collect();
    let new: Vec<_> = changed.new.layouts.difference(&changed.old).collect();
    match (old.first(), new.first()) {
        (Some(old), Some(new)) => differences(old, new),
        _ => vec![Change {
            what: "number of layouts under this name".into(),
            old: Some(changed.old.len().to_string()),
            new: Some(changed.new.layouts.len().to_string()),
        }],
    }
}
