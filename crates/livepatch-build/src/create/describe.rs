//! What the patch says about itself, and what the guard has to know about it.

use super::{CreateError, CreateOptions, FunctionReport, Ignored, brought, libraries, origin};
use crate::build::Build;
use crate::diff::callers;
use crate::diff::program::{At, Program};
use crate::diff::{Diff, Meaning, lost};
use crate::emit::{Emitted, Replaced, name_of};
use crate::findings::{Finding, Place, rules};
use crate::guard::{
    self, ChangedFunction, FunctionInfo, FunctionRef, GuardReport, NewFunction, NewStatic, SharedStatic,
    StaticPlace,
};
use crate::source::{Side, SourceDiff};
use livepatch_patch::{
    Arch, Digest, LinkAddr, Meta, NewItemKind, Orphan, Reason, Redirect, SymbolId, Target,
};
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes that a direct jump takes.
const JUMP: u64 = 5;

pub(super) fn ignored(diff: &Diff<'_>) -> Vec<Ignored> {
    let listed = |list: &[At], kind| {
        let code = list.iter().filter(|at| diff.new.section(**at).kind == crate::objects::Kind::Text);
        code.map(|at| Ignored { path: path_of(&diff.new, *at), kind }).collect::<Vec<_>>()
    };
    let mut all = listed(&diff.line_only, "line-only");
    all.extend(listed(&diff.repartitioned, "re-partitioned"));
    all
}

fn path_of(program: &Program<'_>, at: At) -> String {
    guard::demangle(name_of(program, at))
}

/// Address and size in its image of what a section holds.
fn extent(program: &Program<'_>, at: At) -> Option<(LinkAddr, u64)> {
    let unit = program.unit(at);
    let section = unit.section(at.section);
    let declared = section.symbols.iter().map(|ix| unit.symbol(*ix).size).max().unwrap_or(0);
    Some((program.addr(at)?, if declared == 0 { section.size } else { declared }))
}

pub(super) fn changed_function(diff: &Diff<'_>, replaced: &Replaced) -> Option<ChangedFunction> {
    let ((old, old_size), (new, new_size)) =
        (extent(&diff.old, replaced.old)?, extent(&diff.new, replaced.new)?);
    Some(ChangedFunction {
        symbol: name_of(&diff.old, replaced.old).to_owned(),
        new_symbol: name_of(&diff.new, replaced.new).to_owned(),
        old,
        old_size,
        new,
        new_size,
        callers: Default::default(),
    })
}

/// The functions to be redirected, with what is known of their callers.
pub(super) fn changed_functions(diff: &Diff<'_>, replaced: &[Replaced]) -> Vec<ChangedFunction> {
    let known = callers::of_pairs(diff, &replaced.iter().map(|r| (r.old, r.new)).collect::<Vec<_>>());
    let function = |r: &Replaced| {
        Some(ChangedFunction { callers: known[&(r.old, r.new)], ..changed_function(diff, r)? })
    };
    replaced.iter().filter_map(function).collect()
}

fn static_place(program: &Program<'_>, at: At) -> Option<StaticPlace> {
    let addr = program.addr(at)?;
    match (program.section(at).kind.is_tls(), program.image.tls) {
        (true, Some(tls)) => Some(StaticPlace::Tls(addr.0 - tls.addr.0)),
        _ => Some(StaticPlace::Data(addr)),
    }
}

/// Variables that patched code shares with running code.
pub(super) fn shared_statics(diff: &Diff<'_>, emitted: &Emitted) -> Vec<SharedStatic> {
    let of_changed = emitted.shared.iter().filter_map(|(old, new)| {
        Some(SharedStatic {
            old_symbol: name_of(&diff.old, *old).to_owned(),
            new_symbol: name_of(&diff.new, *new).to_owned(),
            old: static_place(&diff.old, *old)?,
            old_size: extent(&diff.old, *old)?.1,
            new: static_place(&diff.new, *new)?,
            new_size: extent(&diff.new, *new)?.1,
        })
    });
    let external = emitted.shared_external.iter().filter_map(|name| {
        let ([old], [new]) = (diff.old.image.symbols(name), diff.new.image.symbols(name)) else {
            return None;
        };
        let place = |s: &crate::image::ImageSymbol| {
            if s.tls { StaticPlace::Tls(s.value) } else { StaticPlace::Data(LinkAddr(s.value)) }
        };
        Some(SharedStatic {
            old_symbol: name.clone(),
            new_symbol: name.clone(),
            old: place(old),
            old_size: old.size,
            new: place(new),
            new_size: new.size,
        })
    });
    of_changed.chain(external).filter(|s| !s.old_symbol.starts_with("DW.ref.")).collect()
}

/// New functions and new variables.
pub(super) fn brought(diff: &Diff<'_>, emitted: &Emitted) -> (Vec<NewFunction>, Vec<NewStatic>) {
    let mut functions = Vec::new();
    let mut statics = Vec::new();
    for item in &emitted.brought {
        let symbol = name_of(&diff.new, item.at).to_owned();
        let Some((new, size)) = extent(&diff.new, item.at) else { continue };
        match (item.kind, static_place(&diff.new, item.at)) {
            (NewItemKind::Function, _) => functions.push(NewFunction { symbol, new, new_size: size }),
            (_, Some(new)) => statics.push(NewStatic { symbol, new, size }),
            (_, None) => {}
        }
    }
    (functions, statics)
}

/// The two builds, and what changed in their sources.
pub(super) struct Builds<'b> {
    pub old: &'b Build,
    pub new: &'b Build,
    pub source: &'b SourceDiff,
    /// Crates of others that are the same in both.
    pub unchanged: &'b BTreeSet<String>,
}

/// Where orphans are.
pub(super) fn orphan_addrs(diff: &Diff<'_>, orphans: &[lost::Orphan]) -> BTreeSet<LinkAddr> {
    orphans.iter().filter_map(|orphan| diff.old.addr(orphan.at)).collect()
}

/// The header of the patch; functions without room for a jump become findings.
pub(super) fn meta(
    builds: &Builds<'_>,
    options: &CreateOptions,
    diff: &Diff<'_>,
    emitted: &Emitted,
    orphans: &[lost::Orphan],
    judged: &GuardReport,
    findings: &mut Vec<Finding>,
) -> Result<Meta, CreateError> {
    let mut functions: Vec<_> =
        emitted.replaced.iter().filter_map(|r| Some((r, changed_function(diff, r)?))).collect();
    functions.sort_by_key(|(_, function)| function.old);
    let replaced: Vec<_> = functions.iter().map(|(replaced, _)| *replaced).collect();
    let origins = origin::origins(builds, (diff, emitted), &replaced, judged);
    let reasons = reasons(builds, diff, &functions, judged)?;
    let mut redirects = Vec::new();
    for (((replaced, function), reason), origin) in functions.iter().zip(reasons).zip(origins) {
        let path = path_of(&diff.new, replaced.new);
        let room = diff.old.room(function.old).unwrap_or(function.old_size);
        if room < JUMP {
            tracing::debug!(at = %function.old, size = function.old_size, room, symbol = function.symbol, "no room");
            findings.push(Finding::new(&rules::no_room::RULE, path));
            continue;
        }
        let bytes = diff.old.image.bytes(function.old, function.old_size).unwrap_or(&[]);
        let info = judged.functions.iter().find(|info| info.symbol == function.new_symbol);
        redirects.push(Redirect {
            symbol: replaced.symbol,
            old: function.old,
            old_size: function.old_size,
            room,
            old_digest: Digest::of(bytes),
            reason,
            place: info.and_then(|info| info.place.as_ref()).map(ToString::to_string),
            path,
            origin: Some(origin),
            initialises: false,
        });
    }
    let number = |at: &At| replaced.iter().position(|replaced| replaced.old == *at).map(|at| at as u32);
    let orphans = orphans.iter().filter_map(|orphan| {
        let (old, old_size) = extent(&diff.old, orphan.at)?;
        let from = orphan.from.iter().filter_map(number).collect();
        Some(Orphan { path: path_of(&diff.old, orphan.at), old, old_size, from })
    });
    let manifest = &builds.old.manifest;
    let known = brought::Known::new(builds, judged, diff.meaning.any());
    let new_items = brought::new_items(diff, emitted, judged, &known);
    let stands = brought::stands(diff, emitted, judged);
    Ok(Meta {
        orphans: orphans.collect(),
        name: options.name.clone().unwrap_or_else(|| manifest.artifact.name.clone()),
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        rustc: manifest.invocation.rustc.lines().next().unwrap_or_default().to_owned(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        target: target(builds.old, diff)?,
        redirects,
        constants: origin::constants(diff, emitted),
        libraries: libraries::needed(diff, emitted),
        indivisible: origin::indivisible(builds),
        notes: Vec::new(),
        types: known.types(&judged.new_types),
        inlined: brought::inlined(diff, emitted, judged),
        altered: brought::altered(diff, emitted, builds.unchanged),
        same: brought::same(diff, emitted, (&new_items, &stands), builds.unchanged),
        new_items,
        stands,
        vanished: brought::vanished(diff, emitted),
        once: Vec::new(),
    })
}

/// Why each function is in the patch: raw code knows best, then the source. Where there is no raw code and the source does not tell, the
/// function of the program that the first changed instruction came from is named.
fn reasons(
    builds: &Builds<'_>,
    diff: &Diff<'_>,
    functions: &[(&Replaced, ChangedFunction)],
    judged: &GuardReport,
) -> Result<Vec<Reason>, CreateError> {
    let meaning = diff.meaning.all();
    let known: Vec<Option<Reason>> = functions
        .iter()
        .map(|(replaced, function)| {
            let info = judged.functions.iter().find(|info| info.symbol == function.new_symbol);
            let told = by_meaning(builds.source, meaning, function, info);
            let told = told.or_else(|| by_source(builds.source, info?));
            let compiled_for = diff.compiled_for.get(&replaced.old);
            let told = told.or_else(|| Some(Reason::Calls(compiled_for?.clone())));
            told.or(meaning.map(|_| Reason::Reached))
        })
        .collect();
    let first = |(replaced, function): &(&Replaced, ChangedFunction)| {
        LinkAddr(function.new.0 + replaced.first.min(function.new_size.saturating_sub(1)))
    };
    let unknown = || functions.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(f, _)| f);
    let places: Vec<_> = unknown().map(first).collect();
    let stacks = if places.is_empty() { Vec::new() } else { guard::inlined_at(&builds.new.image, &places)? };
    let found: Vec<Reason> =
        unknown().zip(stacks).map(|((_, function), stack)| by_first_instruction(function, stack)).collect();
    let mut found = found.into_iter();
    Ok(known.into_iter().map(|known| known.or_else(|| found.next()).unwrap_or(Reason::Changed)).collect())
}

fn by_meaning(
    source: &SourceDiff,
    meaning: Option<&Meaning>,
    function: &ChangedFunction,
    info: Option<&FunctionInfo>,
) -> Option<Reason> {
    let meaning = meaning?;
    if meaning.is_changed(&function.new_symbol) {
        // The compiler inlines small functions before it makes raw code.
        let told = info.and_then(|info| by_places(info, |place| source.is_in_changed_text(place, Side::New)));
        return Some(told.unwrap_or(Reason::Changed));
    }
    let changed =
        |inlined: &&FunctionRef| inlined.symbol.as_deref().is_some_and(|symbol| meaning.is_changed(symbol));
    info?.inlined.iter().find(changed).map(|inlined| Reason::Inlines(inlined.path.clone()))
}

fn by_source(source: &SourceDiff, info: &FunctionInfo) -> Option<Reason> {
    let (items, tainted) = source.items()?;
    by_places(info, |place| tainted.is_in_changed_item(items, &place.file, place.line, Side::New))
}

/// By where the function, and what is inlined into it, is declared.
fn by_places(info: &FunctionInfo, changed: impl Fn(&Place) -> bool) -> Option<Reason> {
    if info.place.as_ref().is_some_and(&changed) {
        return Some(Reason::Changed);
    }
    let inlined = info.inlined.iter().find(|inlined| inlined.place.as_ref().is_some_and(&changed));
    inlined.map(|inlined| Reason::Inlines(inlined.path.clone()))
}

/// Inside of the standard library's small helpers is what they were called with.
fn by_first_instruction(function: &ChangedFunction, stack: Vec<FunctionRef>) -> Reason {
    let own = guard::demangle(&function.new_symbol);
    let outside = stack.into_iter().map(|f| f.path).find(|path| !guard::of_standard_library(path));
    outside.filter(|path| *path != own).map_or(Reason::Changed, Reason::Inlines)
}

fn target(old: &Build, diff: &Diff<'_>) -> Result<Target, CreateError> {
    let image = diff.old.image;
    Ok(Target {
        build_id: image.build_id.clone().ok_or(CreateError::NoBuildId)?,
        arch: Arch::X86_64,
        file_name: old.manifest.artifact.name.clone(),
        kind: image.kind,
        tls: image.tls,
    })
}

pub(super) fn functions(meta: &Meta, emitted: &Emitted) -> Vec<FunctionReport> {
    let name = |id: SymbolId| emitted.symbols[id.0 as usize].name.clone();
    let replaced = meta.redirects.iter().map(|redirect| FunctionReport {
        path: redirect.path.clone(),
        symbol: name(redirect.symbol),
        reason: redirect.reason.to_string(),
        place: redirect.place.clone(),
    });
    let new =
        meta.new_items.iter().filter(|item| item.kind == NewItemKind::Function).map(|item| FunctionReport {
            path: item.path.clone(),
            symbol: name(item.symbol),
            reason: Reason::New.to_string(),
            place: None,
        });
    replaced.chain(new).collect()
}
