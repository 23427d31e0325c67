//! `inspect`: what a patch file holds. Both tools have it.

use crate::exit::{Exit, Failure};
use crate::output::{Outcome, bytes, count};
use livepatch_patch::{ContainerError, Digest, NewItemKind, Note, Patch, Place, SectionKind};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// The patch file.
    file: PathBuf,
}

/// Reads the file and describes it.
///
/// # Errors
/// [`Exit::Error`] if the file cannot be read, [`Exit::Mismatch`] if it is no intact patch.
pub fn run(args: &InspectArgs) -> Result<Outcome, Failure> {
    let file = load(&args.file)?;
    Ok(Outcome { exit: Exit::Done, json: describe(&file), human: text(&file) })
}

/// Reads a patch file.
///
/// # Errors
/// [`Exit::Error`] if the file cannot be read, [`Exit::Mismatch`] if it is no intact patch.
pub fn load(path: &Path) -> Result<PatchFile, Failure> {
    let data = std::fs::read(path)
        .map_err(|error| Failure::new(Exit::Error, format!("cannot read {}: {error}", path.display())))?;
    let about = |error: ContainerError| Failure::from(error).about(path);
    let patch = Patch::from_bytes(&data).map_err(about)?;
    let id = Patch::id_of(&data).map_err(about)?;
    Ok(PatchFile { patch, id, data })
}

/// An intact patch file.
pub struct PatchFile {
    /// What it holds.
    pub patch: Patch,
    /// Its identity.
    pub id: Digest,
    /// The bytes of the file.
    pub data: Vec<u8>,
}

/// What is said of a patch that changes nothing else than how values are computed that are kept.
pub(crate) const ONLY_INITIALISES: &str = "attention: all that this patch changes computes values that are kept once they are there, or runs \
    only once; it has an effect only where such a value is not there yet, or the process has not come to that code yet";

/// Notes for people, in the shape of the compiler's own; reason and way out once for those that have them in common.
pub(crate) fn notes_text(notes: &[Note]) -> Vec<String> {
    let is_same = |a: &Note, b: &Note| (&a.code, &a.reason, &a.help) == (&b.code, &b.reason, &b.help);
    let mut lines = Vec::new();
    for alike in notes.chunk_by(is_same) {
        for note in alike {
            lines.push(format!("note[{}]: {}", note.code, note.title));
            lines.extend(note.place.as_ref().map(|place| format!("  --> {place}")));
        }
        lines.extend(
            alike.first().map(|note| format!("   = reason: {}\n   = help: {}", note.reason, note.help)),
        );
    }
    lines
}

fn describe(file: &PatchFile) -> Value {
    let patch = &file.patch;
    let meta = &patch.meta;
    let symbol =
        |id: livepatch_patch::SymbolId| patch.symbols.get(id.0 as usize).map(|symbol| symbol.name.as_str());
    let functions = meta.redirects.iter().map(|redirect| {
        json!({
            "path": redirect.path,
            "symbol": symbol(redirect.symbol),
            "reason": redirect.reason.to_string(),
            "place": redirect.place,
            "address": redirect.old.to_string(),
            "old_size": redirect.old_size,
            "item": redirect.origin.as_ref().map(|origin| origin.item.full()),
            "holds": held(redirect).collect::<Vec<_>>(),
        })
    });
    let items = meta
        .new_items
        .iter()
        .map(|item| json!({"path": item.path, "symbol": symbol(item.symbol), "kind": item.kind}));
    json!({
        "name": meta.name,
        "id": file.id,
        "build_id": meta.target.build_id,
        "arch": meta.target.arch,
        "file_name": meta.target.file_name,
        "image": meta.target.kind,
        "tool": meta.tool,
        "rustc": meta.rustc,
        "created": meta.created,
        "patch_bytes": file.data.len(),
        "functions": functions.collect::<Vec<_>>(),
        "orphans": meta.orphans.iter().map(|orphan| json!({
            "path": orphan.path, "address": orphan.old.to_string(), "old_size": orphan.old_size,
        })).collect::<Vec<_>>(),
        "new_items": items.collect::<Vec<_>>(),
        "indivisible": meta.indivisible,
        "sections": patch.sections.iter().map(|section| json!({
            "name": section.name, "kind": kind(section.kind), "size": section.size, "relocations": section.relocs.len(),
        })).collect::<Vec<_>>(),
        "libraries": meta.libraries,
        "notes": meta.told(),
        "only_initialises": meta.only_initialises(),
        "imports": imports(patch).collect::<Vec<_>>(),
    })
}

/// The changed items whose code a function holds, by the names with which they can be selected.
fn held(redirect: &livepatch_patch::Redirect) -> impl Iterator<Item = String> {
    redirect.origin.iter().flat_map(|origin| &origin.holds).map(|item| item.full())
}

fn imports(patch: &Patch) -> impl Iterator<Item = &str> {
    let import = |symbol: &&livepatch_patch::Symbol| matches!(symbol.place, Place::Import { .. });
    patch.symbols.iter().filter(import).map(|symbol| symbol.name.as_str())
}

fn kind(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::Text => "text",
        SectionKind::ReadOnly => "read-only",
        SectionKind::Data => "data",
        SectionKind::Bss => "bss",
        SectionKind::TlsData => "tls-data",
        SectionKind::TlsBss => "tls-bss",
        SectionKind::EhFrame => "eh-frame",
    }
}

fn text(file: &PatchFile) -> String {
    let meta = &file.patch.meta;
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<10} {value}");
    };
    line("patch", &meta.name);
    line("id", &file.id.short());
    line(
        "for",
        &format!("{} ({}, build-id {})", meta.target.file_name, meta.target.arch, meta.target.build_id),
    );
    line("made by", &format!("livepatch {}, {}", meta.tool, meta.rustc));
    line("size", &bytes(file.data.len() as u64));
    let _ = writeln!(text, "\nreplaces {}:", count(meta.redirects.len(), "function"));
    for redirect in &meta.redirects {
        let _ = write!(text, "  {} ({})", redirect.path, redirect.reason);
        let _ = match &redirect.place {
            Some(place) => writeln!(text, " at {place}"),
            None => writeln!(text),
        };
        let own = redirect.origin.as_ref().map(|origin| origin.item.full());
        for item in held(redirect).filter(|item| Some(item) != own.as_ref()) {
            let _ = writeln!(text, "    holds {item}");
        }
    }
    if !meta.new_items.is_empty() {
        let _ = writeln!(text, "\nbrings {}:", count(meta.new_items.len(), "new item"));
    }
    for item in &meta.new_items {
        let kind = match item.kind {
            NewItemKind::Function => "fn",
            NewItemKind::Static => "static",
            NewItemKind::ThreadLocal => "thread-local",
        };
        let _ = writeln!(text, "  {kind} {}", item.path);
    }
    if !meta.libraries.is_empty() {
        let _ = writeln!(text, "\nneeds {}", meta.libraries.join(", "));
    }
    if let Some(reason) = &meta.indivisible {
        let _ = writeln!(text, "\ncan only be applied as a whole: {reason}");
    }
    if !meta.notes.is_empty() {
        let _ = writeln!(text, "\n{}", notes_text(&meta.notes).join("\n"));
    }
    if meta.only_initialises() {
        let _ = writeln!(text, "\n{ONLY_INITIALISES}");
    }
    text.truncate(text.trim_end().len());
    text
}
