//! Phase 2 from end to end: two builds in, a patch file or a refusal out.
//!
//! Order: compare ([`crate::diff`]), set aside what the change in the source does not reach
//! ([`crate::diff::repartition`]), select and bind ([`crate::emit`]), judge ([`crate::guard`]), describe
//! (`create/describe.rs`), then link for a trial, so that nothing is first found out in production.

mod anonymous;
mod brought;
mod describe;
mod held;
mod libraries;
mod lost;
mod notes;
mod origin;
mod trial;

use crate::baseline::InputKind;
use crate::build::Build;
use crate::diff::same_code::SameCode;
use crate::diff::{self, Diff, DiffError, Meaning, complete, repartition};
use crate::emit::{self, EmitError, Emitted};
use crate::findings::{Finding, Place, Severity, in_order, leading, rules};
use crate::guard::{self, GuardError, GuardReport};
use crate::image::{Image, ImageError};
use crate::objects::Inputs;
use crate::source::{Change, SourceDiff};
use crate::timing::timed;
use crate::units;
use livepatch_patch::{ContainerError, Patch};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What the caller decides.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Name of the patch; by default the artifact's.
    pub name: Option<String>,
}

/// A function in the patch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionReport {
    /// Demangled path.
    pub path: String,
    /// Mangled name.
    pub symbol: String,
    /// Why it is in: `changed`, `inlines PATH` or `new`.
    pub reason: String,
    /// `file:line` of its definition, if known.
    pub place: Option<String>,
}

/// A difference that needs no patch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ignored {
    /// Demangled path.
    pub path: String,
    /// `line-only`: differs only in line numbers. `re-partitioned`: the compiler divided the crate in another way.
    pub kind: &'static str,
}

/// What `create` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CreateReport {
    /// Functions that go in.
    pub functions: Vec<FunctionReport>,
    /// Differences left out.
    pub ignored: Vec<Ignored>,
    /// Everything that speaks against the patch, or is worth knowing.
    pub findings: Vec<Finding>,
    /// Size of the patch file, 0 if there is none.
    pub patch_bytes: usize,
    /// Identity of the patch file.
    pub id: Option<String>,
    /// All that the patch changes only computes values that are kept once they are there: it has no effect where they are.
    pub only_initialises: bool,
}

/// The answer.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The builds do the same.
    Nothing(CreateReport),
    /// The change cannot be proven safe.
    Refused(CreateReport),
    /// A patch file.
    Patch(CreateReport, Vec<u8>),
}

impl Outcome {
    /// The report, whatever the answer.
    pub fn report(&self) -> &CreateReport {
        match self {
            Self::Nothing(report) | Self::Refused(report) | Self::Patch(report, _) => report,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// See there.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// See there.
    #[error(transparent)]
    Source(#[from] crate::error::Error),
    /// See there.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// See there.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The patch is not what it should be: an error of livepatch.
    #[error("the patch that was made cannot be written")]
    Container(#[from] ContainerError),
    /// The patch does not link: an error of livepatch.
    #[error("the patch that was made does not link")]
    Link(#[from] livepatch_patch::LinkError),
    /// The baseline's image cannot be identified.
    #[error("the baseline's image has no build-id")]
    NoBuildId,
}

/// Makes a patch that turns `old` into `new`.
///
/// # Errors
/// Inputs that cannot be read, or an error of livepatch itself. What speaks against the change is no error but an
/// [`Outcome::Refused`].
pub fn create(old: &Build, new: &Build, options: &CreateOptions) -> Result<Outcome, CreateError> {
    let (was, is) = (&old.manifest, &new.manifest);
    if let Some(finding) = units::compare(&was.artifact.name, &was.units, &is.units) {
        let report = CreateReport { findings: vec![finding], ..CreateReport::default() };
        return Ok(Outcome::Refused(report));
    }
    let (old_image, new_image) =
        timed("images", || rayon::join(|| Image::open(&old.image), || Image::open(&new.image)));
    let (old_image, new_image) = (old_image?, new_image?);
    let (old_inputs, new_inputs) = (Inputs::new(&old.inputs), Inputs::new(&new.inputs));
    let compare = || -> Result<Diff<'_>, DiffError> {
        let (was, is) = ((old, &old_image, &old_inputs), (new, &new_image, &new_inputs));
        let mut diff = timed("compare", || diff::diff(was, is))?;
        diff.meaning = timed("raw code", || Meaning::between((old, &old_image), (new, &new_image)))?;
        Ok(diff)
    };
    let (source, diff) = rayon::join(|| SourceDiff::of_builds(old, new), compare);
    let (source, mut diff) = (source?, diff?);
    tracing::debug!(change = ?source.change(), differing = diff.changed.len(), "sources compared");
    if *source.change() == Change::Nothing && same_inputs(old, new) {
        diff.line_only.extend(diff.changed.drain(..).map(|change| change.new));
        diff.unsettled.clear();
        diff.initialisers.clear();
    }
    timed("set aside", || repartition::set_aside(&mut diff, (old, new), &source))?;
    let (mut variables, functions) = diff.doubtful(&source, (old, new))?;
    diff.renew_call_sites(&mut variables, &source);
    let mut report = CreateReport { ignored: describe::ignored(&diff), ..CreateReport::default() };
    report.findings = structural(&diff);
    report.findings.extend(bodies(&source));
    report.findings.extend(owned_otherwise(&diff, new)?);
    let leftovers = diff.leftovers();
    let unchanged = complete::unchanged(old, new);
    report.findings.extend(lost::functions(&diff, &leftovers, old, &unchanged)?);
    report.findings.extend(lost::doubtful(&diff, &variables, &functions));
    if diff.changed.is_empty() {
        return Ok(without_code(report, &diff));
    }
    let emitted = match timed("emit", || emit::emit(&mut diff)) {
        Ok(emitted) => emitted,
        Err(EmitError::Diff(error)) => return Err(error.into()),
        Err(EmitError::MixedThreadLocals { function }) => {
            report.findings.push(Finding::new(&rules::mixed_thread_locals::RULE, function));
            return Ok(Outcome::Refused(report));
        }
        Err(EmitError::Unsupported { function, what }) => {
            report.findings.push(Finding::new(&rules::unsupported::RULE, function).change(what, None, None));
            return Ok(Outcome::Refused(report));
        }
    };
    let orphans = diff.orphans(&leftovers);
    let mut judged = timed("guard", || judge((old, new, &source), &unchanged, &diff, &emitted, &orphans))?;
    report.findings.extend(anonymous::refuse(&diff, &emitted, &mut judged));
    let build = describe::Builds { old, new, source: &source, unchanged: &unchanged };
    let findings = &mut report.findings;
    let mut meta =
        timed("describe", || describe::meta(&build, options, &diff, &emitted, &orphans, &judged, findings))?;
    report.findings.extend(judged.findings.iter().cloned());
    report.findings.extend(lost::variables(&diff, &emitted));
    report.findings.extend(lost::removed(&diff, &leftovers, old)?);
    report.findings.extend(lost::optimised(&diff, &emitted, &judged));
    report.findings.extend(libraries::findings(&meta.libraries));
    notes::add(&build, (&diff, &emitted), &judged, &mut meta, &mut report)?;
    let own: BTreeSet<&str> = old.raw.iter().map(|(stem, _)| crate_of(stem)).collect();
    report.findings = in_order(leading(report.findings), &own);
    report.functions = describe::functions(&meta, &emitted);
    if report.findings.iter().any(|finding| finding.severity == Severity::Refusal) {
        return Ok(Outcome::Refused(report));
    }
    let patch = Patch { meta, sections: emitted.sections, symbols: emitted.symbols };
    let bytes = patch.to_bytes()?;
    trial::link(&Patch::from_bytes(&bytes)?, old_image.fixed)?;
    report.patch_bytes = bytes.len();
    report.id = Some(Patch::id_of(&bytes)?.to_string());
    Ok(Outcome::Patch(report, bytes))
}

/// The crate's name, of the name that its outputs have.
fn crate_of(stem: &str) -> &str {
    stem.split_once('-').map_or(stem, |(name, _)| name)
}

/// Whether both links have inputs of the same names: no crate in another version or with other features.
fn same_inputs(old: &Build, new: &Build) -> bool {
    let names = |build: &Build| {
        let names = build.inputs.iter().filter(|input| input.kind == InputKind::Archive);
        names
            .map(|input| input.path.rsplit('/').next().unwrap_or_default().to_owned())
            .collect::<BTreeSet<_>>()
    };
    names(old) == names(new)
}

/// No code differs: nothing to do, unless something else does that a patch cannot bring.
fn without_code(mut report: CreateReport, diff: &Diff<'_>) -> Outcome {
    let export = notes::new_exports(diff).next();
    if report.findings.is_empty() && diff.initialisers.is_empty() && export.is_none() {
        return Outcome::Nothing(report);
    }
    if let Some((_, new)) = diff.initialisers.first() {
        let name = guard::demangle(emit::name_of(&diff.new, *new));
        report.findings.push(Finding::new(&rules::only_values::RULE, name));
        report.findings.extend(notes::kept_values(diff));
    } else if let Some(name) = export {
        report.findings.push(Finding::new(&rules::only_exports::RULE, name));
    }
    Outcome::Refused(report)
}

/// What only the source tells of functions: that they wait for the same in another order (of futures of one type debug information
/// does not tell which is which), and that they are called otherwise.
fn bodies(source: &SourceDiff) -> impl Iterator<Item = Finding> {
    source.bodies().unwrap_or_default().iter().flat_map(|body| {
        let place = Place { file: body.span.file.clone(), line: body.span.first_line };
        let finding = |rule| Finding::new(rule, &body.path).at(Some(place.clone()));
        let moved = body.moved_await.as_ref().map(|what| {
            let what =
                format!("`{what}` is awaited, or kept at an await, at another place in the order, or under another condition");
            finding(&rules::coroutine::RULE).change(what, None, None)
        });
        let called = body.was_calling.as_ref().filter(|was| **was != body.calling).map(|was| {
            let text = |text: &str| Some(if text.is_empty() { "Rust".to_owned() } else { text.to_owned() });
            finding(&rules::signature::RULE).change("calling convention", text(was), text(&body.calling))
        });
        moved.into_iter().chain(called)
    })
}

/// Bodies whose suspended instances own something else than before.
fn owned_otherwise(diff: &Diff<'_>, new: &Build) -> Result<Vec<Finding>, DiffError> {
    let bodies = diff.dropped_otherwise();
    if bodies.is_empty() {
        return Ok(Vec::new());
    }
    let path = |at| guard::demangle(emit::name_of(&diff.new, at));
    let code = diff.new.all().map(|(at, _)| at).filter(|at| bodies.contains(&path(*at)));
    let infos = diff::described::described(&diff.new, new, code)?;
    let places: BTreeMap<String, Option<Place>> =
        infos.into_iter().map(|(at, info)| (path(at), info.place)).collect();
    let what = "a suspended instance would be dropped otherwise: what it owns at an await, or which of the values that were moved on \
                some paths only, is not what it was";
    let finding = |body: String| {
        let place = places.get(&body).cloned().flatten();
        Finding::new(&rules::coroutine::RULE, body).at(place).change(what, None, None)
    };
    Ok(bodies.into_iter().map(finding).collect())
}

/// What the comparison alone rules out.
fn structural(diff: &Diff<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in &diff.special {
        let is_initialiser =
            [".init_array", ".fini_array", ".ctors", ".dtors", ".init", ".fini", ".preinit_array"]
                .iter()
                .any(|known| name.starts_with(known));
        let rule = if is_initialiser { &rules::initialiser::RULE } else { &rules::distributed_slice::RULE };
        findings.push(Finding::new(rule, name));
    }
    for (section, object) in &diff.monolithic {
        findings.push(Finding::new(&rules::shared_section::RULE, format!("{section} of {object}")));
    }
    for (replaced, other) in &diff.merged {
        let what = format!(
            "the running program has one body for it and for what `{other}` refers to, whose address may be kept"
        );
        findings.push(Finding::new(&rules::shared_address::RULE, replaced).change(what, None, None));
    }
    for set in &diff.unsettled {
        findings.push(Finding::new(&rules::copies::RULE, guard::demangle(&set.name)));
    }
    for change in &diff.changed {
        let others = diff.changed.iter().filter(|other| other.old == change.old && other.new != change.new);
        let twins = diff.twins.iter().filter(|(_, old)| **old == change.old).map(|(new, _)| *new);
        if let Some(other) = others.map(|other| other.new).chain(twins).find(|other| *other != change.new) {
            let name = guard::demangle(emit::name_of(&diff.new, change.new));
            let other = guard::demangle(emit::name_of(&diff.new, other));
            findings.push(Finding::new(&rules::shared_address::RULE, name).change(
                "shares its code with",
                Some(other),
                None,
            ));
        }
    }
    findings
}

fn judge(
    (old, new, source): (&Build, &Build, &SourceDiff),
    unchanged: &BTreeSet<String>,
    diff: &Diff<'_>,
    emitted: &Emitted,
    orphans: &[diff::lost::Orphan],
) -> Result<GuardReport, CreateError> {
    let functions = describe::changed_functions(diff, &emitted.replaced);
    let statics = describe::shared_statics(diff, emitted);
    let (new_functions, new_statics) = describe::brought(diff, emitted);
    let renamed: Vec<_> = diff.new.renamed().map(|(old, new)| (old.to_owned(), new.to_owned())).collect();
    let orphans = describe::orphan_addrs(diff, orphans);
    let same_code = SameCode::new(diff);
    let input = guard::GuardInput {
        renamed: &renamed,
        old_image: &old.image,
        new_image: &new.image,
        functions: &functions,
        orphans: &orphans,
        statics: &statics,
        new_functions: &new_functions,
        new_statics: &new_statics,
        unchanged,
        types: source.types(),
    };
    let unseen = complete::unseen(old, new);
    let witness = guard::Witness {
        same_code: &|old, new| same_code.is_same(old, new),
        same_closure: &|symbol| diff.meaning.any()?.is_same_closure(symbol),
        unseen: &|krate| unseen.contains(krate),
    };
    Ok(guard::check(&input, witness)?)
}
