//! Findings that are about one and the same thing: the cause is told, what only follows from it is not.
//!
//! No refusal is lost: something is left out only where its cause stays. What is about the user's own code comes first.

use super::{Code, Finding, Severity, rules};
use crate::source::is_foreign;
use std::collections::BTreeSet;

/// Rules that closures with other numbers break as well: a closure is compared with another function, or with one that
/// shares its code.
const FOLLOW: [Code; 3] =
    [rules::signature::RULE.code, rules::abi::RULE.code, rules::shared_address::RULE.code];

/// Leaves out what follows from other findings, and puts those about places in code of others last.
///
/// Where closures cannot be matched by their numbers, whatever is said of single closures of that parent, or of functions of the
/// standard library that stand between a closure and its callers, may come from comparing the wrong ones.
pub fn leading(findings: Vec<Finding>) -> Vec<Finding> {
    let renumbered = findings.iter().filter(|finding| finding.code == rules::renumbered::RULE.code);
    let parents: Vec<String> = renumbered.map(|finding| format!("{}::{{", finding.item)).collect();
    let follows = |finding: &Finding| {
        let is_closures = parents.iter().any(|parent| finding.item.starts_with(parent.as_str()));
        let is_between = ["core::ops::function::", "<core::ops::function::"]
            .iter()
            .any(|module| finding.item.starts_with(module));
        !parents.is_empty() && FOLLOW.contains(&finding.code) && (is_closures || is_between)
    };
    let (_, mut leading): (_, Vec<Finding>) = findings.into_iter().partition(follows);
    leading.sort_by_key(|finding| finding.place.as_ref().is_some_and(|place| is_foreign(&place.file)));
    leading
}

/// Rules that are broken in consequence of others, as a rule.
const CONSEQUENCES: [Code; 4] = [
    rules::vtable::RULE.code,
    rules::lost::RULE.code,
    rules::copies::RULE.code,
    rules::shared_address::RULE.code,
];

/// In the order of causes: what is said of items of these crates before what is said of others, and of each what is changed in
/// the source before what comes of it.
pub fn in_order(mut findings: Vec<Finding>, own: &BTreeSet<&str>) -> Vec<Finding> {
    let root = |item: &str| -> String {
        let item = item.trim_start_matches(|c: char| !c.is_alphanumeric() && c != '_');
        item.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let rank = |finding: &Finding| {
        (!own.contains(root(&finding.item).as_str()), CONSEQUENCES.contains(&finding.code))
    };
    findings.sort_by_key(|finding| (finding.severity == Severity::Note, rank(finding)));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::Place;

    #[test]
    fn the_users_own_code_comes_first() {
        let at = |file: &str| Some(Place { file: file.to_owned(), line: 1 });
        let all = vec![
            Finding::new(&rules::type_layout::RULE, "std::sync::Chan")
                .at(at("/rustc/1/library/std/src/x.rs")),
            Finding::new(&rules::type_layout::RULE, "dep::T")
                .at(at("/home/.cargo/registry/src/i/dep/src/lib.rs")),
            Finding::new(&rules::type_layout::RULE, "app::Session").at(at("src/main.rs")),
        ];
        let order: Vec<_> = leading(all).into_iter().map(|finding| finding.item).collect();
        assert_eq!(order, ["app::Session", "std::sync::Chan", "dep::T"]);
    }

    #[test]
    fn causes_in_ones_own_code_come_first() {
        let of = |rule, item: &str| Finding::new(rule, item);
        let all = vec![
            of(&rules::lost::RULE, "app::run"),
            of(&rules::type_layout::RULE, "tokio::Chan<u8>"),
            of(&rules::vtable::RULE, "<app::T as app::Show>"),
            of(&rules::type_layout::RULE, "app::T"),
        ];
        let order: Vec<_> = in_order(all, &["app"].into()).into_iter().map(|finding| finding.item).collect();
        assert_eq!(order, ["app::T", "app::run", "<app::T as app::Show>", "tokio::Chan<u8>"]);
    }

    #[test]
    fn renumbered_closures_explain_what_is_wrong_with_each() {
        let all = vec![
            Finding::new(&rules::renumbered::RULE, "app::hooks"),
            Finding::new(&rules::signature::RULE, "app::hooks::{closure#2}"),
            Finding::new(&rules::shared_address::RULE, "app::hooks::{{closure}}"),
            Finding::new(
                &rules::shared_address::RULE,
                "core::ops::function::FnOnce::call_once{{vtable.shim}}",
            ),
            Finding::new(&rules::shared_address::RULE, "app::retries"),
            Finding::new(&rules::type_layout::RULE, "app::hooks::{closure#2}::Order"),
        ];
        let items = |findings: Vec<Finding>| -> Vec<String> {
            findings.into_iter().map(|finding| finding.item).collect()
        };
        assert_eq!(
            items(leading(all.clone())),
            ["app::hooks", "app::retries", "app::hooks::{closure#2}::Order"]
        );
        assert_eq!(leading(all[1..].to_vec()), all[1..]);
    }
}
