//! Several names at one address of the running program.

use crate::findings::{Finding, rules};
use crate::guard::demangle::{demangle, strip_suffix};
use crate::guard::input::ChangedFunction;
use crate::guard::side::{Image, Side};
use crate::guard::vtable::Renamed;

/// Every other function at the address of a redirected one must have gone the same way: to the same new address.
pub(in crate::guard) fn shared_addresses(
    old: &Image<'_>,
    (new, side): (&Image<'_>, &Side),
    redirected: &[ChangedFunction],
    renamed: &Renamed<'_>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, function) in redirected.iter().enumerate() {
        let own = strip_suffix(&function.symbol);
        for other in old.elf.names_at(function.old.0).into_iter().filter(|name| *name != own) {
            if together(new, other, function, renamed) {
                continue;
            }
            let elsewhere = new.elf.addresses(other).first();
            let place = side.functions[i].as_ref().and_then(|f| f.place.clone());
            findings.push(
                Finding::new(&rules::shared_address::RULE, demangle(&function.symbol)).at(place).change(
                    format!("`{}` has the same address", demangle(other)),
                    Some(function.old.to_string()),
                    Some(
                        elsewhere.map_or("not in the fixed build".to_owned(), |_| {
                            "an address of its own".to_owned()
                        }),
                    ),
                ),
            );
        }
    }
    findings
}

fn together(new: &Image<'_>, other: &str, function: &ChangedFunction, renamed: &Renamed<'_>) -> bool {
    let there = new.elf.names_at(function.new.0);
    there.contains(other) || renamed.get(other).is_some_and(|now| there.contains(now))
}
