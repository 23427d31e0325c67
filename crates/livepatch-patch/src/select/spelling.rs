//! What source has to write and symbols do not have.

/// A path or type without the `r#` of raw identifiers, and without lifetimes, which never tell two impls apart: `&str` of
/// `&'a str`, `a::T` of `a::T<'_>`, `fn(&u8)` of `for<'a> fn(&'a u8)`.
pub(super) fn unadorned(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.trim();
    while !rest.is_empty() {
        let in_word = out.ends_with(is_word);
        if let Some(behind) = rest.strip_prefix("r#").filter(|_| !in_word) {
            rest = behind;
        } else if let Some(behind) = behind_lifetime(rest) {
            rest = without_separator(&mut out, behind);
        } else {
            let behind = behind_char(rest).unwrap_or_else(|| behind_first(rest));
            out.push_str(rest.strip_suffix(behind).unwrap_or(rest));
            rest = behind;
        }
    }
    out
}

fn behind_first(text: &str) -> &str {
    let mut chars = text.chars();
    chars.next();
    chars.as_str()
}

/// What follows a lifetime that the text begins with.
fn behind_lifetime(text: &str) -> Option<&str> {
    let name = text.strip_prefix('\'')?;
    let behind = name.trim_start_matches(is_word);
    let is_one = behind.len() < name.len() && !behind.starts_with('\'');
    is_one.then_some(behind)
}

/// What follows a character in quotes, a generic argument.
fn behind_char(text: &str) -> Option<&str> {
    let name = text.strip_prefix('\'')?;
    let mut chars = name.strip_prefix('\\').map_or(name, behind_first).chars();
    chars.find(|c| *c == '\'')?;
    Some(chars.as_str())
}

/// Takes away what set the lifetime apart that stood between the two texts; returns the rest of the second one.
fn without_separator<'t>(before: &mut String, behind: &'t str) -> &'t str {
    let next = behind.trim_start();
    if let Some(next) = next.strip_prefix(',') {
        return next.trim_start();
    }
    let kept = before.trim_end();
    let (kept, behind) = match (kept.strip_suffix('<'), next.strip_prefix('>')) {
        // The only argument.
        (Some(outer), Some(next)) => {
            let outer = outer.strip_suffix("::").unwrap_or(outer);
            match outer.strip_suffix("for").filter(|outer| !outer.ends_with(is_word)) {
                Some(outer) => (outer, next.trim_start()),
                None => (outer, next),
            }
        }
        _ => match kept.strip_suffix(',').or_else(|| kept.strip_suffix('+')) {
            Some(kept) => (kept.trim_end(), behind),
            None => return next,
        },
    };
    *before = kept.to_owned();
    behind
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::unadorned;

    #[test]
    fn raw_identifiers_and_lifetimes_are_not_in_symbols() {
        for (written, plain) in [
            ("a::r#type::r#match", "a::type::match"),
            ("<a::r#Box as r#b::C>::r#fn", "<a::Box as b::C>::fn"),
            ("a::{r#impl}::ctor#0", "a::{impl}::ctor#0"),
            ("<&'a str as T>::m", "<&str as T>::m"),
            ("<&'static mut a::B as T>::m", "<&mut a::B as T>::m"),
            ("a::T<'a, u8>", "a::T<u8>"),
            ("a::T<'a, 'b>::m", "a::T::m"),
            ("a::T::<'_>::m", "a::T::m"),
            ("a::T<u8, 'a>", "a::T<u8>"),
            ("dyn a::B + 'static", "dyn a::B"),
            ("dyn a::B + 'a + Send", "dyn a::B + Send"),
            ("<dyn a::B + 'a as T>::m", "<dyn a::B as T>::m"),
            ("for<'a> fn(&'a u8)", "fn(&u8)"),
            ("a::T<'a'>", "a::T<'a'>"),
            ("a::T<'\\'', 'b'>", "a::T<'\\'', 'b'>"),
            ("a::T<'>'>", "a::T<'>'>"),
        ] {
            assert_eq!(unadorned(written), plain, "{written}");
        }
    }
}
