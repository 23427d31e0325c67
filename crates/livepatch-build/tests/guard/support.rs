//! Pairs of programs, compiled when a test runs, and what the guard says about redirecting some of their functions.

use livepatch_build::findings::Code;
use livepatch_build::guard::{
    ChangedFunction, GuardInput, GuardReport, NewFunction, NewStatic, SharedStatic, StaticPlace, Witness,
    check, demangle,
};
use livepatch_patch::LinkAddr;
use object::{Object, ObjectSymbol, SymbolKind};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Flags of an optimised build in one unit: what is inlined does not depend on how units are cut.
pub const FAST: &[&str] = &["-O", "-Ccodegen-units=1"];

/// An old and a new program.
pub struct Pair {
    _dir: tempfile::TempDir,
    pub old: PathBuf,
    pub new: PathBuf,
    pub old_symbols: Vec<Symbol>,
    pub new_symbols: Vec<Symbol>,
}

/// A symbol of an image.
#[derive(Clone)]
pub struct Symbol {
    pub name: String,
    pub path: String,
    pub addr: u64,
    pub size: u64,
    pub kind: SymbolKind,
}

impl Pair {
    /// Compiles both sources with the same flags (and `-g`).
    pub fn new(flags: &[&str], old: &str, new: &str) -> Self {
        Self::with(flags, flags, old, new)
    }

    /// Compiles both sources, each with its flags.
    pub fn with(old_flags: &[&str], new_flags: &[&str], old: &str, new: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let old = compile(&dir.path().join("old"), old_flags, old);
        let new = compile(&dir.path().join("new"), new_flags, new);
        let (old_symbols, new_symbols) = (symbols(&old), symbols(&new));
        Self { _dir: dir, old, new, old_symbols, new_symbols }
    }

    /// One source with `$NAME` replaced: by the first value in the old program, by the second in the new one.
    pub fn varied(flags: &[&str], source: &str, variants: &[(&str, &str, &str)]) -> Self {
        let (mut old, mut new) = (source.to_owned(), source.to_owned());
        for (name, before, after) in variants {
            assert!(source.contains(name), "{name} is not in the source");
            old = old.replace(name, before);
            new = new.replace(name, after);
        }
        Self::new(flags, &old, &new)
    }

    /// What the guard says when the functions of these paths are redirected and the variables of these paths used.
    pub fn check(&self, functions: &[&str], statics: &[&str]) -> GuardReport {
        let functions: Vec<_> = functions.iter().flat_map(|path| self.changed(path)).collect();
        let statics: Vec<_> = statics.iter().map(|path| self.shared(path)).collect();
        self.run(&functions, &statics, &[], &[])
    }

    pub fn run(
        &self,
        functions: &[ChangedFunction],
        statics: &[SharedStatic],
        new_functions: &[NewFunction],
        new_statics: &[NewStatic],
    ) -> GuardReport {
        let input = GuardInput {
            renamed: &[],
            old_image: &self.old,
            new_image: &self.new,
            functions,
            orphans: &BTreeSet::new(),
            statics,
            new_functions,
            new_statics,
            unchanged: &Default::default(),
            types: &[],
        };
        let witness = Witness { same_code: &|_, _| false, same_closure: &|_| None, unseen: &|_| false };
        check(&input, witness).expect("the images are sound")
    }

    /// All functions of this path, paired by symbol and, where symbols differ, by order.
    pub fn changed(&self, path: &str) -> Vec<ChangedFunction> {
        let all = |symbols: &[Symbol]| -> Vec<Symbol> {
            symbols.iter().filter(|s| s.path == path && s.kind == SymbolKind::Text).cloned().collect()
        };
        let (old, mut new) = (all(&self.old_symbols), all(&self.new_symbols));
        assert!(!old.is_empty(), "no {path} in the old image: {:#?}", own(&self.old_symbols));
        assert!(!new.is_empty(), "no {path} in the new image: {:#?}", own(&self.new_symbols));
        let mut pairs = Vec::new();
        for old in old {
            let at = new.iter().position(|new| new.name == old.name).unwrap_or(0);
            if new.is_empty() {
                break;
            }
            let new = new.remove(at);
            pairs.push(ChangedFunction {
                symbol: old.name,
                new_symbol: new.name,
                old: LinkAddr(old.addr),
                old_size: old.size,
                new: LinkAddr(new.addr),
                new_size: new.size,
                callers: Default::default(),
            });
        }
        pairs
    }

    pub fn shared(&self, path: &str) -> SharedStatic {
        let find = |symbols: &[Symbol]| -> Symbol {
            let wanted = |s: &&Symbol| s.path == path && matches!(s.kind, SymbolKind::Data | SymbolKind::Tls);
            symbols.iter().find(wanted).unwrap_or_else(|| panic!("no {path}: {:#?}", own(symbols))).clone()
        };
        let (old, new) = (find(&self.old_symbols), find(&self.new_symbols));
        SharedStatic {
            old: old.place(),
            new: new.place(),
            old_symbol: old.name,
            new_symbol: new.name,
            old_size: old.size,
            new_size: new.size,
        }
    }
}

impl Symbol {
    pub fn place(&self) -> StaticPlace {
        match self.kind {
            SymbolKind::Tls => StaticPlace::Tls(self.addr),
            _ => StaticPlace::Data(LinkAddr(self.addr)),
        }
    }
}

fn own(symbols: &[Symbol]) -> Vec<&str> {
    symbols.iter().map(|s| s.path.as_str()).filter(|path| path.contains("app")).collect()
}

/// Codes of all refusals, each once.
pub fn codes(report: &GuardReport) -> Vec<u16> {
    let mut codes: Vec<u16> = report.refusals().map(|finding| finding.code.0).collect();
    codes.dedup();
    codes
}

/// Fails with all findings unless there are none.
#[track_caller]
pub fn assert_safe(report: &GuardReport) {
    assert!(report.is_safe(), "{}", livepatch_build::findings::render_all(&report.findings));
}

/// Fails unless there is a finding with this code about an item of (about) this name; gives its text.
#[track_caller]
pub fn assert_found(report: &GuardReport, code: u16, item: &str) -> String {
    let all = livepatch_build::findings::render_all(&report.findings);
    let found = report.refusals().find(|f| f.code == Code(code) && f.item.contains(item));
    let finding = found.unwrap_or_else(|| panic!("no LP{code:04} about {item} in\n{all}"));
    livepatch_build::findings::render(finding)
}

fn compile(dir: &Path, flags: &[&str], source: &str) -> PathBuf {
    std::fs::create_dir_all(dir).expect("a writable folder");
    std::fs::write(dir.join("main.rs"), source).expect("a writable folder");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--edition", "2024", "--crate-name", "app", "-g", "-Awarnings", "-o", "app", "main.rs"])
        .args(flags)
        .current_dir(dir)
        .output()
        .expect("rustc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    dir.join("app")
}

fn symbols(image: &Path) -> Vec<Symbol> {
    let bytes = std::fs::read(image).expect("just linked");
    let file = object::File::parse(bytes.as_slice()).expect("an ELF image");
    file.symbols()
        .filter(|symbol| !symbol.is_undefined())
        .map(|symbol| {
            let name = symbol.name().unwrap_or_default().to_owned();
            Symbol {
                path: demangle(&name),
                name,
                addr: symbol.address(),
                size: symbol.size(),
                kind: symbol.kind(),
            }
        })
        .collect()
}
