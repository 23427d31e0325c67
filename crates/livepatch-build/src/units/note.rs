//! The notes beside the compiler's outputs.

use super::{Pins, Unit};
use crate::error::{IoContext, Result};
use livepatch_patch::Digest;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Options of `-C` that say where things are, or that alter no function.
const NOT_CODE: &[&str] = &[
    "metadata",
    "extra-filename",
    "incremental",
    "linker",
    "link-arg",
    "link-args",
    "rpath",
    "strip",
    "debuginfo",
    "split-debuginfo",
    "save-temps",
    "linker-flavor",
];

/// The arguments of a compilation, taken apart.
struct Arguments {
    crate_name: String,
    metadata: String,
    suffix: String,
    out_dir: PathBuf,
    features: BTreeSet<String>,
    settings: BTreeSet<String>,
    local: bool,
}

impl Arguments {
    fn parse(args: &[OsString]) -> Option<Self> {
        let (mut crate_name, mut metadata, mut suffix, mut out_dir) = (None, None, String::new(), None);
        let (mut features, mut settings, mut local) = (BTreeSet::new(), BTreeSet::new(), true);
        let mut args = args.iter().map(|arg| arg.to_str());
        while let Some(arg) = args.next() {
            let Some(arg) = arg else { continue };
            let (name, inline) = match arg.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                _ if arg.len() > 2 && (arg.starts_with("-C") || arg.starts_with("-Z")) => {
                    (&arg[..2], Some(arg[2..].to_owned()))
                }
                _ => (arg, None),
            };
            // cargo caps lints for what is not the user's.
            local &= name != "--cap-lints";
            let known =
                ["--crate-name", "--out-dir", "--cfg", "--crate-type", "--edition", "--target", "-C", "-Z"];
            if name == "--codegen" || known.contains(&name) {
                let value = inline.or_else(|| args.next().flatten().map(str::to_owned))?;
                let option = value.split('=').next().unwrap_or_default().to_owned();
                let rest = value.split_once('=').map(|(_, rest)| rest.to_owned());
                match (name, &*option) {
                    ("--crate-name", _) => crate_name = Some(value),
                    ("--out-dir", _) => out_dir = Some(PathBuf::from(value)),
                    ("--cfg", "feature") => drop(features.insert(rest?.trim_matches('"').to_owned())),
                    ("-C" | "--codegen", "metadata") => metadata = rest,
                    ("-C" | "--codegen", "extra-filename") => suffix = rest?,
                    ("-C" | "--codegen", _) if NOT_CODE.contains(&&*option) => {}
                    ("-C" | "--codegen", _) => drop(settings.insert(format!("-C {value}"))),
                    _ => drop(settings.insert(format!("{name} {value}"))),
                }
            } else if matches!(name, "--test" | "-O") {
                settings.insert(name.to_owned());
            }
        }
        Some(Self {
            crate_name: crate_name?,
            metadata: metadata?,
            suffix,
            out_dir: out_dir?,
            features,
            settings,
            local,
        })
    }
}

/// Writes the note of a compilation with these arguments, which got the number `metadata` in place of what they say;
/// `raw` as in [`Unit::raw`].
pub(crate) fn write(args: &[OsString], metadata: Option<&str>, raw: Option<Digest>) -> Result<()> {
    let variable = |name: &str| std::env::var(name).ok();
    let (Some(parsed), Some(package)) = (Arguments::parse(args), variable("CARGO_PKG_NAME")) else {
        return Ok(());
    };
    let path = parsed.out_dir.join(format!("{}{}.livepatch", parsed.crate_name, parsed.suffix));
    let unit = Unit {
        package,
        version: variable("CARGO_PKG_VERSION").unwrap_or_default(),
        crate_name: parsed.crate_name,
        metadata: metadata.unwrap_or(&parsed.metadata).to_owned(),
        asked: parsed.metadata,
        features: parsed.features,
        settings: parsed.settings,
        manifest_dir: variable("CARGO_MANIFEST_DIR").unwrap_or_default(),
        out_dir: variable("OUT_DIR"),
        local: parsed.local,
        raw,
    };
    fs::write(&path, serde_json::to_vec(&unit).unwrap_or_default()).at("write", &path)
}

/// The notes of the units with these outputs and where they are, as far as there are any: units that were compiled
/// without the wrapper have none.
pub(crate) fn read<'p>(outputs: impl Iterator<Item = &'p Path>) -> Vec<(PathBuf, Unit)> {
    let notes: BTreeSet<PathBuf> = outputs.filter_map(note_of).collect();
    let units = notes.into_iter().filter_map(|note| {
        let unit = serde_json::from_slice(&fs::read(&note).ok()?).ok()?;
        Some((note, unit))
    });
    units.collect()
}

/// Where the note of an output lies.
pub(crate) fn note_of(output: &Path) -> Option<PathBuf> {
    let name = output.file_name()?.to_str()?;
    let library = [".rlib", ".rmeta", ".so"].iter().find_map(|end| name.strip_suffix(end));
    let stem = library.map_or(name, |stem| stem.strip_prefix("lib").unwrap_or(stem));
    Some(output.with_file_name(format!("{stem}.livepatch")))
}

/// Removes what was compiled in `target` with other numbers than `pins` wants, so that cargo compiles it again.
pub(crate) fn discard_unpinned(target: &Path, pins: &Pins) -> Result<()> {
    let mut folders = vec![target.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.at("list", &folder)?.path());
        }
        let notes = paths.iter().filter(|path| path.extension().is_some_and(|e| e == "livepatch"));
        for note in notes {
            let unit = fs::read(note).ok().and_then(|bytes| serde_json::from_slice::<Unit>(&bytes).ok());
            let right = unit.is_some_and(|unit| pins.wanted(&unit.asked) == unit.metadata);
            let stem = note.file_stem().unwrap_or_default();
            let is_output = |path: &&PathBuf| path.is_file() && note_of(path).as_deref() == Some(note);
            if right || stem.is_empty() {
                continue;
            }
            for path in paths.iter().filter(is_output).chain([note]) {
                fs::remove_file(path).at("remove", path)?;
            }
        }
        // Notes lie beside compilers' outputs: `PROFILE/deps`, `PROFILE/build/NAME`, with a triple before them or not.
        folders.extend(paths.into_iter().filter(|path| path.is_dir() && !path.ends_with("incremental")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn arguments_of_cargo() {
        let parsed = Arguments::parse(&args(
            "--crate-name app --edition=2024 src/main.rs --crate-type bin -C opt-level=3 -Copt-level=z --cfg \
             feature=\"fast\" --cfg tokio_unstable -C metadata=0a -C extra-filename=-1b --out-dir /t/deps -C linker=/x/cc \
             -L dependency=/t/deps --extern a=/t/liba.rlib --check-cfg cfg(x)",
        ))
        .unwrap();
        assert_eq!((&*parsed.crate_name, &*parsed.metadata, &*parsed.suffix), ("app", "0a", "-1b"));
        assert_eq!(parsed.features, BTreeSet::from(["fast".to_owned()]));
        let wanted = [
            "--cfg tokio_unstable",
            "--crate-type bin",
            "--edition 2024",
            "-C opt-level=3",
            "-C opt-level=z",
        ];
        assert_eq!(parsed.settings, wanted.map(str::to_owned).into());
        assert!(Arguments::parse(&args("-vV")).is_none());
    }

    #[test]
    fn notes_lie_beside_the_outputs() {
        for output in ["/t/libfoo-1b.rlib", "/t/libfoo-1b.rmeta", "/t/foo-1b"] {
            assert_eq!(note_of(Path::new(output)).unwrap(), Path::new("/t/foo-1b.livepatch"), "{output}");
        }
    }
}
