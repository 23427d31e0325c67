//! Values that are computed when they are first asked for, and kept: how types and functions that do so are recognised.
//!
//! What says whether a value is there already is a *once-state*. There are few kinds of these, and everything else
//! (`OnceLock`, `LazyLock`, `lazy_static!`, the `Lazy` of other crates) is built on one. So it is asked what a type contains and
//! what calls an initialiser, not what a wrapper is called.

use super::demangle::{crate_of, demangle};
use super::dwarf::DieId;
use super::elf::ImageFile;
use super::names::segments;
use super::report::GuardError;
use super::scan::{Wanted, scan};
use super::side::{Image, Loaded};
use super::types::Types;
use gimli::constants as c;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::path::Path;

/// Names of once-states, in the standard library and in other crates.
const STATES: [&str; 3] = ["Once", "OnceCell", "LazyCell"];

/// How deep a type is looked into, and how many types are.
const DEEPEST: usize = 32;
const MOST: usize = 4096;

/// Whether a function is a method of a once-state, or a closure in one, that is none of the program's own types: what it
/// calls is an initialiser, and runs once for each value.
pub fn is_of_once_state(symbol: &str, local: &HashSet<String>) -> bool {
    // Demangling takes time, and this is asked of every function.
    let may_be = STATES.iter().any(|state| symbol.contains(state)) || symbol.contains("thread_local");
    may_be
        && is_method_of_once_state(&demangle(symbol))
        && crate_of(symbol).is_some_and(|name| !local.contains(&name))
}

fn is_method_of_once_state(path: &str) -> bool {
    let segments = segments(path);
    // `<T>::f` in v0 mangling, `m::T::f` in legacy mangling. Implementations of traits call more than initialisers.
    let own = segments[0].strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    match own {
        Some(own) => !own.contains(" as ") && names_once_state(&self::segments(own)),
        None => (1..segments.len()).any(|end| names_once_state(&segments[..end])),
    }
}

/// Whether this is the path of a once-state. The standard library's thread-locals have one of their own.
fn names_once_state(path: &[&str]) -> bool {
    let [scope @ .., last] = path else { return false };
    let last = bare(last);
    STATES.contains(&last)
        || (last == "Storage" && scope.contains(&"thread_local") && scope.contains(&"lazy"))
}

fn bare(name: &str) -> &str {
    name.split('<').next().unwrap_or(name)
}

/// Where initialisers stand in variables: for each of these symbols the ranges that hold a value or the function that
/// computes it. That are parts of a type that contains a once-state and is generic over a value and over a function without
/// arguments that returns such a value.
///
/// # Errors
/// The image cannot be read or its debug information is damaged.
pub fn initialised_once(
    image: &Path,
    symbols: &BTreeSet<&str>,
) -> Result<BTreeMap<String, Vec<Range<u64>>>, GuardError> {
    let mut found = BTreeMap::new();
    if symbols.is_empty() {
        return Ok(found);
    }
    let file = ImageFile::read(image)?;
    let loaded = Loaded::new(&file)?;
    let image = Image::open(&loaded)?;
    let damaged = |source| image.damaged(source);
    let wanted = Wanted { symbols: symbols.iter().map(|s| (*s).to_owned()).collect(), ..Wanted::default() };
    let types = Types::new(&image.debug);
    for (symbol, id) in scan(&image.debug, &wanted).map_err(damaged)?.variables {
        let mut ranges = Vec::new();
        if let Some(id) = image.debug.type_of(id).map_err(damaged)? {
            lazies(&types, id, 0, DEEPEST, &mut ranges).map_err(damaged)?;
        }
        if !ranges.is_empty() {
            found.insert(symbol, ranges);
        }
    }
    Ok(found)
}

/// Ranges of the outermost such parts of a type that begins at `start`.
fn lazies(
    types: &Types<'_, '_>,
    id: DieId,
    start: u64,
    depth: usize,
    ranges: &mut Vec<Range<u64>>,
) -> gimli::Result<()> {
    if depth == 0 || !holds_once_state(types, id)? {
        return Ok(());
    }
    match types.size(id)? {
        Some(size) if computes(types, id)? => ranges.push(start..start + size),
        _ => {
            for (part, offset) in types.parts(id)? {
                lazies(types, part, start + offset, depth - 1, ranges)?;
            }
        }
    }
    Ok(())
}

fn holds_once_state(types: &Types<'_, '_>, id: DieId) -> gimli::Result<bool> {
    let mut seen = HashSet::new();
    let mut work = vec![id];
    while let Some(id) = work.pop().filter(|_| seen.len() < MOST) {
        if !seen.insert(id) {
            continue;
        }
        if names_once_state(&segments(&types.name(Some(id))?)) {
            return Ok(true);
        }
        work.extend(types.parts(id)?.into_iter().map(|(part, _)| part));
    }
    Ok(false)
}

/// Whether a type is generic over a function without arguments and over what that returns.
fn computes(types: &Types<'_, '_>, id: DieId) -> gimli::Result<bool> {
    let (mut results, mut values) = (Vec::new(), Vec::new());
    for (parameter, tag) in types.debug.children(id)? {
        if tag != c::DW_TAG_template_type_parameter {
            continue;
        }
        let over = types.debug.type_of(parameter)?;
        values.push(types.name(over)?);
        if let Some(function) = over.map(|over| types.pointed_function(over)).transpose()?.flatten()
            && types.parameters(function)?.is_empty()
        {
            results.push(types.name(types.debug.type_of(function)?)?);
        }
    }
    Ok(results.iter().any(|result| values.contains(result)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_of_once_states_are_recognised_in_both_manglings() {
        for path in [
            "std::sync::once::Once::call_once_force::{{closure}}",
            "<std::sync::poison::once::Once>::call_once::<app::main::{closure#0}>",
            "core::cell::once::OnceCell<T>::try_init",
            "<core::cell::lazy::LazyCell<u64>>::really_init",
            "once_cell::imp::OnceCell<T>::initialize::{{closure}}",
            "std::sys::thread_local::native::lazy::Storage<T,D>::get_or_init_slow",
            "tokio::sync::once_cell::OnceCell<T>::get_or_init::{{closure}}",
        ] {
            assert!(is_method_of_once_state(path), "{path}");
        }
        for path in [
            "<core::cell::once::OnceCell<T> as core::fmt::Debug>::fmt",
            "core::ptr::drop_in_place<core::cell::once::OnceCell<app::Order>>",
            "app::answer::<std::sync::once::Once>",
            "std::thread::local::LocalKey<T>::with",
            "std::sys::thread_local::native::eager::Storage<T>::initialize",
            "app::Storage::lazy",
            "std::sync::once::Once",
        ] {
            assert!(!is_method_of_once_state(path), "{path}");
        }
    }

    #[test]
    fn types_of_the_program_itself_may_be_called_anything() {
        let symbol = "_ZN3app4Once3run17h0123456789abcdefE";
        assert!(is_of_once_state(symbol, &HashSet::new()));
        assert!(!is_of_once_state(symbol, &["app".to_owned()].into()));
    }
}
