//! Variables of one name that may both be alive at an await: `let s = one(); let r = &s; let s = other();`.
//!
//! The suspended future keeps both, under one name. Where they are of one type, nothing but the source tells that they changed places:
//! each would be taken for the other.

use super::given::value;
use super::text;
use crate::source::tokens::Token;
use livepatch_patch::in_other_order;
use std::collections::BTreeMap;

/// What a name is given in another order than before.
pub(super) fn moved(old: &[Token], new: &[Token]) -> Option<String> {
    let (before, after) = (given(old), given(new));
    before.iter().find_map(|(name, old)| in_other_order(old, after.get(name)?).cloned())
}

/// What names are given of which there are several.
pub(super) fn several(tokens: &[Token]) -> impl Iterator<Item = String> {
    let given = given(tokens).into_iter().filter(|(_, values)| values.len() > 1);
    given.map(|(name, values)| format!("{name} {values:?}")).collect::<Vec<_>>().into_iter()
}

/// What each name is given where it is declared, in order.
fn given(tokens: &[Token]) -> BTreeMap<&str, Vec<String>> {
    let mut given: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (at, _) in tokens.iter().enumerate().filter(|(_, token)| token.name() == "let") {
        let mutable = tokens.get(at + 1).is_some_and(|token| token.name() == "mut");
        let name = at + 1 + usize::from(mutable);
        let Some(variable) = tokens.get(name).filter(|token| token.is_ident()) else { continue };
        if let Some(value) = value(tokens, name, tokens.len()) {
            given.entry(variable.name()).or_default().push(text(&tokens[value]));
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::super::moved_in_text;

    #[test]
    fn values_of_one_name_change_places() {
        let body = |[one, other]: [&str; 2]| {
            format!("let s = {one}; let r = &s; let mut s: String = {other}; w().await; f(r, s)")
        };
        let moved = |old: [&str; 2], new: [&str; 2]| moved_in_text(&body(old), &body(new));
        assert_eq!(moved(["v(1)", "v(2)"], ["v(2)", "v(1)"]).as_deref(), Some("v(1)"));
        assert_eq!(moved(["v(1)", "v(2)"], ["v(1)", "v(3)"]), None);
        assert_eq!(moved(["v(1)", "v(1)"], ["v(1)", "v(1)"]), None);
    }
}
