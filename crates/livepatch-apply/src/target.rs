//! Finding the module that a patch fits, and checking that it runs what the patch was made for.

use crate::elf::{Image, Peek};
use crate::error::{ApplyError, Mismatch};
use crate::jump::JUMP_SIZE;
use crate::registry::{Code, State};
use livepatch_patch::{Arch, BuildId, Digest, Meta, Redirect, RunAddr};
use livepatch_process::{Backing, Mapping, Process, ProcessError};
use std::path::PathBuf;

impl Peek for Process {
    fn peek(&self, at: RunAddr, buf: &mut [u8]) -> Result<(), ProcessError> {
        self.read(at, buf)
    }

    fn table(&self, at: RunAddr, len: usize) -> Result<Vec<u8>, ProcessError> {
        self.read_mapped(at, len)
    }
}

/// A module of the process.
#[derive(Clone, Debug)]
pub struct Module {
    /// Path as the kernel prints it, or `[vdso]`.
    pub path: PathBuf,
    /// Its headers.
    pub image: Image,
    /// Whether it is the main executable.
    pub executable: bool,
}

impl Module {
    /// File name, for messages.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }
}

/// All modules of a process, by address.
#[derive(Clone, Debug)]
pub struct Modules {
    /// The modules.
    pub list: Vec<Module>,
    /// The memory map that they were found in.
    pub maps: Vec<Mapping>,
}

impl Modules {
    /// Reads the memory map and the headers of every image that is loaded (not merely mapped as data).
    pub fn read(process: &Process) -> Result<Self, ProcessError> {
        let maps = process.maps()?;
        let program_headers = auxv(process, AT_PHDR)?;
        let mut list: Vec<Module> = Vec::new();
        for mapping in &maps {
            let vdso = mapping.is_special("[vdso]");
            let first_page = matches!(mapping.backing, Backing::File(_)) && mapping.file_offset == 0;
            if !mapping.perms.read || !(vdso || first_page) {
                continue;
            }
            // Of a small file a later segment begins in the first page, too: it is mapped twice, and no second module.
            let is_part_of = |module: &Module| module.image.span().contains(&mapping.range.start);
            if list.last().is_some_and(|last| is_part_of(last) && mapping.path() == Some(&last.path)) {
                continue;
            }
            // A mapped file may be shorter than its mapping, or be gone by now: then it is no loaded module.
            let image = match Image::read(process, mapping.range.start) {
                Ok(Some(image)) => image,
                Err(error) if error.is_lost() => return Err(error),
                Ok(None) | Err(_) => continue,
            };
            if !vdso && !is_loaded(&image, mapping, &maps) {
                continue;
            }
            let span = image.span();
            let executable = program_headers.is_some_and(|at| span.contains(&at));
            let path = mapping.path().map_or_else(|| PathBuf::from("[vdso]"), PathBuf::from);
            list.push(Module { path, image, executable });
        }
        Ok(Self { list, maps })
    }

    /// The only module with this build-id.
    pub fn with_build_id(&self, id: &BuildId) -> Result<&Module, ApplyError> {
        let mut found = self.list.iter().filter(|module| module.image.build_id.as_ref() == Some(id));
        match (found.next(), found.next()) {
            (Some(module), None) => Ok(module),
            (Some(module), Some(_)) => Err(ApplyError::Refused {
                reason: format!(
                    "{} is loaded more than once in this process; a patch could not say which copy it means",
                    module.name()
                ),
            }),
            (None, _) => Err(ApplyError::Mismatch(Mismatch::NoSuchBuild {
                wanted: id.clone(),
                running: self.executable().and_then(|module| module.image.build_id.clone()),
            })),
        }
    }

    /// The main executable.
    pub fn executable(&self) -> Option<&Module> {
        self.list.iter().find(|module| module.executable)
    }

    /// The module that an address belongs to.
    pub fn containing(&self, at: RunAddr) -> Option<&Module> {
        self.list.iter().find(|module| module.image.segment(at).is_some())
    }
}

/// Whether each code segment is mapped executable from the same file, as a loader does it.
fn is_loaded(image: &Image, first: &Mapping, maps: &[Mapping]) -> bool {
    let mut code = image.segments.iter().filter(|segment| segment.execute).peekable();
    code.peek().is_some()
        && code.all(|segment| {
            let mapping = maps.iter().find(|mapping| mapping.contains(segment.range.start));
            mapping.is_some_and(|mapping| mapping.perms.execute && mapping.same_file(first))
        })
}

/// `AT_PHDR` of `<elf.h>`: address of the executable's program headers.
const AT_PHDR: u64 = 3;
/// `AT_BASE`: load address of the dynamic loader, 0 without one.
const AT_BASE: u64 = 7;

/// Where the dynamic loader is, if the program has one.
pub fn interpreter(process: &Process) -> Result<Option<RunAddr>, ProcessError> {
    Ok(auxv(process, AT_BASE)?.filter(|at| at.0 != 0))
}

fn auxv(process: &Process, wanted: u64) -> Result<Option<RunAddr>, ProcessError> {
    let bytes = process.auxv()?;
    Ok(bytes
        .chunks_exact(16)
        .map(|pair| (crate::elf::quad(pair, 0), crate::elf::quad(pair, 8)))
        .find_map(|(kind, value)| (kind == wanted).then_some(RunAddr(value))))
}

/// Checks that the running code is what the patch was made from: every function to be redirected must have its original
/// bytes, except for the jump of a patch that the registry knows. Returns the code of each function as the image has it.
pub fn verify(
    process: &Process,
    module: &Module,
    meta: &Meta,
    state: Option<&State>,
) -> Result<Vec<Vec<u8>>, ApplyError> {
    match meta.target.arch {
        Arch::X86_64 => {}
    }
    check_layout(meta)?;
    meta.redirects
        .iter()
        .map(|redirect| {
            let code = original_code(process, module, redirect, state)?;
            if Digest::of(&code) != redirect.old_digest {
                let address = redirect.old.at(module.image.bias);
                return Err(Mismatch::Code { path: redirect.path.clone(), address }.into());
            }
            Ok(code)
        })
        .collect()
}

/// The redirects must not overlap.
fn check_layout(meta: &Meta) -> Result<(), Mismatch> {
    if meta.redirects.is_empty() {
        return Err(Mismatch::Patch("it redirects no function".into()));
    }
    let mut starts: Vec<u64> = meta.redirects.iter().map(|redirect| redirect.old.0).collect();
    starts.sort_unstable();
    let crowded = starts.windows(2).any(|pair| pair[1] - pair[0] < JUMP_SIZE as u64);
    if crowded || meta.redirects.iter().any(|redirect| redirect.room < JUMP_SIZE as u64) {
        return Err(Mismatch::Patch("there is no room for its jumps".into()));
    }
    Ok(())
}

/// The bytes of a function as the image has them.
pub fn original_code(
    process: &Process,
    module: &Module,
    redirect: &Redirect,
    state: Option<&State>,
) -> Result<Vec<u8>, ApplyError> {
    let at = redirect.old.at(module.image.bias);
    let outside = || Mismatch::Outside { path: redirect.path.clone(), address: at };
    let segment = module.image.segment(at).filter(|segment| segment.execute).ok_or_else(outside)?;
    let end = at.0.checked_add(redirect.old_size.max(redirect.room)).ok_or_else(outside)?;
    if end > segment.range.end.0 || redirect.old_size == 0 {
        return Err(outside().into());
    }
    let room = redirect.old_size.max(JUMP_SIZE as u64) as usize;
    let mut code = process.bytes(at, room)?;
    let known = state.into_iter().flat_map(|state| &state.patches).flat_map(|record| &record.functions);
    if let Some(ours) = known.filter(|f| f.old == at).find(|f| code.starts_with(&f.jump.0)) {
        code[..ours.saved.0.len()].copy_from_slice(&ours.saved.0);
    }
    code.truncate(redirect.old_size as usize);
    Ok(code)
}

/// The image's bytes under a jump: the start of the function's code, and padding behind a function that is shorter.
pub fn entry(process: &Process, code: &[u8], at: RunAddr) -> Result<Code, ProcessError> {
    let mut entry: [u8; JUMP_SIZE] = process.read_array(at)?;
    let known = code.len().min(JUMP_SIZE);
    entry[..known].copy_from_slice(&code[..known]);
    Ok(Code(entry))
}
