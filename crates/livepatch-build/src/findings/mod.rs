//! Findings: what `create` has to say about a change that it cannot prove safe.
//!
//! A refusal is a value, not an error: all findings of a run are collected, each with a stable code, the item, its place
//! in the source, what changed, why that is dangerous and what to do. Each rule has a file of its own under [`rules`].

mod causes;
mod render;
pub mod rules;

use serde::{Deserialize, Serialize};
use std::fmt;

pub use causes::{in_order, leading};
pub use render::{render, render_all};
pub use rules::Rule;

/// The stable number of a rule; prints as `LP0001`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u16);

/// Whether a finding stops the patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The change cannot be proven safe: no patch is written.
    Refusal,
    /// Worth knowing; the patch is written.
    Note,
}

/// A place in the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Path as the compiler recorded it.
    pub file: String,
    /// Line, counting from 1.
    pub line: u32,
}

/// One difference between the builds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Change {
    /// What differs, for example `size` or ``offset of field `len` ``.
    pub what: String,
    /// Its value in the running program, `None` where it does not exist there.
    pub old: Option<String>,
    /// Its value in the rebuilt program, `None` where it does not exist there.
    pub new: Option<String>,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Rule that was broken.
    pub code: Code,
    /// Whether it stops the patch.
    pub severity: Severity,
    /// What was found, in one line.
    pub title: String,
    /// Source path of the type, function or static.
    pub item: String,
    /// Where it is declared in the new source, if known.
    pub place: Option<Place>,
    /// What changed.
    pub changes: Vec<Change>,
    /// Redirected functions or statics through which the item matters.
    pub used_by: Vec<String>,
    /// Why it is dangerous.
    pub reason: String,
    /// What to do.
    pub help: String,
}

impl Finding {
    /// A finding of `rule` about `item`, with the rule's own title, reason and way out.
    pub fn new(rule: &Rule, item: impl Into<String>) -> Self {
        let item = item.into();
        Self {
            code: rule.code,
            severity: rule.severity,
            title: rule.title.replace("{}", &format!("`{item}`")),
            item,
            place: None,
            changes: Vec::new(),
            used_by: Vec::new(),
            reason: rule.reason.to_owned(),
            help: rule.help.to_owned(),
        }
    }

    /// With the place of the item.
    pub fn at(mut self, place: Option<Place>) -> Self {
        self.place = place;
        self
    }

    /// With one more difference.
    pub fn change(mut self, what: impl Into<String>, old: Option<String>, new: Option<String>) -> Self {
        self.changes.push(Change { what: what.into(), old, new });
        self
    }

    /// With all of these differences.
    pub fn changes(mut self, changes: impl IntoIterator<Item = Change>) -> Self {
        self.changes.extend(changes);
        self
    }

    /// With one more function or static through which the item matters.
    pub fn used_by(mut self, user: impl Into<String>) -> Self {
        self.used_by.push(user.into());
        self
    }
}

/// The long explanation of a code such as `LP0001` (any case), or `None` if there is no such rule.
pub fn explain(code: &str) -> Option<&'static str> {
    let code: Code = code.parse().ok()?;
    rules::by_code(code).map(|rule| rule.explanation)
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LP{:04}", self.0)
    }
}

/// The text is not `LP` and four digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a code such as `LP0001`")]
pub struct BadCode(String);

impl std::str::FromStr for Code {
    type Err = BadCode;
    fn from_str(text: &str) -> Result<Self, BadCode> {
        let bad = || BadCode(text.chars().take(40).collect());
        let digits =
            text.get(..2).filter(|p| p.eq_ignore_ascii_case("LP")).and(text.get(2..)).ok_or_else(bad)?;
        if digits.len() != 4 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        digits.parse().map(Code).map_err(|_| bad())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_bad_ones_are_refused() {
        assert_eq!(Code(1).to_string(), "LP0001");
        assert_eq!("lp0012".parse(), Ok(Code(12)));
        for bad in ["", "LP", "LP1", "LP00011", "XX0001", "LP+001", "é001"] {
            assert!(bad.parse::<Code>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_rule_is_complete_and_has_a_code_of_its_own() {
        let mut codes: Vec<_> = rules::ALL.iter().map(|rule| rule.code).collect();
        codes.dedup();
        assert_eq!(codes.len(), rules::ALL.len());
        assert!(codes.is_sorted());
        for rule in rules::ALL {
            assert!(rule.title.contains("{}"), "{}", rule.code);
            assert!(!rule.reason.is_empty() && !rule.help.is_empty(), "{}", rule.code);
            let text = explain(&rule.code.to_string()).expect("known");
            assert!(text.len() > 200, "{} explains too little", rule.code);
        }
        assert_eq!(explain("LP9999"), None);
    }

    #[test]
    fn json_has_stable_keys() {
        let finding = Finding::new(&rules::type_layout::RULE, "app::Order")
            .at(Some(Place { file: "src/main.rs".into(), line: 3 }))
            .change("size", Some("8".into()), Some("16".into()));
        let json = serde_json::to_value(&finding).expect("plain data");
        assert_eq!(json["code"], "LP0001");
        assert_eq!(json["severity"], "refusal");
        assert_eq!(json["place"]["line"], 3);
        assert_eq!(serde_json::from_value::<Finding>(json).expect("round trip"), finding);
    }
}
