//! Signatures and calling conventions of redirected functions, and whether anything is known about them at all.

use crate::findings::{Finding, rules};
use crate::guard::demangle::{crate_of, demangle, is_rust, strip_suffix};
use crate::guard::fixed::{CRATES, is_of_others};
use crate::guard::function::{Function, linkage_name};
use crate::guard::input::ChangedFunction;
use crate::guard::names::segments;
use crate::guard::report::{Callers, Convention};
use crate::guard::side::{Image, Side};
use livepatch_patch::LinkAddr;
use std::collections::BTreeSet;

/// Judges each redirected function by itself.
pub(in crate::guard) fn functions(
    (old_image, old): (&Image<'_>, &Side),
    (new_image, new): (&Image<'_>, &Side),
    (redirected, unchanged): (&[ChangedFunction], &BTreeSet<String>),
) -> gimli::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (i, function) in redirected.iter().enumerate() {
        if is_catch(&function.symbol) && is_catch(&function.new_symbol) {
            continue;
        }
        match (&old.functions[i], &new.functions[i]) {
            (Some(before), Some(after)) if before.rust && after.rust => {
                findings.extend(untyped(function, (old, before), (new, after)));
                if !are_copies(before, after, unchanged) {
                    findings.extend(signature(before, after));
                }
                findings.extend(convention(before, after, function.callers));
            }
            (before, after) => {
                let known = before.as_ref().or(after.as_ref());
                let foreign = known.is_some_and(|f| !f.rust)
                    || (known.is_none() && !is_rust(&function.symbol))
                    || foreign(old_image, function.old)?
                    || foreign(new_image, function.new)?;
                let rule = if foreign { &rules::not_rust::RULE } else { &rules::no_debug_info::RULE };
                let mut finding =
                    Finding::new(rule, demangle(&function.symbol)).at(known.and_then(|f| f.place.clone()));
                if before.is_none() {
                    finding =
                        finding.change(unknown("running program", old_image, function.old)?, None, None);
                }
                if after.is_none() {
                    finding = finding.change(unknown("fixed build", new_image, function.new)?, None, None);
                }
                findings.push(finding);
            }
        }
    }
    Ok(findings)
}

/// Whether this is the intrinsic behind `catch_unwind`: it has no debug information, and one signature for all.
fn is_catch(symbol: &str) -> bool {
    strip_suffix(symbol) == "__rust_try"
}

/// Says why nothing is known: where equal functions were merged, only one of them is described.
fn unknown(build: &str, image: &Image<'_>, addr: LinkAddr) -> gimli::Result<String> {
    let mut others = Vec::new();
    for id in image.debug.functions_at(addr.0)? {
        others.extend(linkage_name(&image.debug, id)?.map(|name| format!("`{}`", demangle(&name))));
    }
    Ok(match others.is_empty() {
        true => format!("the {build} has no debug information for it"),
        false => format!("the {build} merged it with {}, which is the only one described", others.join(", ")),
    })
}

/// Whether the entry at an address, whatever its name, was made by another compiler than rustc.
fn foreign(image: &Image<'_>, addr: LinkAddr) -> gimli::Result<bool> {
    for id in image.debug.functions_at(addr.0)? {
        if !image.debug.units[image.debug.unit_index(id)?].rust {
            return Ok(true);
        }
    }
    Ok(false)
}

/// With line tables only a function has an entry but no types, which looks like a function without any.
fn untyped(function: &ChangedFunction, old: (&Side, &Function), new: (&Side, &Function)) -> Option<Finding> {
    let mut finding = Finding::new(&rules::no_debug_info::RULE, &new.1.path).at(new.1.place.clone());
    let mut found = false;
    for (build, (side, f)) in [("running program", old), ("fixed build", new)] {
        // With link-time optimisation a type is described once, in whichever unit the linker met it first.
        if f.types.is_empty() && !side.typed.contains(&f.crate_key) {
            found = true;
            let what =
                format!("the {build} describes no types in the crate of `{}`", demangle(&function.symbol));
            finding = finding.change(what, None, None);
        }
    }
    let of_library = crate_of(&function.symbol).is_some_and(|name| CRATES.contains(&name.as_str()));
    if of_library && new.1.crate_key.contains("library/") {
        finding.help = "the standard library comes without them, and link-time optimisation compiled it anew together with the \
                        program: make the change smaller, or ship a build without `lto`"
            .into();
    }
    found.then_some(finding)
}

fn signature(old: &Function, new: &Function) -> Option<Finding> {
    let mut finding = Finding::new(&rules::signature::RULE, &new.path).at(new.place.clone());
    let (before, after) = (&old.signature, &new.signature);
    let lists = match (&before.declared, &after.declared) {
        (Some(before), Some(after)) if before != after => (before, after),
        _ => (&before.params, &after.params),
    };
    if lists.0 != lists.1 {
        let text = |list: &[String]| Some(format!("({})", list.join(", ")));
        finding = finding.change("parameters", text(lists.0), text(lists.1));
    }
    if before.result != after.result {
        finding = finding.change("result", Some(before.result.clone()), Some(after.result.clone()));
    }
    (!finding.changes.is_empty()).then_some(finding)
}

/// Whether both are the same generic function of a crate that did not change. LLVM merges copies of equal code, so that one may be
/// described as another.
fn are_copies(old: &Function, new: &Function, unchanged: &BTreeSet<String>) -> bool {
    let bare = |path: &str| {
        let generic = |segment: &&str| segment.find('<').filter(|at| *at > 0).unwrap_or(segment.len());
        segments(path).iter().map(|segment| segment[..generic(segment)].to_owned()).collect::<Vec<_>>()
    };
    is_of_others(&old.path, unchanged) && bare(&old.path) == bare(&new.path)
}

fn convention(old: &Function, new: &Function, callers: [Callers; 2]) -> Option<Finding> {
    let (before, after) = (&old.convention, &new.convention);
    if !before.differs(after, callers) {
        return None;
    }
    let mut finding = Finding::new(&rules::abi::RULE, &new.path).at(new.place.clone());
    let text = |convention: &Convention| {
        let text = match convention.altered {
            Some(true) => "altered by the optimiser",
            Some(false) => "as declared",
            None => "perhaps altered by the optimiser",
        };
        Some(text.to_owned())
    };
    let only_results = before.passing == after.passing && before.altered.is_none();
    if before.altered != after.altered || only_results {
        finding = finding.change("calling convention", text(before), text(after));
    } else {
        let text = |convention: &Convention| Some(format!("{:?}", convention.passing));
        finding = finding.change("places of the arguments on entry", text(before), text(after));
    }
    Some(finding)
}
