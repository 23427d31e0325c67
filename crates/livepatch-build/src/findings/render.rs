//! Findings as a person reads them, in the shape of the compiler's own messages.

use super::{Change, Finding, Severity};
use std::fmt::Write;

/// How many users of an item are named before the rest are only counted.
const USERS_SHOWN: usize = 3;

/// One finding as text, ending in a line break.
///
/// ```text
/// error[LP0001]: layout of `app::Order` changed
///   --> src/main.rs:12
///    = size: 16 -> 24
///    = used by: `app::total`
///    = reason: ...
///    = help: ...
/// ```
pub fn render(finding: &Finding) -> String {
    let mut out = String::new();
    let level = match finding.severity {
        Severity::Refusal => "error",
        Severity::Note => "note",
    };
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("{level}[{}]: {}", finding.code, finding.title));
    if let Some(place) = &finding.place {
        line(format!("  --> {place}"));
    }
    for change in &finding.changes {
        line(format!("   = {}", render_change(change)));
    }
    if !finding.used_by.is_empty() {
        line(format!("   = used by: {}", render_users(&finding.used_by)));
    }
    line(format!("   = reason: {}", finding.reason));
    line(format!("   = help: {}", finding.help));
    out
}

/// All findings, separated by empty lines, refusals first, with a closing line that counts them.
pub fn render_all(findings: &[Finding]) -> String {
    let mut ordered: Vec<&Finding> = findings.iter().collect();
    ordered.sort_by_key(|finding| finding.severity);
    let mut out = String::new();
    for finding in &ordered {
        out.push_str(&render(finding));
        out.push('\n');
    }
    let refusals: Vec<_> = ordered.iter().filter(|f| f.severity == Severity::Refusal).collect();
    if let Some(first) = refusals.first() {
        let plural = if refusals.len() == 1 { "finding" } else { "findings" };
        let _ = writeln!(
            out,
            "refused: {} {plural}; for more about one, try `cargo livepatch explain {}`",
            refusals.len(),
            first.code
        );
    }
    out
}

fn render_change(change: &Change) -> String {
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => format!("{}: {old} -> {new}", change.what),
        (Some(old), None) => format!("{}: {old} -> gone", change.what),
        (None, Some(new)) => format!("{}: new, {new}", change.what),
        (None, None) => change.what.clone(),
    }
}

fn render_users(users: &[String]) -> String {
    let mut shown: Vec<String> = users.iter().take(USERS_SHOWN).map(|user| format!("`{user}`")).collect();
    if users.len() > USERS_SHOWN {
        shown.push(format!("and {} more", users.len() - USERS_SHOWN));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::{Place, rules};
    use super::*;

    #[test]
    fn looks_like_a_compiler_message() {
        let mut finding = Finding::new(&rules::type_layout::RULE, "app::Order")
            .at(Some(Place { file: "src/main.rs".into(), line: 12 }))
            .change("size", Some("16".into()), Some("24".into()))
            .change("field `tax`", None, Some("u64 at 16".into()))
            .change("field `net`", Some("u64 at 8".into()), None);
        finding.used_by = (0..5).map(|i| format!("app::f{i}")).collect();
        let text = render_all(&[finding]);
        for part in [
            "error[LP0001]: ",
            "\n  --> src/main.rs:12\n",
            "= size: 16 -> 24\n",
            "= field `tax`: new, u64 at 16\n",
            "= field `net`: u64 at 8 -> gone\n",
            "`app::f2`, and 2 more\n",
            "refused: 1 finding;",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }
}
