//! Items of one name in one function, which symbols tell apart by a number only.
//!
//! A macro with a `static` or a `fn` inside, used twice in a function, makes two items of one path. The compiler numbers them in
//! the order in which it comes to them, so one more use before the others, or a removed one, gives their numbers to others: a
//! running variable would go on as another one, and the address of a function would lead to another one. Nothing tells what
//! continues what, so such items are doubtful as soon as a function that uses them changed in a way that may have renumbered
//! them.
//!
//! Functions of one name are not all such items: those with other generic arguments have it in common, too. Where the function that they
//! are in is code of its own, it is known by name. It may have been inlined everywhere, even before raw code is made; then debug
//! information is asked: what it describes in the very same way, and is compiled in the same crate, is of one name in one place. So are the
//! methods of types of one name.

use super::Diff;
use super::described::described;
use super::graph::Graph;
use super::pair::by_name;
use super::program::{At, Program};
use super::rename::{base, without_numbers};
use crate::build::Build;
use crate::emit::name_of;
use crate::guard::{GuardError, demangle};
use crate::objects::{Kind, Section};
use crate::source::SourceDiff;
use std::collections::{HashMap, HashSet};

/// Names of doubtful items, and those of them whose address is used for something else than a direct call.
#[derive(Debug, Default)]
struct Doubtful {
    names: HashSet<String>,
    by_address: HashSet<String>,
    /// The same of items of one path that may have other generic arguments, or be in different places.
    unclear: HashSet<String>,
}

impl Diff<'_> {
    /// Running variables (of the new build) and functions whose address may be kept (of the old build), of which it cannot be told
    /// which items of the new source continue them.
    ///
    /// # Errors
    /// Debug information that cannot be read.
    pub(crate) fn doubtful(
        &self,
        source: &SourceDiff,
        builds: (&Build, &Build),
    ) -> Result<(Vec<At>, Vec<At>), GuardError> {
        if !source.may_renumber() {
            return Ok(Default::default());
        }
        let placed = self.placed_names();
        let mut doubtful = match self.meaning.all() {
            Some(meaning) => of_graphs(&meaning.graphs(), &placed, &|name| meaning.is_changed(name)),
            None => {
                let graph = |program: &Program<'_>| Graph::new(program, &by_name(program, |_| true));
                let names = |program: &Program<'_>, at: At| program.key(name_of(program, at)).to_owned();
                let old = self.changed.iter().map(|change| names(&self.old, change.old));
                let new = self.changed.iter().map(|change| names(&self.new, change.new));
                let changed: HashSet<String> = old.chain(new).collect();
                of_graphs(&[&graph(&self.old), &graph(&self.new)], &placed, &|name| changed.contains(name))
            }
        };
        let alike = self.described_alike(&doubtful.unclear, builds)?;
        doubtful.by_address.extend(alike);
        let may_have_moved = |name: &String| source.may_renumber_in(&demangle(name));
        doubtful.names.retain(may_have_moved);
        doubtful.by_address.retain(may_have_moved);
        if doubtful.names.is_empty() {
            return Ok(Default::default());
        }
        tracing::debug!(?doubtful, "may have other numbers");
        let key = |program: &Program<'_>, at: At| self.name_in_graphs(program, at);
        let variables = self.new.all().filter(|(at, section)| {
            section.kind.is_variable()
                && self.partners.contains_key(at)
                && doubtful.names.contains(&key(&self.new, *at))
        });
        let functions = self.old.all().filter(|(at, section)| {
            section.kind == Kind::Text
                && self.old.addr(*at).is_some()
                && doubtful.by_address.contains(&key(&self.old, *at))
        });
        Ok((variables.map(|(at, _)| at).collect(), functions.map(|(at, _)| at).collect()))
    }

    /// Those of these names that debug information does not tell from another one of them, which the same image or the other has.
    fn described_alike(
        &self,
        names: &HashSet<String>,
        (old, new): (&Build, &Build),
    ) -> Result<Vec<String>, GuardError> {
        let mut alike: HashMap<_, HashSet<String>> = HashMap::new();
        for (program, build) in [(&self.old, old), (&self.new, new)] {
            let key = |at| self.name_in_graphs(program, at);
            // What is in an anonymous constant is told by its impl blocks (`anonymous.rs`).
            let in_constant = |at| demangle(name_of(program, at)).contains("::_::");
            let wanted = program.all().map(|(at, _)| at);
            let wanted = wanted.filter(|at| names.contains(&key(*at)) && !in_constant(*at));
            for (at, info) in described(program, build, wanted)? {
                // Of a method of a reference the path does not tell the trait.
                let (key, path) = (key(at), without_numbers(&info.path));
                alike.entry((base(&key), path, info.receiver, info.crate_key)).or_default().insert(key);
            }
        }
        Ok(alike.into_values().filter(|names| names.len() > 1).flatten().collect())
    }

    /// What either image has. Raw code has more: each thread-local comes with two variables, of which one is used.
    fn placed_names(&self) -> HashSet<String> {
        let of = |program| {
            let placed = move |(at, _): (At, &Section<'_>)| {
                Program::addr(program, at).map(|_| self.name_in_graphs(program, at))
            };
            program.all().filter_map(placed).collect::<Vec<_>>()
        };
        of(&self.old).into_iter().chain(of(&self.new)).collect()
    }

    fn name_in_graphs(&self, program: &Program<'_>, at: At) -> String {
        let name = name_of(program, at);
        self.meaning
            .all()
            .map_or_else(|| program.key(name).to_owned(), |meaning| meaning.key(name).to_owned())
    }
}

/// Finds them in what refers to what, before and after.
fn of_graphs(graphs: &[&Graph; 2], placed: &HashSet<String>, is_changed: &dyn Fn(&str) -> bool) -> Doubtful {
    let mut groups: HashMap<String, HashSet<&str>> = HashMap::new();
    for name in graphs.iter().flat_map(|graph| graph.nodes.keys()) {
        if let Some(path) = base(name).filter(|path| !is_numbered(path)) {
            groups.entry(path).or_default().insert(name);
        }
    }
    let several: HashMap<&str, HashSet<&str>> = groups
        .iter()
        .map(|(path, all)| {
            (path.as_str(), all.iter().copied().filter(|name| placed.contains(*name)).collect())
        })
        .filter(|(_, names): &(&str, HashSet<&str>)| names.len() > 1)
        .collect();
    let members: HashMap<&str, &str> =
        several.iter().flat_map(|(path, names)| names.iter().map(|name| (*name, *path))).collect();
    let users = Users::of(graphs, &members);
    let mut doubtful = Doubtful::default();
    for (path, names) in &several {
        if users.change(names, path, is_changed) {
            let is_local = parents(path).any(|parent| is_anonymous(parent) || groups.contains_key(parent));
            let kept = names.iter().filter(|name| users.by_address.contains(**name));
            let kept = kept.map(|name| (*name).to_owned());
            if is_local {
                doubtful.by_address.extend(kept)
            } else {
                doubtful.unclear.extend(kept)
            }
            doubtful.names.extend(names.iter().map(|name| (*name).to_owned()));
        }
    }
    doubtful
}

/// Who refers to the items in question.
struct Users<'g> {
    of: HashMap<&'g str, HashSet<&'g str>>,
    /// Items that are not only called.
    by_address: HashSet<&'g str>,
}

impl<'g> Users<'g> {
    /// Users of these items, and of what stands between them and the function that they are in.
    fn of(graphs: &[&'g Graph; 2], items: &HashMap<&str, &str>) -> Self {
        let mut users = Self { of: HashMap::new(), by_address: HashSet::new() };
        for (user, used, calls) in graphs.iter().flat_map(|graph| graph.references()) {
            let between = || base(used).is_some_and(|path| is_numbered(&path) || is_shim(&path));
            if items.contains_key(used) || between() {
                users.of.entry(used).or_default().insert(user);
                if !calls {
                    users.by_address.insert(used);
                }
            }
        }
        users
    }

    /// Whether something outside of the item that uses one of these changed. The accessor of a thread-local is a closure in its item.
    fn change(&self, names: &HashSet<&'g str>, path: &str, is_changed: &dyn Fn(&str) -> bool) -> bool {
        let mut seen = names.clone();
        let mut work: Vec<&str> = names.iter().copied().collect();
        while let Some(name) = work.pop() {
            for user in self.of.get(name).into_iter().flatten() {
                if !names.contains(user) && is_changed(user) {
                    return true;
                }
                let is_part = |user: &str| is_shim(user) || (is_numbered(user) && path.starts_with(user));
                if base(user).is_some_and(|user| is_part(&user)) && seen.insert(user) {
                    work.push(user);
                }
            }
        }
        false
    }
}

/// Whether a path is that of a closure or constant without a name. Those are looked at in other ways.
fn is_numbered(path: &str) -> bool {
    path.ends_with("$u7d$$u7d$") || path.ends_with('}')
}

/// Whether a path is that of a constant `_`, of which a module may have several.
fn is_anonymous(path: &str) -> bool {
    path.ends_with("::_")
        || path.strip_suffix("1_").is_some_and(|scope| legacy_ends(path).last() == Some(&scope.len()))
}

/// Whether it makes a function pointer of a closure, or calls one.
fn is_shim(path: &str) -> bool {
    path.contains("4core3ops8function") || path.contains("core::ops::function::")
}

/// What a path lies in, and what that lies in.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    let ends: Vec<usize> = match path.contains("::") {
        true => path.match_indices("::").map(|(at, _)| at).collect(),
        false => legacy_ends(path),
    };
    ends.into_iter().filter(|end| *end > 0).map(move |end| &path[..end])
}

/// Where the components of a path of the legacy mangling end, but for the last: each is preceded by its length.
fn legacy_ends(path: &str) -> Vec<usize> {
    let (mut ends, mut at) = (Vec::new(), 0);
    while at < path.len() {
        let digits = path[at..].bytes().take_while(u8::is_ascii_digit).count();
        let Ok(len) = path[at..at + digits].parse::<usize>() else { return Vec::new() };
        at += digits + len;
        ends.push(at);
    }
    ends.pop();
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_what_they_lie_in() {
        let of = |path| parents(path).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(of("5check5check1N"), ["5check", "5check5check"]);
        assert_eq!(of("check::check::N"), ["check", "check::check"]);
        assert!(of("5check").is_empty() && of("check").is_empty());
        assert!(is_anonymous("app::_") && is_anonymous("3app1_") && is_anonymous("3app5check1_"));
        assert!(!(is_anonymous("app::a_") || is_anonymous("3a1_") || is_anonymous("3app3a1_")));
        // No path at all.
        assert!(of("main").is_empty() && of("9too_long").is_empty());
    }
}
