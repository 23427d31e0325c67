//! What is read from a linker's command line.

use crate::error::{Error, IoContext, Result, utf8};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A linker's command line, as far as recording needs it.
pub(super) struct LinkArgs {
    /// The arguments, response files expanded.
    pub all: Vec<String>,
    /// What the linker proper sees: `-Wl,…` and `-Xlinker` taken apart.
    flat: Vec<String>,
    /// The output (`-o`).
    pub output: PathBuf,
    /// A map that the user asked for.
    pub map: Option<PathBuf>,
    /// Whether a shared object is made.
    pub shared: bool,
    /// Whether the linker is started through a compiler driver.
    driver: bool,
}

/// Options whose next argument is not an input.
const WITH_VALUE: &[&str] = &[
    "-o",
    "-L",
    "-l",
    "-m",
    "-z",
    "-e",
    "-u",
    "-h",
    "-soname",
    "-rpath",
    "-rpath-link",
    "-dynamic-linker",
    "-plugin",
    "-plugin-opt",
    "-flavor",
    "-Map",
    "-B",
    "-x",
    "-target",
    "-I",
    "-isystem",
    "-arch",
    "-A",
    "-b",
    "-Y",
    "-y",
    "-a",
    "-defsym",
    "-entry",
    "-image-base",
    "-wrap",
    "-exclude-libs",
    "-undefined",
    "-sysroot",
    "-dependency-file",
];

/// Options that name a file which the linker reads, as `OPTION=FILE` or `OPTION FILE`.
const READS: &[&str] = &[
    "-version-script",
    "-dynamic-list",
    "-T",
    "-script",
    "-export-dynamic-symbol-list",
    "-retain-symbols-file",
];

impl LinkArgs {
    pub(super) fn parse(args: &[OsString], linker: &str) -> Result<Self> {
        let mut all = Vec::with_capacity(args.len());
        for arg in args {
            expand(utf8("the linker argument", arg)?, &mut all, 0)?;
        }
        let driver = is_driver(linker, &all);
        let flat = flatten(&all);
        let output = value(&flat, "-o").unwrap_or("a.out").into();
        let map = value(&flat, "-Map").map(PathBuf::from);
        let shared = flat.iter().any(|arg| matches!(arg.as_str(), "-shared" | "--shared" | "-Bshareable"));
        Ok(Self { all, flat, output, map, shared, driver })
    }

    /// Options for the linker proper, as this command line has to pass them.
    pub(super) fn to_linker(&self, options: impl IntoIterator<Item = String>) -> Vec<OsString> {
        // Not `-Wl,`, which would cut a path at a comma.
        options
            .into_iter()
            .flat_map(|option| self.driver.then(|| "-Xlinker".into()).into_iter().chain([option.into()]))
            .collect()
    }

    /// The arguments without those that strip the output: a baseline needs its symbols and debug information. If they
    /// stand in a response file, a new one is written to `work`; they may be too many for a command line.
    pub(super) fn unstripped(&self, args: &[OsString], work: &Path) -> Result<Vec<OsString>> {
        if !self.all.iter().any(|arg| strips(arg)) {
            return Ok(args.to_vec());
        }
        let kept = self.all.iter().filter(|arg| !strips(arg));
        if !args.iter().any(|arg| arg.as_encoded_bytes().starts_with(b"@")) {
            return Ok(kept.map(OsString::from).collect());
        }
        let path = work.join("arguments");
        let text: String =
            kept.map(|arg| format!("\"{}\"\n", arg.replace('\\', "\\\\").replace('"', "\\\""))).collect();
        std::fs::write(&path, text).at("write", &path)?;
        let mut response = OsString::from("@");
        response.push(path);
        Ok(vec![response])
    }

    /// Everything on the command line that may be an input file, in order.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let mut skip = false;
        self.flat.iter().filter_map(move |arg| {
            if std::mem::take(&mut skip) {
                return None;
            }
            if !arg.starts_with('-') {
                return (!arg.is_empty()).then(|| Path::new(arg.as_str()));
            }
            let option = single_dash(arg);
            skip = WITH_VALUE.contains(&option);
            let (name, file) = option.split_once('=')?;
            READS.contains(&name).then(|| Path::new(file))
        })
    }
}

/// Whether an argument, as rustc passes it, strips the output.
fn strips(arg: &str) -> bool {
    matches!(arg.strip_prefix("-Wl,").unwrap_or(arg), "--strip-debug" | "--strip-all" | "-s" | "-S")
}

/// Long options may be written with one dash or two.
fn single_dash(arg: &str) -> &str {
    arg.strip_prefix('-').filter(|rest| rest.starts_with('-')).unwrap_or(arg)
}

/// The last value of an option, written as `-o FILE`, `-oFILE`, `-Map=FILE` or `-Map FILE`.
fn value<'a>(flat: &'a [String], name: &str) -> Option<&'a str> {
    let at = flat.iter().rposition(|arg| {
        let arg = single_dash(arg);
        arg == name || arg.strip_prefix(name).is_some_and(|rest| rest.starts_with('='))
    })?;
    match single_dash(&flat[at]).split_once('=') {
        Some((_, value)) => Some(value),
        None => flat.get(at + 1).map(String::as_str),
    }
}

/// Whether the linker is a compiler driver (`cc`, `clang`): the arguments that rustc gives it tell, or its name.
fn is_driver(linker: &str, args: &[String]) -> bool {
    if args.iter().any(|arg| arg.starts_with("-Wl,") || arg == "-Xlinker" || arg == "-nodefaultlibs") {
        return true;
    }
    let name = Path::new(linker).file_name().and_then(|name| name.to_str()).unwrap_or(linker);
    let direct = ["ld", "lld", "rust-lld", "mold", "wild", "gold"];
    !(direct.contains(&name) || name.starts_with("ld.") || name.ends_with("-ld") || name.starts_with("ld-"))
}

fn flatten(args: &[String]) -> Vec<String> {
    let mut flat = Vec::with_capacity(args.len());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if let Some(list) = arg.strip_prefix("-Wl,") {
            flat.extend(list.split(',').map(str::to_owned));
        } else if arg == "-Xlinker" {
            flat.extend(args.next().cloned());
        } else {
            flat.push(arg.clone());
        }
    }
    flat
}

/// Response files may name response files; an endless chain is cut.
const MAX_NESTING: usize = 16;

fn expand(arg: String, into: &mut Vec<String>, depth: usize) -> Result<()> {
    let file = arg.strip_prefix('@').map(Path::new).filter(|path| depth < MAX_NESTING && path.is_file());
    let Some(path) = file else {
        into.push(arg);
        return Ok(());
    };
    let bytes = std::fs::read(path).at("read", path)?;
    let text = String::from_utf8(bytes).map_err(|e| Error::NotUtf8 {
        what: "the linker's response file",
        text: e.into_bytes().escape_ascii().take(80).map(char::from).collect(),
    })?;
    for arg in split_response(&text) {
        expand(arg, into, depth + 1)?;
    }
    Ok(())
}

/// Splits the text of a response file as GNU tools do: blanks separate, quotes of both kinds group, a backslash takes
/// the next character as it is.
fn split_response(text: &str) -> Vec<String> {
    let mut args = Vec::new();
    let mut current: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', _) => current.get_or_insert_default().extend(chars.next()),
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => current.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                current.get_or_insert_default();
                quote = Some(c);
            }
            (c, None) if c.is_ascii_whitespace() => args.extend(current.take()),
            (c, None) => current.get_or_insert_default().push(c),
        }
    }
    args.extend(current);
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(linker: &str, args: &[&str]) -> LinkArgs {
        LinkArgs::parse(&args.iter().map(OsString::from).collect::<Vec<_>>(), linker).unwrap()
    }

    #[test]
    fn driver_and_direct_arguments() {
        let args = parse(
            "/usr/bin/cc",
            &["a.o", "-L", "/lib", "-Wl,--version-script=v s", "-lfoo", "-o", "out", "-shared"],
        );
        assert_eq!(args.files().collect::<Vec<_>>(), [Path::new("a.o"), Path::new("v s")]);
        assert_eq!(args.output, Path::new("out"));
        assert!(args.shared && args.map.is_none());
        assert_eq!(args.to_linker(["-Map=a,b".into()]), ["-Xlinker", "-Map=a,b"]);
        let direct = parse("/x/ld.lld", &["a.o", "-z", "now", "-o", "out", "-Map", "m"]);
        assert_eq!(direct.to_linker(["--build-id".into()]), ["--build-id"]);
        assert_eq!(direct.map.as_deref(), Some(Path::new("m")));
        assert_eq!(direct.files().collect::<Vec<_>>(), [Path::new("a.o")]);
    }

    #[test]
    fn map_of_the_user_in_every_spelling() {
        for spelling in [
            &["-Wl,-Map=m"][..],
            &["-Wl,-Map,m"],
            &["-Xlinker", "--Map=m"],
            &["-Xlinker", "-Map", "-Xlinker", "m"],
        ] {
            assert_eq!(parse("cc", spelling).map.as_deref(), Some(Path::new("m")), "{spelling:?}");
        }
    }

    #[test]
    fn stripping_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let strip = ["a \"b\\.o", "-Wl,--strip-debug", "-o", "out"].map(OsString::from);
        let args = LinkArgs::parse(&strip, "cc").unwrap();
        assert_eq!(args.unstripped(&strip, folder.path()).unwrap(), ["a \"b\\.o", "-o", "out"]);
        let file = folder.path().join("given");
        std::fs::write(&file, "\"a \\\"b\\\\.o\"\n-Wl,--strip-debug\n-o out").unwrap();
        let given = [OsString::from(format!("@{}", file.display()))];
        let full = LinkArgs::parse(&given, "cc").unwrap().unstripped(&given, folder.path()).unwrap();
        assert_eq!(full.len(), 1);
        assert_eq!(LinkArgs::parse(&full, "cc").unwrap().all, ["a \"b\\.o", "-o", "out"]);
    }

    #[test]
    fn response_files() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::write(&inner, "\"/a b/c.o\" d\\ e.o\n'x\"y.o' \"q\\\"r.o\"").unwrap();
        let args = parse("cc", &[&format!("@{}", inner.display()), "-o", "out"]);
        assert_eq!(args.all, ["/a b/c.o", "d e.o", "x\"y.o", "q\"r.o", "-o", "out"]);
    }
}
