//! The conservative guard: a change is proven harmless to old frames and old data, or refused.
//!
//! It compares the debug information (DWARF as rustc writes it at `debug = 2`), symbols and vtables of two linked images
//! as far as the changed functions can reach:
//!
//! | step | file |
//! |---|---|
//! | open both images, each unit by its root entry only | `elf.rs`, `dwarf.rs` |
//! | find the changed functions by address; their signatures, what they handle, what they call | `function.rs`, `calls.rs` |
//! | read the new image with the old numbers of impl blocks | `impls.rs` |
//! | one pass over all units for variables by place, vtables and closures | `scan.rs`, `vtable.rs` |
//! | walk the types that can be reached; reduce each to comparable facts | `graph.rs`, `types.rs` |
//! | compare | `check/` |
//! | tell what a change of the program cannot alter | `fixed.rs` |
//! | allow changed closures that live in frames only | `escape.rs`, `references.rs` |
//! | recognise what computes values that are kept | `once.rs` |
//!
//! What it cannot see: the meaning of data. A field that keeps its name, type and place but is used otherwise passes. Nor
//! can it see that a closure was replaced by another one of the same number and captures.

mod calls;
mod check;
mod demangle;
mod dwarf;
mod elf;
mod escape;
mod fixed;
mod function;
mod graph;
mod impl_scope;
mod impls;
mod inline;
mod input;
mod names;
mod once;
mod references;
mod report;
mod scan;
mod shape;
mod side;
mod types;
mod vtable;

pub use demangle::{crate_of, demangle, is_rust, strip_suffix};
pub(crate) use fixed::{is_fixed_with, is_of_others, of_standard_library};
pub use impl_scope::impl_scope;
pub use inline::inlined_at;
pub use input::{
    ChangedFunction, GuardInput, NewFunction, NewStatic, SameClosure, SameCode, SharedStatic, StaticPlace,
    Unseen, Witness,
};
pub use names::{are_alike, as_declared};
pub use once::{initialised_once, is_of_once_state};
pub use report::{
    Callers, Convention, FunctionInfo, FunctionRef, GuardError, GuardReport, ResultIn, StaticInfo, Taken,
};

use crate::findings::{Finding, leading};
use elf::ImageFile;
use impls::Renumbered;
use livepatch_patch::Digest;
use side::{Image, Loaded, Query, Side, Variable, analyse};
use std::path::Path;

/// Judges a change.
///
/// # Errors
/// An image cannot be read, or its debug information is damaged. What cannot be proven is a finding, not an error.
pub fn check(input: &GuardInput<'_>, witness: Witness<'_>) -> Result<GuardReport, GuardError> {
    let (old_file, new_file) =
        rayon::join(|| ImageFile::read(input.old_image), || ImageFile::read(input.new_image));
    let (old_file, new_file) = (old_file?, new_file?);
    let (old_loaded, new_loaded) = rayon::join(|| Loaded::new(&old_file), || Loaded::new(&new_file));
    let (old_loaded, new_loaded) = (old_loaded?, new_loaded?);
    let (old, new) = rayon::join(|| Image::open(&old_loaded), || Image::open(&new_loaded));
    let (old, mut new) = (old?, new?);
    new.debug.renumbered =
        Renumbered::between(&old.debug, &new.debug, input.renamed).map_err(|source| new.damaged(source))?;
    let (old_query, new_query) = queries(input);
    let (old_side, new_side) = rayon::join(|| analyse(&old, &old_query), || analyse(&new, &new_query));
    let old_side = old_side.map_err(|source| old.damaged(source))?;
    let new_side = new_side.map_err(|source| new.damaged(source))?;
    let (old_all, new_all) = ((&old, &old_side), (&new, &new_side));
    let mistaken = check::mistaken(old_all, new_all, input, witness);
    let check::Mistaken { findings: mistaken, together } = mistaken.map_err(|source| old.damaged(source))?;
    let (layouts, mut new_types) =
        check::layouts(old_all, new_all, input).map_err(|source| old.damaged(source))?;
    new_types.extend(check::added(&old_side.vtables, &new_side.vtables, &new_side.graph));
    let known = layouts.into_iter().chain(mistaken).collect();
    Ok(GuardReport {
        findings: findings(input, witness.same_code, old_all, new_all, known)?,
        together,
        new_types,
        functions: function_infos(&new_query, &new_side),
        new_statics: static_infos(input, &new, &new_side).map_err(|source| new.damaged(source))?,
    })
}

fn queries<'q>(input: &GuardInput<'q>) -> (Query<'q>, Query<'q>) {
    let old = Query {
        functions: input.functions.iter().map(|f| (f.symbol.as_str(), f.old, f.old_size)).collect(),
        statics: input.statics.iter().map(|s| (s.old_symbol.as_str(), s.old)).collect(),
    };
    let changed = input.functions.iter().map(|f| (f.new_symbol.as_str(), f.new, f.new_size));
    let added = input.new_functions.iter().map(|f| (f.symbol.as_str(), f.new, f.new_size));
    let shared = input.statics.iter().map(|s| (s.new_symbol.as_str(), s.new));
    let added_statics = input.new_statics.iter().map(|s| (s.symbol.as_str(), s.new));
    let new =
        Query { functions: changed.chain(added).collect(), statics: shared.chain(added_statics).collect() };
    (old, new)
}

fn findings(
    input: &GuardInput<'_>,
    same_code: &SameCode<'_>,
    old: (&Image<'_>, &Side),
    new: (&Image<'_>, &Side),
    known: Vec<Finding>,
) -> Result<Vec<Finding>, GuardError> {
    let damaged = |source| old.0.damaged(source);
    let redirected = input.functions.iter().map(|f| (&f.symbol, &f.new_symbol));
    let renamed = input.renamed.iter().map(|(old, new)| (old, new));
    let renamed: vtable::Renamed<'_> =
        renamed.chain(redirected).map(|(old, new)| (strip_suffix(old), strip_suffix(new))).collect();
    let mut findings = check::functions(old, new, (input.functions, input.unchanged)).map_err(damaged)?;
    findings.extend(check::renumbered(old.1, new.1, input.functions.len()));
    findings.extend(known);
    findings.extend(check::statics(old.1, new.1, input.statics));
    let ways = check::Ways { renamed: &renamed, same_code, unchanged: input.unchanged };
    let brought = input.new_functions.iter().map(|f| strip_suffix(&f.symbol)).collect();
    findings.extend(check::vtables(&old.1.vtables, &new.1.vtables, &ways, &brought));
    findings.extend(check::order(&old.1.vtables, &new.1.vtables, &new.1.graph));
    findings.extend(check::shared_addresses(old.0, new, input.functions, &renamed));
    findings.sort_by(|a, b| (a.code, &a.item).cmp(&(b.code, &b.item)));
    Ok(leading(findings))
}

fn function_infos(query: &Query<'_>, side: &Side) -> Vec<FunctionInfo> {
    let known = query.functions.iter().zip(&side.functions);
    known
        .filter_map(|((symbol, ..), function)| {
            let function = function.as_ref()?;
            Some(function_info(symbol, function, false))
        })
        .collect()
}

fn function_info(symbol: &str, function: &function::Function, handles_functions: bool) -> FunctionInfo {
    FunctionInfo {
        symbol: symbol.to_owned(),
        path: function.path.clone(),
        receiver: function.receiver.clone(),
        result: function.result,
        takes: function.takes,
        convention: function.convention.clone(),
        signature: format!("{:?}", function.signature),
        interface: format!("{:?} {}", function.signature, function.convention.altered()),
        crate_key: function.crate_key.clone(),
        place: function.place.clone(),
        inlined: function.inlined.clone(),
        handles_functions,
    }
}

fn static_infos(input: &GuardInput<'_>, image: &Image<'_>, side: &Side) -> gimli::Result<Vec<StaticInfo>> {
    let types = types::Types::new(&image.debug);
    let mut infos = Vec::new();
    for (new, variable) in input.new_statics.iter().zip(&side.statics[input.statics.len()..]) {
        let Some(variable) = variable else { continue };
        infos.push(StaticInfo {
            symbol: new.symbol.clone(),
            path: variable.path.clone(),
            type_name: variable.type_name.clone(),
            type_digest: digest(&types, variable)?,
            place: variable.place.clone(),
        });
    }
    Ok(infos)
}

/// A digest over the names and facts of all types that a variable can reach.
fn digest(types: &types::Types<'_, '_>, variable: &Variable) -> gimli::Result<Digest> {
    let roots = variable.type_id.map(|id| graph::Root { id, user: "".into() });
    let graph = graph::reach(types, roots.into_iter().collect())?;
    let mut sorted: Vec<_> = graph.iter().map(|(name, named)| (name, &named.layouts)).collect();
    sorted.sort();
    Ok(Digest::of(format!("{} {sorted:?}", variable.type_name).as_bytes()))
}

/// What debug information says of the functions at these addresses: path, place, what is inlined into each. `None`
/// where there is none.
///
/// # Errors
/// The image cannot be read or its debug information is damaged.
pub fn trees(
    image: &Path,
    functions: &[(&str, livepatch_patch::LinkAddr)],
) -> Result<Vec<Option<FunctionInfo>>, GuardError> {
    let file = ImageFile::read(image)?;
    let loaded = Loaded::new(&file)?;
    let image = Image::open(&loaded)?;
    let types = types::Types::new(&image.debug);
    let tree = |(symbol, addr): &(&str, livepatch_patch::LinkAddr)| {
        let found = function::find(&types, addr.0, symbol).and_then(|function| {
            let Some(function) = function else { return Ok(None) };
            let names = function.types.iter().map(|id| types.name(Some(*id)));
            let handles_functions =
                names.collect::<gimli::Result<Vec<_>>>()?.iter().any(|name| name.contains("fn("));
            Ok(Some(function_info(symbol, &function, handles_functions)))
        });
        found.map_err(|source| image.damaged(source))
    };
    functions.iter().map(tree).collect()
}
