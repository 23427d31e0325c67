//! Findings that are about one and the same thing: the cause is told, what only follows from it is not.
//!
//! No refusal is lost: something is left out only where its cause stays.

use super::{Code, Finding, rules};

/// Rules that closures with other numbers break as well: a closure is compared with another function, or with one that
/// shares its code.
const FOLLOW: [Code; 3] =
    [rules::signature::RULE.code, rules::abi::RULE.code, rules::shared_address::RULE.code];

/// Leaves out what follows from other findings.
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
    let (_, leading) = findings.into_iter().partition(follows);
    leading
}

#[cfg(test)]
mod tests {
    use super::*;

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
