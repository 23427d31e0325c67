//! One part of a selection, and what it means in a patch.

use super::spelling::unadorned;
use super::{Part, Unknown};
use crate::item::{ItemName, is_below, is_path, normalise, segments, separated, without_arguments};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that a selection of a patch can name.
pub(super) struct Names<'p> {
    /// Replaced functions and changed items that are inlined into them, each once.
    pub items: Vec<&'p ItemName>,
    /// Paths of functions that the patch brings in.
    pub new: Vec<&'p str>,
}

impl<'p> Names<'p> {
    /// The items that a part means: indices into `items`, at least one.
    pub fn find(&self, part: &Part) -> Result<BTreeSet<usize>, Unknown> {
        let unknown =
            |error: Option<String>| Unknown { part: part.clone(), error, similar: self.similar(part) };
        well_formed(part.path().trim()).map_err(|error| unknown(Some(error)))?;
        let wanted = &unadorned(part.path());
        let found = match part {
            Part::Module(_) => self.module(wanted),
            Part::Type(_) => self.of_type(wanted),
            Part::Function(_) => self.function(wanted),
        };
        match found {
            Ok(found) if found.is_empty() => Err(unknown(None)),
            Ok(found) => Ok(found),
            Err(error) => Err(unknown(Some(error))),
        }
    }

    /// What all items are called in messages.
    pub fn all(&self) -> Vec<String> {
        let all: BTreeSet<String> = self.labels().into_values().collect();
        all.into_iter().collect()
    }

    /// What each item is called in messages, by its key: a path that selects it, with generic arguments only where that path
    /// would mean other items, too.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for item in &self.items {
            keys.entry(item.full()).or_default().insert(item.key());
        }
        let label = |(full, keys): (String, BTreeSet<String>)| {
            let only = keys.len() == 1;
            keys.into_iter()
                .map(move |key| (key.clone(), if only { full.clone() } else { key }))
                .collect::<Vec<_>>()
        };
        keys.into_iter().flat_map(label).collect()
    }

    fn matching(&self, wanted: impl Fn(&ItemName) -> bool) -> BTreeSet<usize> {
        self.items.iter().enumerate().filter(|(_, item)| wanted(item)).map(|(at, _)| at).collect()
    }

    /// A module, on whole path segments.
    fn module(&self, wanted: &str) -> Result<BTreeSet<usize>, String> {
        if !is_path(wanted) {
            return Err("a module is named by names with `::` between them".into());
        }
        let wanted = normalise(wanted);
        for item in &self.items {
            if item.self_type.as_deref().is_some_and(|of| without_arguments(of) == wanted) {
                return Err("it is a type; select it as one".into());
            }
            if item.full() == wanted {
                return Err("it is a function; select it as one".into());
            }
        }
        Ok(self.matching(|item| is_below(&normalise(&item.scope), &wanted)))
    }

    /// A type with its methods, those for references to it included.
    fn of_type(&self, wanted: &str) -> Result<BTreeSet<usize>, String> {
        let is_meant =
            |of: &str| means(wanted, if wanted.starts_with('&') { of } else { behind_references(of) });
        let found = self.matching(|item| item.self_type.as_deref().is_some_and(is_meant));
        let is_trait = |item: &&ItemName| item.trait_path.as_deref().is_some_and(|of| means(wanted, of));
        match self.items.iter().copied().find(is_trait).filter(|_| found.is_empty()) {
            Some(item) => Err(format!("it is a trait; select methods of it, such as {}", item.full())),
            None => Ok(found),
        }
    }

    /// A function by its path, with what stands inside of it.
    fn function(&self, wanted: &str) -> Result<BTreeSet<usize>, String> {
        if segments(wanted).iter().any(|segment| segment.starts_with('{')) {
            return Err(
                "closures and async bodies belong to the function that they are in; select that".into()
            );
        }
        let exact = normalise(wanted);
        let spelled = self.matching(|item| {
            let is = |path: &str| normalise(&unadorned(path)) == exact;
            is(&item.key()) || (is(&item.path) && !is_inside(&item.path))
        });
        let named = ItemName::new(wanted, Default::default());
        let bare = normalise(&named.full());
        let has_arguments = without_arguments(wanted) != exact;
        let last_has_arguments = segments(wanted).last().is_some_and(|last| last.contains('<'));
        let full = match &named.self_type {
            _ if last_has_arguments => BTreeSet::new(),
            Some(of) => self.matching(|item| is_method(item, &named.name, of, named.trait_path.as_deref())),
            None if has_arguments => {
                let mut outer = segments(wanted);
                let name = outer.pop().unwrap_or_default();
                let of = outer.join("::");
                self.matching(|item| is_method(item, name, &of, None))
            }
            None => self.matching(|item| normalise(&item.full()) == bare),
        };
        let full: BTreeSet<usize> = full.union(&spelled).copied().collect();
        let mut found = if full.is_empty() && !has_arguments { self.method(&bare)? } else { full };
        if found.is_empty() && !has_arguments {
            let is_wanted = |outer: &str| normalise(&unadorned(outer)) == bare;
            found = self.matching(|item| item.enclosing().is_some_and(|outer| is_wanted(&outer)));
        }
        let inside: Vec<String> = found.iter().map(|at| normalise(&self.items[*at].full())).collect();
        let below = self.matching(|item| {
            let (own, scope) = (normalise(&item.full()), normalise(&item.scope));
            inside.iter().any(|outer| {
                own.strip_prefix(outer.as_str()).is_some_and(|rest| rest.starts_with("::"))
                    || is_below(&scope, outer)
            })
        });
        match found.is_empty() {
            false if has_arguments => Ok(found),
            false => Ok(found.union(&below).copied().collect()),
            true if self.new.iter().any(|path| without_arguments(path) == bare) => {
                Err("it is new in this patch and comes with the functions that call it".into())
            }
            true => Ok(found),
        }
    }

    /// `Type::method` or `Trait::method` for methods of traits, if it can only mean those of one.
    fn method(&self, wanted: &str) -> Result<BTreeSet<usize>, String> {
        let is = |of: &Option<String>, item: &ItemName| {
            let of = of.as_deref().map(behind_references).map(without_arguments);
            let outer = wanted.strip_suffix(item.name.as_str()).and_then(|outer| outer.strip_suffix("::"));
            of.zip(outer).is_some_and(|(of, outer)| same_path(outer, &of))
        };
        let by_type = self.matching(|item| item.trait_path.is_some() && is(&item.self_type, item));
        let traits: BTreeSet<String> = by_type.iter().map(|at| self.items[*at].full()).collect();
        if traits.len() > 1 {
            let list: Vec<_> = traits.into_iter().collect();
            return Err(format!("it is ambiguous: {}", list.join(" or ")));
        }
        if !by_type.is_empty() {
            return Ok(by_type);
        }
        Ok(self.matching(|item| item.provided && is(&item.trait_path, item)))
    }

    /// What has the same last name.
    fn similar(&self, part: &Part) -> Vec<String> {
        let last = |path: &str| without_arguments(segments(path).pop().unwrap_or_default());
        let wanted = last(&unadorned(part.path()));
        let mut found = BTreeSet::new();
        for item in &self.items {
            let of = item.self_type.as_deref().map(|of| without_arguments(behind_references(of)));
            match part {
                Part::Function(_) if last(&item.name) == wanted => drop(found.insert(item.full())),
                Part::Type(_) => found.extend(of.filter(|of| last(of) == wanted)),
                Part::Module(_) => {
                    let names = segments(&item.scope);
                    let tails = names.iter().enumerate().filter(|(_, name)| **name == wanted);
                    found.extend(tails.map(|(at, _)| names[..=at].join("::")));
                }
                Part::Function(_) => {}
            }
        }
        const MOST: usize = 5;
        found.into_iter().filter(|path| path != part.path().trim()).take(MOST).collect()
    }
}

/// Whether an item is the method of this name of what is meant by a type and, if it is one of a trait, a trait.
fn is_method(item: &ItemName, name: &str, self_type: &str, trait_path: Option<&str>) -> bool {
    let same_trait = match (trait_path, &item.trait_path) {
        (Some(wanted), Some(of)) => means(wanted, of) || has_default_argument(wanted, of, self_type),
        (None, None) => true,
        _ => false,
    };
    same_trait && item.name == name && item.self_type.as_deref().is_some_and(|of| means(self_type, of))
}

/// Whether a type or trait is meant by what a user wrote. Generic arguments count only if given.
fn means(wanted: &str, real: &str) -> bool {
    let (wanted, real) = (normalise(wanted), normalise(&unadorned(real)));
    let (path, real_path) = (without_arguments(&wanted), without_arguments(&real));
    same_path(&path, &real_path) && (path == wanted || same_arguments(arguments(&wanted), arguments(&real)))
}

/// Whether a trait is meant whose argument is the type itself and goes without saying: `Add<Meters>` for `Meters`.
fn has_default_argument(wanted: &str, real: &str, self_type: &str) -> bool {
    let wanted = normalise(wanted);
    let itself = format!("<{self_type}>");
    arguments(real).is_empty()
        && same_arguments(arguments(&wanted), &normalise(&itself))
        && means(&without_arguments(&wanted), real)
}

/// The generic arguments of a type, brackets included.
fn arguments(of: &str) -> &str {
    of.find('<').map_or("", |at| &of[at..])
}

/// Whether two lists of generic arguments mean the same: each type of the one what a user may call that of the other, or `_`.
fn same_arguments(wanted: &str, real: &str) -> bool {
    if wanted == real {
        return true;
    }
    let (Some(wanted), Some(real)) = (listed(wanted), listed(real)) else { return false };
    wanted.len() == real.len() && wanted.iter().zip(&real).all(|(a, b)| a == b || *a == "_" || means(a, b))
}

fn listed(arguments: &str) -> Option<Vec<&str>> {
    Some(separated(arguments.strip_prefix('<')?.strip_suffix('>')?, ","))
}

/// Whether two paths without arguments mean the same. What the standard library defines goes by shorter paths, through which it is
/// exported (`std::iter::Iterator`), or by its name alone.
fn same_path(wanted: &str, real: &str) -> bool {
    if wanted == real {
        return true;
    }
    let Some(real) = real.strip_prefix("core::").filter(|real| is_path(real) && is_path(wanted)) else {
        return false;
    };
    let exported = wanted.strip_prefix("core::");
    let short = exported.unwrap_or(wanted);
    let mut names = segments(real).into_iter();
    let in_order = segments(short).into_iter().all(|name| names.any(|real| real == name));
    in_order && names.next().is_none() && (exported.is_some() || !short.contains("::"))
}

fn is_inside(path: &str) -> bool {
    segments(path).iter().any(|segment| segment.starts_with('{'))
}

fn behind_references(mut of: &str) -> &str {
    while let Some(rest) = of.strip_prefix('&') {
        of = rest.strip_prefix("mut ").unwrap_or(rest);
    }
    of
}

fn well_formed(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("it is empty".into());
    }
    let mut open = Vec::new();
    let mut before = ' ';
    for c in path.chars() {
        match c {
            '<' | '(' | '[' | '{' => open.push(c),
            '>' if before == '-' => {}
            '>' | ')' | ']' | '}' => {
                let fits = open
                    .pop()
                    .is_some_and(|o| matches!((o, c), ('<', '>') | ('(', ')') | ('[', ']') | ('{', '}')));
                if !fits {
                    return Err(format!("`{c}` closes nothing"));
                }
            }
            _ => {}
        }
        before = c;
    }
    if let Some(c) = open.pop() {
        return Err(format!("`{c}` is not closed"));
    }
    match segments(path).iter().any(|segment| segment.trim().is_empty()) {
        true => Err("there is nothing before or behind a `::`".into()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{has_default_argument, means};

    #[test]
    fn arguments_may_be_written_as_in_source() {
        let item = "plain::cart::Item<alloc::string::String>";
        for wanted in [
            "plain::cart::Item",
            "plain::cart::Item<String>",
            "plain::cart::Item<std::string::String>",
            "plain::cart::Item<_>",
        ] {
            assert!(means(wanted, item), "{wanted}");
        }
        for wanted in
            ["plain::cart::Item<u32>", "plain::cart::Item<my::String>", "plain::cart::Item<String, u8>"]
        {
            assert!(!means(wanted, item), "{wanted}");
        }
        assert!(means(
            "a::Map<Vec<String>, (u8, u16)>",
            "a::Map<alloc::vec::Vec<alloc::string::String>,(u8, u16)>"
        ));
        assert!(!means("a::Map<Vec<u8>, u8>", "a::Map<alloc::vec::Vec<u16>,u8>"));
        assert!(has_default_argument("std::ops::Add<a::Meters>", "core::ops::arith::Add", "a::Meters"));
        assert!(!has_default_argument("std::ops::Add<a::Feet>", "core::ops::arith::Add", "a::Meters"));
    }
}
