//! Closures in redirected functions, of which the running program may keep values that were made by another one.
//!
//! `renumber.rs` looks at redirected functions that are closures themselves. Most closures are part of something else: of the shim that a
//! function pointer or a trait object leads to, of an iterator's `next`, of what polls a task. If their numbers may have moved, no
//! value of them may be alive but in frames below a redirected function (`escape.rs`), before the patch is applied or taken back.

use crate::findings::{Finding, rules};
use crate::guard::escape::{Scene, escapes};
use crate::guard::function::Function;
use crate::guard::input::{GuardInput, Witness};
use crate::guard::names::{closure_parents, last, without_arguments};
use crate::guard::scan::closure_label;
use crate::guard::side::{Image, Side};
use crate::guard::types::Types;
use gimli::Result;
use livepatch_patch::LinkAddr;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Parent and label of a closure.
type Name = (String, String);

/// What was found.
#[derive(Default)]
pub(in crate::guard) struct Mistaken {
    pub(in crate::guard) findings: Vec<Finding>,
    /// New symbols of redirected functions that make or call such closures of one parent: old and new values must not meet.
    pub(in crate::guard) together: Vec<BTreeSet<String>>,
}

/// Compares closures by what the witness knows, else by how many there are in one parent. Of crates of which nothing is known, the only
/// closure of a parent is the only one that is certain.
pub(in crate::guard) fn mistaken(
    (old_image, old): (&Image<'_>, &Side),
    (new_image, new): (&Image<'_>, &Side),
    input: &GuardInput<'_>,
    witness: Witness<'_>,
) -> Result<Mistaken> {
    let is_suspect = |(parent, label): &Name, symbol: Option<&str>| {
        let (before, after) = (old.closures.get(parent), new.closures.get(parent));
        let in_both =
            [before, after].iter().all(|labels| labels.is_some_and(|labels| labels.contains(label)));
        let by_number = || {
            let krate = parent.split("::").next().unwrap_or_default();
            before == after && (before.is_some_and(|labels| labels.len() == 1) || !(witness.unseen)(krate))
        };
        in_both && !symbol.and_then(witness.same_closure).unwrap_or_else(by_number)
    };
    let mut suspects: BTreeMap<Name, BTreeSet<&str>> = BTreeMap::new();
    let mut together: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (at, changed) in input.functions.iter().enumerate() {
        for (symbol, function) in
            [(&changed.symbol, &old.functions[at]), (&changed.new_symbol, &new.functions[at])]
        {
            let Some(function) = function else { continue };
            for (name, _) in closures_in(symbol, function).filter(|(name, symbol)| is_suspect(name, *symbol))
            {
                together.entry(name.0.clone()).or_default().insert(changed.new_symbol.clone());
                suspects.entry(name).or_default().insert(&function.path);
            }
        }
    }
    if suspects.is_empty() {
        return Ok(Mistaken::default());
    }
    add_makers(input, new, &mut together);
    // A patch is taken back when nobody is in any of its code.
    let of_patch = input.functions.iter().map(|f| f.new).chain(input.new_functions.iter().map(|f| f.new));
    let of_patch = of_patch.collect();
    let (old_at, new_at): (BTreeSet<u64>, BTreeSet<u64>) =
        input.functions.iter().map(|f| (f.old.0, f.new.0)).unzip();
    let before = (scene(old_image, old_at, input.orphans), old);
    let after = (scene(new_image, new_at, &of_patch), new);
    let (kept, made) = rayon::join(|| exposed(&before, &suspects), || exposed(&after, &suspects));
    let mut how = made?;
    how.extend(kept?);
    let findings = how.iter().map(|(name, how)| finding(name, how, &suspects[name], new)).collect();
    Ok(Mistaken { findings, together: together.into_values().collect() })
}

/// Adds the functions that are, or have inlined, what the closures are written in.
fn add_makers(input: &GuardInput<'_>, new: &Side, together: &mut BTreeMap<String, BTreeSet<String>>) {
    for (changed, function) in input.functions.iter().zip(&new.functions) {
        let Some(function) = function else { continue };
        for path in function.inlined.iter().map(|inlined| &inlined.path).chain([&function.path]) {
            if let Some(makers) = together.get_mut(&without_arguments(path)) {
                makers.insert(changed.new_symbol.clone());
            }
        }
    }
}

fn finding((parent, label): &Name, how: &str, users: &BTreeSet<&str>, new: &Side) -> Finding {
    let place = new.functions.iter().flatten().find(|f| f.path == *parent).and_then(|f| f.place.clone());
    let what = format!("`{{{label}}}` may be another one than before, and values of it may be kept: {how}");
    let mut finding = Finding::new(&rules::renumbered::RULE, parent).at(place).change(what, None, None);
    finding.used_by = users.iter().map(|path| (*path).to_owned()).collect();
    finding
}

fn scene<'s, 'a>(
    image: &'s Image<'a>,
    redirected: BTreeSet<u64>,
    orphans: &'s BTreeSet<LinkAddr>,
) -> Scene<'s, 'a> {
    Scene { image, others: HashSet::new(), redirected, runs: Some(orphans), in_both: true }
}

/// The closures that a function is or has inlined, with their symbols.
fn closures_in<'f>(symbol: &'f str, function: &'f Function) -> impl Iterator<Item = (Name, Option<&'f str>)> {
    let inlined = function.inlined.iter().map(|inlined| (&inlined.path, inlined.symbol.as_deref()));
    let all = inlined.chain([(&function.path, Some(symbol))]);
    all.filter(|(path, _)| closure_label(last(path).as_bytes()).is_some())
        .filter_map(|(path, symbol)| Some((closure_parents(path).pop()?, symbol)))
}

/// Which of the closures may be alive outside of frames, and how.
fn exposed(
    (scene, side): &(Scene<'_, '_>, &Side),
    suspects: &BTreeMap<Name, BTreeSet<&str>>,
) -> Result<BTreeMap<Name, String>> {
    let types = Types::new(&scene.image.debug);
    let mut found = BTreeMap::new();
    let mut closures: BTreeMap<String, Name> = BTreeMap::new();
    for (parent, label, id) in &side.closure_types {
        let name = (parent.clone(), label.clone());
        if suspects.contains_key(&name) {
            closures.insert(types.name(Some(*id))?.to_string(), name);
        }
    }
    for name in suspects.keys().filter(|(_, label)| !label.starts_with("closure")) {
        found.insert(name.clone(), "it is a future, which is suspended somewhere".to_owned());
    }
    let names = closures.keys().cloned().collect();
    for (closure, how) in escapes(scene, &names)?.exposed {
        if let Some(name) = closures.get(&closure) {
            found.entry(name.clone()).or_insert(how);
        }
    }
    // Nothing is known of one that debug information does not describe as a type.
    for name in suspects.keys().filter(|name| !closures.values().any(|known| known == *name)) {
        found.entry(name.clone()).or_insert("it has no description".to_owned());
    }
    Ok(found)
}
