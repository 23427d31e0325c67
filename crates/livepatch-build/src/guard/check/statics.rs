//! Variables that keep their identity: their types must agree.

use crate::findings::{Finding, rules};
use crate::guard::demangle::{crate_of, demangle};
use crate::guard::fixed::CRATES;
use crate::guard::input::SharedStatic;
use crate::guard::side::Side;

/// Compares the types of shared variables by name and size; their layouts are compared with all others.
pub(in crate::guard) fn statics(old: &Side, new: &Side, shared: &[SharedStatic]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, variable) in shared.iter().enumerate() {
        let path = demangle(&variable.new_symbol);
        let (before, after) = (&old.statics[i], &new.statics[i]);
        let place = after.as_ref().or(before.as_ref()).and_then(|v| v.place.clone());
        let mut finding = Finding::new(&rules::static_type::RULE, &path).at(place.clone());
        if variable.old_size != variable.new_size {
            let text = |size: u64| Some(format!("{size} bytes"));
            finding = finding.change("size", text(variable.old_size), text(variable.new_size));
        }
        match (before, after) {
            (Some(before), Some(after)) if before.type_name != after.type_name => {
                let text = |name: &str| Some(format!("`{name}`"));
                finding = finding.change("type", text(&before.type_name), text(&after.type_name));
            }
            (Some(_), Some(_)) => {}
            _ if is_runtime(&variable.old_symbol) => {}
            _ => {
                let mut unknown = Finding::new(&rules::no_debug_info::RULE, &path).at(place);
                for (build, side) in [("running program", before), ("fixed build", after)] {
                    if side.is_none() {
                        unknown =
                            unknown.change(format!("the {build} does not describe its type"), None, None);
                    }
                }
                findings.push(unknown);
            }
        }
        if !finding.changes.is_empty() {
            findings.push(finding);
        }
    }
    findings
}

/// Whether a variable belongs to the standard library or to what rustc adds to every program. Those ship without types
/// and are the same in both builds.
fn is_runtime(symbol: &str) -> bool {
    // The last one holds the address of a symbol that the standard library asks the linker for (`#[linkage]`).
    let plain = ["__rust_", "__rdl_", "__rg_", "DW.ref.rust_", "rust_eh_", "_rust_extern_with_linkage_"];
    crate_of(symbol).is_some_and(|krate| CRATES.contains(&krate.as_str()))
        || plain.iter().any(|prefix| symbol.starts_with(prefix))
}
