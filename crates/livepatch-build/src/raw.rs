//! Raw code: what the compiler makes of a crate before anything is optimised.
//!
//! Optimised code does not say why it differs: because of a change in the source, or because rustc divided the crate into
//! code units in another way, and LLVM inlined other callees. Raw code does. Each function in it is what rustc made of that
//! function alone, with every call and every address of another function or variable still there as a relocation, and with
//! generic arguments filled in. So equal raw code is equal meaning, whatever the optimiser made of it, and the references of
//! raw code are all ways on which a change can get into a function. `diff/meaning.rs` makes use of that.
//!
//! The compiler wrapper runs the compiler a second time for crates of the workspace and other local folders, beside the real
//! run, with the same arguments but `-C no-prepopulate-passes`, one code unit and no debug information, and leaves the object
//! beside the outputs (`deps/NAME-HASH.livepatch-raw`). Symbols are the same, because they depend on none of these. A failed
//! second run leaves nothing, and costs precision only.

use crate::baseline::{LinkRecord, SourceRecord};
use crate::error::{IoContext, Result};
use crate::store::BlobStore;
use crate::units::{Unit, note_of};
use livepatch_patch::Digest;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Compression of kept objects.
const LEVEL: i32 = 1;

/// Options of `-C` that the raw run sets itself or that make no sense there.
const NOT_RAW: &[&str] = &[
    "codegen-units",
    "debuginfo",
    "embed-bitcode",
    "extra-filename",
    "incremental",
    "linker-plugin-lto",
    "lto",
    "remark",
    "save-temps",
    "split-debuginfo",
];

/// A second run of the compiler under way. Ended if it is dropped, and then nothing is left of it.
pub(crate) struct RawRun {
    child: Child,
    object: PathBuf,
    /// A folder for the compiler's temporary files.
    temporary: PathBuf,
    library: PathBuf,
    done: bool,
}

impl RawRun {
    /// Starts `program` with these arguments, changed to make raw code; `compiler` precedes them if the program is a wrapper.
    /// `None` for what has no place in a program, and for crates of a registry.
    pub(crate) fn start(program: &str, compiler: Option<&OsStr>, args: &[OsString]) -> Option<Self> {
        let run = Arguments::parse(args)?;
        // What an earlier compilation left is not this one's.
        let _ = fs::remove_file(&run.object);
        fs::create_dir_all(&run.temporary).ok()?;
        let child = Command::new(program)
            .args(compiler)
            .args(&run.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let Arguments { object, temporary, library, .. } = run;
        Some(Self { child, object, temporary, library, done: false })
    }

    /// Waits for it, when the real run has succeeded, and returns the digest of the library that the object belongs to.
    pub(crate) fn finish(mut self) -> Option<Digest> {
        self.done = self.child.wait().is_ok_and(|status| status.success());
        self.done.then(|| digest_of_library(&self.library))
    }
}

impl Drop for RawRun {
    fn drop(&mut self) {
        if !self.done {
            // An error says that it has ended or left nothing.
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = fs::remove_file(&self.object);
        }
        let _ = fs::remove_dir_all(&self.temporary);
    }
}

/// Digest of the library that was compiled together with raw code; of nothing where an executable was.
fn digest_of_library(path: &Path) -> Digest {
    Digest::of(&fs::read(path).unwrap_or_default())
}

struct Arguments {
    args: Vec<OsString>,
    object: PathBuf,
    temporary: PathBuf,
    library: PathBuf,
}

impl Arguments {
    fn parse(args: &[OsString]) -> Option<Self> {
        let (mut name, mut out_dir, mut suffix) = (None, None, String::new());
        let mut links = false;
        let mut kept = Vec::with_capacity(args.len() + 8);
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let text = arg.to_str().unwrap_or_default();
            let (option, inline) = split(text);
            let takes_value = inline.is_none()
                && matches!(
                    option,
                    "-C" | "--codegen" | "--emit" | "--out-dir" | "--crate-name" | "--crate-type"
                );
            let next = if takes_value { rest.next() } else { None };
            let value = inline.or_else(|| next.and_then(|next| next.to_str())).unwrap_or_default();
            match option {
                // cargo caps lints for what is not the user's.
                "--cap-lints" | "--test" => return None,
                "--crate-type" if value == "proc-macro" => return None,
                "--emit" => {
                    links |= value.split(',').any(|kind| kind == "link");
                    continue;
                }
                "--out-dir" => {
                    out_dir = Some(PathBuf::from(value));
                    continue;
                }
                "--crate-name" => name = Some(value.to_owned()),
                "-C" | "--codegen" => {
                    let (key, setting) = value.split_once('=').unwrap_or((value, ""));
                    if key == "extra-filename" {
                        setting.clone_into(&mut suffix);
                    }
                    if NOT_RAW.contains(&key) {
                        continue;
                    }
                }
                _ => {}
            }
            kept.push(arg.clone());
            kept.extend(next.cloned());
        }
        let name = name.filter(|name| !name.starts_with("build_script_"))?;
        let out_dir = out_dir.filter(|_| links)?;
        let object = out_dir.join(format!("{name}{suffix}.livepatch-raw"));
        let emit = format!("--emit=obj={}", object.to_str()?);
        // Otherwise a run that is killed would leave its temporary files in the folder of the sources.
        let temporary = object.with_extension("livepatch-raw.tmp");
        let temporaries = format!("--out-dir={}", temporary.to_str()?);
        let own = [
            "-Cno-prepopulate-passes",
            "-Ccodegen-units=1",
            "-Cdebuginfo=0",
            "-Cembed-bitcode=no",
            "-Clto=off",
        ];
        kept.extend(own.into_iter().chain([&*emit, &*temporaries, "--cap-lints=allow"]).map(OsString::from));
        let library = out_dir.join(format!("lib{name}{suffix}.rlib"));
        Some(Self { args: kept, object, temporary, library })
    }
}

/// An argument's option and the value that is joined with it.
fn split(arg: &str) -> (&str, Option<&str>) {
    match arg.split_once('=') {
        Some((option, value)) if option.starts_with("--") => (option, Some(value)),
        _ if arg.len() > 2 && arg.starts_with("-C") => (&arg[..2], Some(&arg[2..])),
        _ => (arg, None),
    }
}

/// Copies the raw code of the crates of a link to `into`. What is there but belongs to another compilation, which went
/// without the wrapper, is left out.
pub(crate) fn keep(
    notes: &[(PathBuf, Unit)],
    link: &LinkRecord,
    into: &BlobStore,
) -> Result<Vec<SourceRecord>> {
    let mut kept = Vec::new();
    for (note, unit) in notes {
        let (Some(stem), Some(made)) = (note.file_stem().and_then(OsStr::to_str), unit.raw) else { continue };
        let library = note.with_file_name(format!("lib{stem}.rlib"));
        let is_linked = note_of(Path::new(&link.output)).as_deref() == Some(note);
        let object = note.with_extension("livepatch-raw");
        let belongs = if library.exists() { digest_of_library(&library) == made } else { is_linked };
        if !belongs || !object.exists() {
            continue;
        }
        let bytes = fs::read(&object).at("read", &object)?;
        let compressed = zstd::bulk::compress(&bytes, LEVEL).at("compress", &object)?;
        kept.push(SourceRecord { path: stem.to_owned(), blob: into.put_bytes(&compressed)? });
    }
    kept.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(kept)
}

/// The object in a kept file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    zstd::stream::decode_all(fs::File::open(path).at("read", path)?).at("decompress", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Arguments> {
        Arguments::parse(&text.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_of_cargo() {
        let run = parse(
            "--crate-name app --edition=2024 src/main.rs --crate-type bin --emit=dep-info,link -C opt-level=3 -C lto -C \
             embed-bitcode=no -Cdebuginfo=2 -C metadata=0a -C extra-filename=-1b --out-dir /t/deps -C target-cpu=native",
        )
        .unwrap();
        assert_eq!(run.object, Path::new("/t/deps/app-1b.livepatch-raw"));
        assert_eq!(run.library, Path::new("/t/deps/libapp-1b.rlib"));
        let args: Vec<_> = run.args.iter().map(|arg| arg.to_str().unwrap()).collect();
        assert_eq!(
            args.join(" "),
            "--crate-name app --edition=2024 src/main.rs --crate-type bin -C opt-level=3 -C metadata=0a -C \
             target-cpu=native -Cno-prepopulate-passes -Ccodegen-units=1 -Cdebuginfo=0 -Cembed-bitcode=no -Clto=off \
             --emit=obj=/t/deps/app-1b.livepatch-raw --out-dir=/t/deps/app-1b.livepatch-raw.tmp --cap-lints=allow"
        );
    }

    #[test]
    fn what_has_no_raw_code() {
        let whole = "--crate-name app --crate-type lib --emit=metadata,link -C opt-level=z --out-dir /t";
        assert!(parse(whole).is_some());
        for other in [
            "--crate-name app --crate-type lib --emit=metadata -C opt-level=z --out-dir /t",
            "--crate-name app --crate-type proc-macro --emit=metadata,link -C opt-level=z --out-dir /t",
            "--crate-name build_script_build --crate-type bin --emit=link -C opt-level=z --out-dir /t",
            "--crate-name app --crate-type lib --emit=metadata,link -C opt-level=z --out-dir /t --cap-lints allow",
            "-vV",
        ] {
            assert!(parse(other).is_none(), "{other}");
        }
    }
}
