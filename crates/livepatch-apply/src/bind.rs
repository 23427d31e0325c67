//! Where everything lives that the patch refers to but does not define, in this process.
//!
//! | place of the symbol | how it is found |
//! |---|---|
//! | image | load bias |
//! | thread-local of the image | executable: module 1 and the ABI's fixed offset; shared object: its own relocated GOT |
//! | import with a GOT slot | the pointer that the running loader put there |
//! | import without one | dynamic symbols of the module's scope, in load order, then of libraries that the patch brings; indirect functions by `dlsym` |
//! | static or thread-local that an earlier patch brought in | the registry: the one of that name that was in use last, if size and type agree |

use crate::elf::{Image, Peek, TlsHeader, quad};
use crate::error::{ApplyError, Mismatch};
use crate::names::demangled;
use crate::registry::{Record, State};
use crate::scope::{Resolved, Scope};
use crate::target::Module;
use livepatch_patch::link::{Binding, TlsPlace};
use livepatch_patch::{Digest, ImageKind, NewItem, NewItemKind, Patch, Place, RunAddr, Symbol};
use livepatch_process::Process;
use object::elf;
use std::cmp::Reverse;

/// Bindings of a patch in a process.
#[derive(Debug)]
pub struct Bound {
    /// One for each symbol of the patch.
    pub bindings: Vec<Binding>,
    /// Symbols that only the target's own loader can resolve.
    pub remote: Vec<Remote>,
    /// Imports that nothing in the process provides. Their bindings lead nowhere.
    pub missing: Vec<String>,
    /// Imports that nothing in the process provides, and that need not be there. Their bindings are 0.
    pub absent: Vec<String>,
}

/// A symbol that the target's own loader is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its index in the patch.
    pub symbol: usize,
    /// Its name.
    pub name: String,
    /// The loader's handle of the library that has it.
    pub handle: u64,
}

/// Finds the place of every symbol.
///
/// # Errors
/// Something that the patch needs is not in the process, or is there with another type.
pub fn bind(
    process: &Process,
    module: &Module,
    scope: &Scope<'_>,
    patch: &Patch,
    state: Option<&State>,
) -> Result<Bound, ApplyError> {
    let tls = ImageTls::find(process, module, patch)?;
    let bindings = Vec::with_capacity(patch.symbols.len());
    let mut bound = Bound { bindings, remote: Vec::new(), missing: Vec::new(), absent: Vec::new() };
    for (index, symbol) in patch.symbols.iter().enumerate() {
        let binding = match symbol.place {
            Place::Section { .. } => Binding::Own,
            Place::Image { addr, .. } => Binding::At(addr.at(module.image.bias)),
            Place::ImageTls { offset } => Binding::Tls(tls.place(&symbol.name, offset)?),
            Place::Import { got, weak } => match resolve_import(process, module, scope, symbol, got)? {
                Some(Resolved::At(address)) => Binding::At(address),
                Some(Resolved::AskLoader { handle }) => {
                    bound.remote.push(Remote { symbol: index, name: symbol.name.clone(), handle });
                    Binding::At(RunAddr(0))
                }
                None => {
                    let list = if weak { &mut bound.absent } else { &mut bound.missing };
                    list.push(symbol.name.clone());
                    Binding::At(RunAddr(0))
                }
            },
        };
        bound.bindings.push(binding);
    }
    if let Some(state) = state {
        share_running_instances(patch, state, &mut bound.bindings)?;
    }
    Ok(bound)
}

fn resolve_import(
    process: &Process,
    module: &Module,
    scope: &Scope<'_>,
    symbol: &Symbol,
    got: Option<livepatch_patch::LinkAddr>,
) -> Result<Option<Resolved>, ApplyError> {
    if let Some(slot) = got
        && !is_lazy(process, &module.image, slot.0)?
    {
        let slot = slot.at(module.image.bias);
        if module.image.segment(slot).is_none() {
            return Err(Mismatch::Outside { path: symbol.name.clone(), address: slot }.into());
        }
        return Ok(Some(Resolved::At(RunAddr(process.word(slot)?))));
    }
    scope.resolve(&symbol.name)
}

/// Whether a GOT slot is filled at the first call rather than at load time.
fn is_lazy(process: &Process, image: &Image, slot: u64) -> Result<bool, ApplyError> {
    let Some(dynamic) = &image.dynamic else { return Ok(false) };
    let bind_now = dynamic.get(elf::DT_BIND_NOW.0).is_some()
        || dynamic.get(elf::DT_FLAGS.0).is_some_and(|flags| flags & 8 != 0)
        || dynamic.get(elf::DT_FLAGS_1.0).is_some_and(|flags| flags & 1 != 0);
    if bind_now {
        return Ok(false);
    }
    let jump_slots = relocations(process, image, elf::DT_JMPREL.0, elf::DT_PLTRELSZ.0)?;
    Ok(jump_slots.iter().any(|reloc| reloc.offset == slot))
}

struct Rela {
    offset: u64,
    kind: u32,
    symbol: u32,
    addend: u64,
}

/// Largest relocation table that is believed.
const MAX_RELOCATIONS: u64 = 256 << 20;

fn relocations(process: &Process, image: &Image, table: i64, size: i64) -> Result<Vec<Rela>, ApplyError> {
    let Some(dynamic) = &image.dynamic else { return Ok(Vec::new()) };
    let (Some(at), Some(size)) = (dynamic.get(table), dynamic.get(size)) else { return Ok(Vec::new()) };
    let bytes = process.bytes(image.dynamic_address(at), size.min(MAX_RELOCATIONS) as usize)?;
    Ok(bytes
        .chunks_exact(24)
        .map(|entry| Rela {
            offset: quad(entry, 0),
            kind: quad(entry, 8) as u32,
            symbol: (quad(entry, 8) >> 32) as u32,
            addend: quad(entry, 16),
        })
        .collect())
}

/// How the image's own thread-locals are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImageTls {
    /// The patch refers to none.
    Unused,
    /// Module number and, if static, the offset of the block from the thread pointer.
    Known { module: u64, size: u64, block: Option<i64> },
}

impl ImageTls {
    fn find(process: &Process, module: &Module, patch: &Patch) -> Result<Self, ApplyError> {
        if !patch.symbols.iter().any(|s| matches!(s.place, Place::ImageTls { .. })) {
            return Ok(Self::Unused);
        }
        let header = module.image.tls.ok_or(Mismatch::Tls)?;
        let agrees = patch.meta.target.tls.is_some_and(|tls| {
            (tls.addr, tls.size, tls.align.max(1)) == (header.addr, header.size, header.align)
        });
        if !agrees {
            return Err(Mismatch::Tls.into());
        }
        match (patch.meta.target.kind, module.executable) {
            (ImageKind::Executable, true) => {
                Ok(Self::Known { module: 1, size: header.size, block: Some(executable_block(header)) })
            }
            (ImageKind::SharedObject, false) => from_got(process, module, header.size),
            _ => Err(Mismatch::Patch("executable and shared object confused".into()).into()),
        }
    }

    fn place(self, name: &str, offset: u64) -> Result<TlsPlace, ApplyError> {
        match self {
            Self::Known { module, size, block } if offset < size => {
                Ok(TlsPlace { module, offset, tp_offset: block.map(|block| block + offset as i64) })
            }
            _ => Err(Mismatch::Patch(format!("thread-local `{name}` outside its segment")).into()),
        }
    }
}

/// Offset of the executable's TLS block from the thread pointer (ELF TLS specification, variant II): the block ends
/// at the thread pointer, moved down until its start is congruent to `p_vaddr` modulo the alignment.
fn executable_block(tls: TlsHeader) -> i64 {
    let align = tls.align.max(1);
    let padding = 0u64.wrapping_sub(tls.addr.0).wrapping_sub(tls.size) % align;
    -(tls.size.wrapping_add(padding) as i64)
}

/// Module number and block of a shared object, from the values that the loader computed for the object's own references.
fn from_got(process: &Process, module: &Module, size: u64) -> Result<ImageTls, ApplyError> {
    let image = &module.image;
    let (mut number, mut block) = (None, None);
    for reloc in relocations(process, image, elf::DT_RELA.0, elf::DT_RELASZ.0)? {
        let kind = elf::RelocationType(reloc.kind);
        if reloc.symbol != 0 || kind != elf::R_X86_64_DTPMOD64 && kind != elf::R_X86_64_TPOFF64 {
            continue;
        }
        let value = process.word(livepatch_patch::LinkAddr(reloc.offset).at(image.bias))?;
        if kind == elf::R_X86_64_DTPMOD64 {
            number = Some(value);
        } else {
            block = Some(value.wrapping_sub(reloc.addend) as i64);
        }
    }
    match number {
        Some(module) => Ok(ImageTls::Known { module, size, block }),
        None => Err(ApplyError::refused(format!(
            "the patch uses thread-locals of {}, whose place in this process cannot be found out: the object itself has no \
             dynamic reference to them",
            module.name()
        ))),
    }
}

/// A new static or thread-local of the patch that runs already binds to the running instance, and so does every other
/// symbol that lies inside it.
fn share_running_instances(patch: &Patch, state: &State, bindings: &mut [Binding]) -> Result<(), ApplyError> {
    for item in &patch.meta.new_items {
        let Some(symbol) = patch.symbols.get(item.symbol.0 as usize) else { continue };
        let Place::Section { section, offset, size } = symbol.place else { continue };
        let Some(running) = running_instance(item, symbol, size, state)? else { continue };
        for (other, binding) in patch.symbols.iter().zip(bindings.iter_mut()) {
            if let Place::Section { section: s, offset: o, .. } = other.place
                && s == section
                && (o == offset || offset < o && o < offset + size)
            {
                *binding = moved(running, o - offset);
            }
        }
    }
    Ok(())
}

fn moved(binding: Binding, by: u64) -> Binding {
    match binding {
        Binding::Own | Binding::OwnBehind(_) => binding,
        Binding::At(address) => Binding::At(address.offset(by as i64)),
        Binding::Tls(place) => Binding::Tls(TlsPlace {
            module: place.module,
            offset: place.offset + by,
            tp_offset: place.tp_offset.map(|offset| offset + by as i64),
        }),
    }
}

fn running_instance(
    item: &NewItem,
    symbol: &Symbol,
    size: u64,
    state: &State,
) -> Result<Option<Binding>, ApplyError> {
    let all = instances(item.kind, &symbol.name, &state.patches.iter().collect::<Vec<_>>());
    let is_alike = |known: &&Instance<'_>| known.is_alike(size, item.type_digest);
    if item.call_site {
        return Ok(all.iter().find(is_alike).map(|known| known.at));
    }
    let (known, sole) = (!all.is_empty(), all.iter().all(|known| known.sole));
    let found = all.first().filter(is_alike).map(|known| known.at);
    if known && !(sole && item.sole) {
        return Err(ApplyError::refused(format!(
            "several variables are called `{}` in this patch or in an earlier one, and nothing tells which of them has which value; give \
             the new one another name",
            item.path
        )));
    }
    // Without an applied patch no code uses the old instance any more, and a new one of another type may start. One from before that, if
    // of the right type, has not what the program counted since.
    if found.is_none() && known && state.active().is_some() {
        return Err(ApplyError::refused(format!(
            "`{}` was brought in by an earlier patch with another type or size; give it another name, or roll the earlier \
             patch back first (its value starts anew then)",
            item.path
        )));
    }
    Ok(found)
}

/// A variable that a patch brought, or went on with.
pub(crate) struct Instance<'s> {
    at: Binding,
    size: u64,
    type_digest: Option<Digest>,
    sole: bool,
    /// Digest of what it began with.
    pub(crate) initial: Option<&'s Digest>,
}

impl Instance<'_> {
    /// Whether a variable of this type goes on with it.
    pub(crate) fn is_alike(&self, size: u64, type_digest: Option<Digest>) -> bool {
        self.size == size && self.type_digest == type_digest && type_digest.is_some()
    }
}

/// The variables of some patches that have this name, those that were in use last first. The symbol may have another hash: of another
/// type, or behind another number of `impl` blocks.
pub(crate) fn instances<'s>(kind: NewItemKind, symbol: &str, records: &[&'s Record]) -> Vec<Instance<'s>> {
    let path = demangled(symbol);
    let of_name = |name: &str| name == symbol || demangled(name) == path;
    let mut records = records.to_vec();
    records.sort_by_key(|record| Reverse(record.applied_at));
    let statics = |record: &&'s Record| {
        let statics = record.statics.iter().filter(|known| of_name(&known.name));
        let statics = statics.map(|known| Instance {
            at: Binding::At(known.address),
            size: known.size,
            type_digest: known.type_digest,
            sole: known.sole,
            initial: known.initial.as_ref(),
        });
        statics.collect::<Vec<_>>()
    };
    let thread_locals = |record: &&'s Record| {
        let locals = record.thread_locals.iter().filter(|known| of_name(&known.name));
        let locals = locals.map(|known| Instance {
            at: Binding::Tls(TlsPlace {
                module: known.module,
                offset: known.offset,
                tp_offset: known.tp_offset,
            }),
            size: known.size,
            type_digest: known.type_digest,
            sole: known.sole,
            initial: known.initial.as_ref(),
        });
        locals.collect::<Vec<_>>()
    };
    match kind {
        NewItemKind::Function => Vec::new(),
        NewItemKind::Static => records.iter().flat_map(statics).collect(),
        NewItemKind::ThreadLocal => records.iter().flat_map(thread_locals).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use livepatch_patch::LinkAddr;

    fn block(addr: u64, size: u64, align: u64) -> i64 {
        executable_block(TlsHeader { addr: LinkAddr(addr), size, align })
    }

    #[test]
    fn the_executables_block_ends_at_the_thread_pointer() {
        assert_eq!(block(0x1000, 0x20, 8), -0x20);
        assert_eq!(block(0x1000, 0x21, 8), -0x28);
        // p_vaddr not a multiple of the alignment: the block starts at the same offset modulo 64
        assert_eq!(block(0x1008, 0x10, 64), -0x38);
        assert_eq!(block(0x1008, 0x10, 64).rem_euclid(64), 8);
        assert_eq!(block(0x1000, 5, 0), -5);
    }
}
