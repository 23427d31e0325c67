//! Old and new files, item by item.

use super::additions::{Additions, Candidate, align};
use super::hiding::Hiding;
use super::items::{Entity, File, parse};
use super::lookup::{ItemLines, Lines, Tainted, Tainters};
use super::macros::Packages;
use super::mentions::{Closure, LocalTraits, entity_is_tainted, expected, function_names};
use super::pieces::may_include_text;
use super::tokens::Token;
use super::{Change, ChangedItem, Doubt, ItemKind, SourceDiff, SourceFile, SourceSet, Sure, closures};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub(super) fn between(old: &SourceSet, new: &SourceSet) -> Sure<SourceDiff> {
    if let Some(reason) = old.unlike(new) {
        return Err(Doubt(reason));
    }
    same_paths(old, new)?;
    for (old, new) in old.files.iter().zip(&new.files) {
        if !old.is_rust() && old.bytes != new.bytes {
            return Err(Doubt(format!("{}: changed, and is not Rust source", old.path)));
        }
    }
    let (old_files, new_files) = parse_both(old, new)?;
    included_as_text(old, new, &new_files)?;
    let mut changed = Vec::new();
    let mut additions = Additions::new(&old_files, &new_files);
    for (old, new) in old_files.iter().zip(&new_files) {
        if differ(old, new) {
            let added = same_frame(old, new)?;
            changed.extend(compare(old, new, &added)?);
            additions.add(new, added);
        }
    }
    additions.check()?;
    let mut items: Vec<ChangedItem> = changed.iter().map(Pair::item).collect();
    items.extend(additions.items());
    if items.is_empty() {
        let tainted = Tainted::new(HashSet::new(), Tainters::default(), clean(&old_files), clean(&new_files));
        let (change, hides) = (Change::Nothing, Hiding::Anywhere);
        return Ok(SourceDiff { change, tainted, direct: None, hides, types: Vec::new(), bodies: None });
    }
    runs_at_compile_time(new, &old_files, &new_files)?;
    let all: Vec<&File> = old_files.iter().chain(&new_files).map(|file| &**file).collect();
    let traits = LocalTraits::of(&all);
    let new_only = changed.iter().filter(|pair| pair.old.is_none()).filter_map(|pair| pair.new);
    let closure = Closure {
        files: &all,
        traits: &traits,
        added: new_only.collect(),
        held: additions.entities().collect(),
        candidates: additions.candidates(),
    };
    let seeds: HashSet<String> =
        changed.iter().map(|pair| pair.any().name.clone()).chain(additions.names()).collect();
    let only_functions = function_names(&all);
    let tainted = |names: HashSet<String>| {
        let lines = |files: &[Shared]| {
            files.iter().map(|file| lines(file, &names, &only_functions, &closure)).collect()
        };
        let (old_lines, new_lines) = (lines(&old_files), lines(&new_files));
        let by = closure.tainters(&names);
        Tainted::new(names, by, old_lines, new_lines)
    };
    let reached = changed
        .iter()
        .flat_map(|pair: &Pair<'_>| [pair.old, pair.new])
        .flatten()
        .try_for_each(|entity| closure.by_name_only(entity))
        .and_then(|()| closure.grow(seeds.clone()));
    Ok(match reached {
        Ok(names) => {
            let (change, tainted) = (Change::Items(items), tainted(names));
            SourceDiff {
                change,
                tainted,
                direct: None,
                hides: Hiding::Anywhere,
                types: Vec::new(),
                bodies: None,
            }
        }
        Err(doubt) => {
            let direct = Some((items, tainted(closure.grow_by_names(seeds))));
            SourceDiff { direct, ..SourceDiff::everything(doubt.0) }
        }
    })
}

fn same_paths(old: &SourceSet, new: &SourceSet) -> Sure<()> {
    let paths = |set: &SourceSet| -> Vec<String> { set.files.iter().map(|file| file.path.clone()).collect() };
    let (old, new) = (paths(old), paths(new));
    if old.windows(2).chain(new.windows(2)).any(|pair| pair[0] == pair[1]) {
        return Err(Doubt("two source files have the same path".into()));
    }
    if let Some(path) = old.iter().find(|path| new.binary_search(path).is_err()) {
        return Err(Doubt(format!("{path}: no longer part of the program")));
    }
    if let Some(path) = new.iter().find(|path| old.binary_search(path).is_err()) {
        return Err(Doubt(format!("{path}: new in the program")));
    }
    Ok(())
}

/// A parsed file, one for both sides where it did not change.
type Shared = Arc<File>;

fn parse_both(old: &SourceSet, new: &SourceSet) -> Sure<(Vec<Shared>, Vec<Shared>)> {
    let pairs: Vec<(&SourceFile, &SourceFile)> =
        old.files.iter().zip(&new.files).filter(|(file, _)| file.is_rust()).collect();
    let parsed = pairs.into_par_iter().map(|(was, is)| {
        let of_old = Arc::new(parse(was, old.test)?);
        let same = was.bytes == is.bytes && old.test == new.test;
        let of_new = if same { Arc::clone(&of_old) } else { Arc::new(parse(is, new.test)?) };
        Ok((of_old, of_new))
    });
    Ok(parsed.collect::<Sure<Vec<_>>>()?.into_iter().unzip())
}

fn differ(old: &Shared, new: &Shared) -> bool {
    !Arc::ptr_eq(old, new) && old.tokens != new.tokens
}

/// A file that gets into the program as text has bytes, not tokens.
fn included_as_text(old: &SourceSet, new: &SourceSet, files: &[Shared]) -> Sure<()> {
    let Some(file) = files.iter().find(|file| may_include_text(&file.tokens)) else { return Ok(()) };
    let changed = old.files.iter().zip(&new.files).find(|(old, new)| old.bytes != new.bytes);
    match changed {
        Some((old, _)) => {
            Err(Doubt(format!("{}: changed, and {} may include it as text", old.path, file.path)))
        }
        None => Ok(()),
    }
}

/// Build scripts and procedural macros decide what other code is; so may whatever they call.
fn runs_at_compile_time(set: &SourceSet, old: &[Shared], new: &[Shared]) -> Sure<()> {
    let macros = old.iter().chain(new).filter(|file| file.defines_proc_macro);
    let macros: Vec<&str> = macros.map(|file| &*file.path).collect();
    let packages = Packages::of(set);
    let mut changed = old.iter().zip(new).filter(|(old, new)| differ(old, new)).map(|(_, new)| new);
    if !macros.is_empty()
        && let Some(file) = changed.find(|file| packages.may_be_in_macro(&file.path, &macros))
    {
        return Err(Doubt(format!("{}: changed, and may be part of a procedural macro", file.path)));
    }
    let script = |path: &str| path.rsplit('/').next() == Some("build.rs");
    let pairs = old.iter().zip(new);
    match pairs.into_iter().find(|(old, new)| script(&old.path) && differ(old, new)) {
        Some((file, _)) => Err(Doubt(format!("{}: a build script", file.path))),
        None => Ok(()),
    }
}

/// An item on both sides, or on one.
struct Pair<'a> {
    old: Option<&'a Entity>,
    new: Option<&'a Entity>,
}

impl<'a> Pair<'a> {
    fn any(&self) -> &'a Entity {
        self.new.or(self.old).expect("a pair has a side")
    }

    fn item(&self) -> ChangedItem {
        let any = self.any();
        let span = |side: Option<&Entity>| side.map(|entity| entity.span.clone());
        ChangedItem {
            name: any.name.clone(),
            path: any.path.clone(),
            kind: any.kind,
            local: any.nested,
            old: span(self.old),
            new: span(self.new),
            within: self.old.zip(self.new).and_then(|(old, new)| closures::around(old, new)),
            renumbers: self.old.zip(self.new).is_some_and(|(old, new)| closures::may_renumber(old, new)),
        }
    }
}

fn compare<'a>(old: &'a File, new: &'a File, added: &[&Candidate]) -> Sure<Vec<Pair<'a>>> {
    let (mut olds, mut news) = (by_place(old, &[]), by_place(new, added));
    let places: Vec<_> = olds.keys().chain(news.keys()).copied().collect();
    let mut changed = Vec::new();
    let mut seen = HashSet::new();
    for place in places {
        if !seen.insert(place) {
            continue;
        }
        let old_items = olds.remove(&place).unwrap_or_default();
        let new_items = news.remove(&place).unwrap_or_default();
        changed.extend(pair(&old_items, &new_items)?);
    }
    Ok(changed)
}

/// What `new` has in its frame in addition.
fn same_frame<'a>(old: &File, new: &'a File) -> Sure<Vec<&'a Candidate>> {
    align(old, new)
        .map_err(|line| Doubt(format!("{}:{line}: more than bodies of functions changed", new.path)))
}

type PlaceKey<'a> = (&'a str, usize, &'a str, bool);

fn by_place<'a>(file: &'a File, without: &[&Candidate]) -> BTreeMap<PlaceKey<'a>, Vec<&'a Entity>> {
    let mut places: BTreeMap<_, Vec<&Entity>> = BTreeMap::new();
    let held = |at: usize| without.iter().any(|candidate| candidate.entities.contains(&at));
    for (_, entity) in file.entities.iter().enumerate().filter(|(at, _)| !held(*at)) {
        let place = (&*entity.container, entity.behind, &*entity.name, entity.nested);
        places.entry(place).or_default().push(entity);
    }
    places
}

/// Items of one name in one place. There are several where conditional compilation chooses one.
fn pair<'a>(old: &[&'a Entity], new: &[&'a Entity]) -> Sure<Vec<Pair<'a>>> {
    let any = old.first().or(new.first()).expect("a place has items");
    let at = |what: &str| Doubt(format!("{}:{}: `{}` {what}", any.span.file, any.span.first_line, any.path));
    let aligned = old.len() == new.len() && old.iter().zip(new).all(|(old, new)| same_kind(old, new));
    if any.nested {
        // Seen in its function only, which is known to have changed if this did.
        let same = aligned && old.iter().zip(new).all(|(old, new)| whole(old) == whole(new));
        let one = |old, new| Ok(if same { vec![] } else { vec![Pair { old, new }] });
        return one(old.first().copied(), new.first().copied());
    }
    if aligned {
        let different = old.iter().zip(new).filter(|(old, new)| old.body != new.body);
        return different
            .map(|(old, new)| {
                if old.local_items != new.local_items {
                    return Err(at("has types, impls or imports in its body that changed"));
                }
                Ok(Pair { old: Some(*old), new: Some(*new) })
            })
            .collect();
    }
    match (old, new) {
        ([one], []) | ([], [one]) if !one.movable => {
            Err(at("was added or removed, and has an effect without being named"))
        }
        ([one], []) | ([], [one]) if !one.local_items.is_empty() => {
            Err(at("was added or removed with items in its body"))
        }
        ([one], []) => Ok(vec![Pair { old: Some(one), new: None }]),
        ([], [one]) => Ok(vec![Pair { old: None, new: Some(one) }]),
        ([_], [_]) => Err(at("has another signature, type or attributes")),
        _ => Err(at("is there several times, and it is not clear which is which")),
    }
}

fn same_kind(old: &Entity, new: &Entity) -> bool {
    old.kind == new.kind && old.header == new.header
}

fn whole(entity: &Entity) -> (ItemKind, &[Token], &[Token]) {
    (entity.kind, &entity.header, &entity.body)
}

fn lines(file: &File, names: &HashSet<String>, functions: &HashSet<&str>, closure: &Closure<'_>) -> Lines {
    let items = file
        .entities
        .iter()
        .map(|entity| ItemLines {
            first: entity.span.first_line,
            last: entity.span.last_line,
            tainted: closure.in_added_item(entity) || entity_is_tainted(entity, names),
            expected: expected(entity, names, functions),
        })
        .collect();
    Lines { path: file.path.clone(), items, derived: file.derived.clone(), rest: true }
}

fn clean(files: &[Shared]) -> Vec<Lines> {
    files
        .iter()
        .map(|file| Lines { path: file.path.clone(), items: Vec::new(), derived: Vec::new(), rest: false })
        .collect()
}
