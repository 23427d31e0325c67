//! Small programs compiled for a test, and patches assembled by hand for them.
#![allow(dead_code, reason = "each test binary uses a part")]

use livepatch_patch::*;
use object::{Object, ObjectSection, ObjectSymbol};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A compiled program.
pub struct Program {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
    bytes: Vec<u8>,
}

impl Program {
    /// Compiles `tests/programs/NAME.rs`.
    pub fn build(name: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(format!("{name}.rs"));
        let status = Command::new("rustc")
            .args(["--edition=2024", "-Copt-level=3", "-Clink-arg=-Wl,--build-id=sha1", "-o"])
            .args([&path, &source])
            .args(flags)
            .status()
            .unwrap();
        assert!(status.success(), "{} does not compile", source.display());
        let bytes = std::fs::read(&path).unwrap();
        Self { _folder: folder, path, bytes }
    }

    /// The same program without symbols.
    pub fn stripped(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stripped");
        let status = Command::new("strip").arg("-o").args([&path, &self.path]).status().unwrap();
        assert!(status.success());
        let bytes = std::fs::read(&path).unwrap();
        Self { _folder: folder, path, bytes }
    }

    pub fn run(&self) -> Running {
        self.run_with(&[])
    }

    pub fn run_with(&self, args: &[&std::ffi::OsStr]) -> Running {
        let mut child = Command::new(&self.path)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut running = Running {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        assert_eq!(running.line(), "ready");
        running
    }

    /// Offset of a thread-local in the image's block, by a part of its name.
    pub fn thread_local(&self, name: &str) -> u64 {
        let file = object::File::parse(&*self.bytes).unwrap();
        let is_it = |s: &object::Symbol<'_, '_>| {
            s.kind() == object::SymbolKind::Tls && s.name().is_ok_and(|n| n.contains(name))
        };
        // In a linked image the value of such a symbol is its offset in the segment.
        file.symbols().find(is_it).unwrap_or_else(|| panic!("no thread-local {name}")).address()
    }

    /// Address, size and bytes of a symbol.
    pub fn symbol(&self, name: &str) -> (LinkAddr, u64) {
        let file = object::File::parse(&*self.bytes).unwrap();
        let symbol = file.symbols().find(|s| s.name() == Ok(name)).unwrap_or_else(|| panic!("no {name}"));
        (LinkAddr(symbol.address()), symbol.size())
    }

    fn code(&self, name: &str) -> Vec<u8> {
        let file = object::File::parse(&*self.bytes).unwrap();
        let (at, size) = self.symbol(name);
        let mut sections = file.sections();
        sections.find_map(|section| section.data_range(at.0, size).ok().flatten()).unwrap().to_vec()
    }

    pub fn build_id(&self) -> BuildId {
        let file = object::File::parse(&*self.bytes).unwrap();
        BuildId::new(file.build_id().unwrap().unwrap())
    }

    /// A patch without functions.
    pub fn patch(&self, name: &str) -> PatchMaker {
        PatchMaker {
            patch: Patch {
                meta: Meta {
                    name: name.into(),
                    tool: "test".into(),
                    rustc: "rustc".into(),
                    created: 0,
                    target: Target {
                        build_id: self.build_id(),
                        arch: Arch::X86_64,
                        file_name: "server".into(),
                        kind: ImageKind::Executable,
                        tls: None,
                    },
                    redirects: Vec::new(),
                    orphans: Vec::new(),
                    new_items: Vec::new(),
                    constants: Vec::new(),
                    libraries: Vec::new(),
                    indivisible: None,
                    types: Vec::new(),
                    inlined: Default::default(),
                    altered: Default::default(),
                    same: Default::default(),
                    stands: Vec::new(),
                    vanished: Default::default(),
                    once: Default::default(),
                    notes: Vec::new(),
                },
                sections: Vec::new(),
                symbols: Vec::new(),
            },
            functions: Vec::new(),
        }
    }
}

/// A patch in the making.
pub struct PatchMaker {
    pub patch: Patch,
    functions: Vec<(SymbolId, u32, Vec<u8>)>,
}

impl PatchMaker {
    pub fn symbol(&mut self, name: &str, place: Place) -> SymbolId {
        self.patch.symbols.push(Symbol { name: name.into(), place });
        SymbolId(self.patch.symbols.len() as u32 - 1)
    }

    pub fn section(&mut self, name: &str, kind: SectionKind, bytes: &[u8], relocs: Vec<Reloc>) -> SectionId {
        let zero = matches!(kind, SectionKind::Bss | SectionKind::TlsBss);
        self.patch.sections.push(Section {
            name: name.into(),
            kind,
            align: 16,
            bytes: if zero { Vec::new() } else { bytes.to_vec() },
            size: bytes.len() as u64,
            relocs,
        });
        SectionId(self.patch.sections.len() as u32 - 1)
    }

    /// Replaces a function by this code (a leaf that leaves the stack alone).
    pub fn redirect(self, program: &Program, name: &str, code: &[u8], relocs: Vec<Reloc>) -> Self {
        self.redirect_with(program, name, code, relocs, &[0; 3])
    }

    /// Replaces a function by this code with these call frame instructions (3 bytes, or 3 and a multiple of 4).
    pub fn redirect_with(
        mut self,
        program: &Program,
        name: &str,
        code: &[u8],
        relocs: Vec<Reloc>,
        unwind: &[u8],
    ) -> Self {
        let section = self.section(&format!(".text.{name}"), SectionKind::Text, code, relocs);
        let place = Place::Section { section, offset: 0, size: code.len() as u64 };
        let symbol = self.symbol(name, place);
        let (old, old_size) = program.symbol(name);
        self.functions.push((symbol, code.len() as u32, unwind.to_vec()));
        self.patch.meta.redirects.push(Redirect {
            symbol,
            path: format!("server::{name}"),
            old,
            old_size,
            room: old_size.max(5),
            old_digest: Digest::of(&program.code(name)),
            reason: Reason::Changed,
            place: None,
            origin: None,
            initialises: false,
        });
        self
    }

    /// The patch file, with unwind tables for all functions.
    pub fn finish(mut self) -> Vec<u8> {
        let cie =
            [20u8, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0];
        let (mut bytes, mut relocs) = (cie.to_vec(), Vec::new());
        for (symbol, size, unwind) in &self.functions {
            let start = bytes.len() as u32;
            bytes.extend_from_slice(&(13 + unwind.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&(start + 4).to_le_bytes());
            relocs.push(Reloc {
                offset: u64::from(start + 8),
                kind: RelocKind::Pc32,
                symbol: *symbol,
                addend: 0,
            });
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&size.to_le_bytes());
            bytes.push(0);
            bytes.extend_from_slice(unwind);
        }
        bytes.extend_from_slice(&[0; 4]);
        self.section(".eh_frame", SectionKind::EhFrame, &bytes, relocs);
        self.patch.to_bytes().unwrap()
    }
}

/// `mov eax, value; ret`
pub fn returns(value: u32) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend_from_slice(&value.to_le_bytes());
    code.push(0xc3);
    code
}

/// A running program.
pub struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn ask(&mut self, command: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.line()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends the program in its own way; it must have survived everything.
    pub fn end(mut self) {
        self.input = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
