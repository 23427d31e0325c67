//! Bringing a patch into the process, up to the point where only the entries are missing.
//!
//! Nothing here changes what the program does: memory is mapped where nothing was, filled and protected, unwind tables are
//! registered, and the TLS carrier is loaded. Each step is noted in the registry before it is done, so that a later run
//! can take it back if this one is killed.

use crate::bind::{Bound, Remote};
use crate::carrier;
use crate::error::{ApplyError, Mismatch};
use crate::registry::live::{self, map_near};
use crate::registry::{Carrier, CarrierRecord, FrameStep, Journal, Location, Mapping, Record, Region, State};
use crate::safepoint::{self, Rules};
use crate::scope::Scope;
use crate::target::{Module, Modules};
use crate::unwind::Tables;
use livepatch_patch::link::{Binding, LinkError, Linked, Plan, TlsPlace, link, tls_image};
use livepatch_patch::{Digest, Patch, RunAddr, SectionKind, SymbolId};
use livepatch_process::log;
use livepatch_process::{CallProgress, CallSite, Process, Protection, RemoteCall, Seized};
use std::time::Instant;

/// What the work of loading needs to know.
#[derive(Debug)]
pub struct Loader<'a> {
    /// The process.
    pub process: &'a Process,
    /// Its modules.
    pub modules: &'a Modules,
    /// The module that the patch is for.
    pub module: &'a Module,
    /// Where imports are looked up.
    pub scope: &'a Scope<'a>,
    /// Which threads may be used for calls.
    pub rules: &'a Rules,
    /// Unwind tables of the process.
    pub tables: &'a Tables,
    /// Where the state is.
    pub location: Location,
    /// When to give up.
    pub deadline: Instant,
}

/// A patch that is mapped, linked and registered.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Where it is.
    pub mapping: Mapping,
    /// Address of each symbol (`None` for thread-locals).
    pub symbols: Vec<Option<RunAddr>>,
    /// Bindings that it was linked with.
    pub bindings: Vec<Binding>,
    /// Its unwind tables.
    pub eh_frame: Option<Region>,
    /// Digest of text and read-only part.
    pub contents: Digest,
    /// Its TLS carrier.
    pub carrier: Option<Carrier>,
}

impl From<LinkError> for ApplyError {
    fn from(error: LinkError) -> Self {
        let mut reason = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            reason = format!("{reason}: {source}");
        }
        Self::Refused { reason: format!("the patch cannot be linked into this process: {reason}") }
    }
}

/// How a patch's unwind tables are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwinder {
    /// Functions that take the start of a table: to announce, to revoke.
    Known {
        /// Announces a table.
        register: RunAddr,
        /// Revokes it.
        deregister: RunAddr,
    },
    /// Nothing in the process unwinds.
    None,
}

/// Finds the unwinder of the process.
///
/// # Errors
/// There is one that tables cannot be announced to.
pub fn unwinder(
    process: &Process,
    modules: &Modules,
    module: &Module,
    scope: &Scope<'_>,
) -> Result<Unwinder, ApplyError> {
    // LLVM's libunwind has a `__register_frame` of another meaning (one entry, not a table); these take a whole table.
    let llvm = ("__unw_add_dynamic_eh_frame_section", "__unw_remove_dynamic_eh_frame_section");
    for (register, deregister) in [llvm, ("__register_frame", "__deregister_frame")] {
        if let (Some(register), Some(deregister)) = (scope.function(register)?, scope.function(deregister)?) {
            return Ok(Unwinder::Known { register, deregister });
        }
    }
    // A static program needs nothing; whether an unwinder is in it does not show.
    let needs_nothing = |module: &Module| {
        let dynamic = module.image.dynamic.as_ref();
        module.executable && dynamic.is_none_or(|dynamic| dynamic.get(object::elf::DT_NEEDED.0).is_none())
    };
    let mut mentioned = needs_nothing(module);
    for module in &modules.list {
        mentioned |= crate::dynsym::mentions(process, &module.image, "_Unwind_RaiseException")?;
    }
    if mentioned {
        return Err(ApplyError::refused(
            "panics may unwind in this process, and no unwinder in it offers a way to announce new code (it is statically linked, whatever \
             it does on a panic, or the program has only just been started and is not loaded yet: then try again)",
        ));
    }
    Ok(Unwinder::None)
}

/// Links for a trial address: everything that can fail in linking fails here, before anything is mapped.
///
/// # Errors
/// The patch cannot be linked near the module.
pub fn trial_link(
    process: &Process,
    module: &Module,
    patch: &Patch,
    plan: &Plan,
    bindings: &[Binding],
) -> Result<(), ApplyError> {
    let floor = livepatch_process::mmap_min_addr();
    let base = livepatch_process::near_gap(&process.maps()?, module.image.neighbourhood(), plan.total(), floor)
        .ok_or_else(|| {
            ApplyError::refused(
                "no room for the patch within 2 GiB of the module; restart the program with less mapped around it",
            )
        })?;
    // Loader and carrier decide where new thread-locals are; any place shows whether the relocations suit.
    let tls = plan.tls.as_ref().map(|tls| (1 << 16, tls.needs_static.then_some(-(1 << 16))));
    let bindings = with_own_tls(plan, bindings, tls);
    link(patch, plan, base, &bindings)?;
    tls_image(patch, plan, base, &bindings)?;
    Ok(())
}

/// Bindings in which the patch's own thread-locals are places in a carrier (module number, offset of its block).
fn with_own_tls(plan: &Plan, bindings: &[Binding], carrier: Option<(u64, Option<i64>)>) -> Vec<Binding> {
    let mut out = bindings.to_vec();
    let Some((module, block)) = carrier else { return out };
    for (SymbolId(symbol), offset) in plan.tls.iter().flat_map(|tls| &tls.offsets) {
        if let Some(binding @ Binding::Own) = out.get_mut(*symbol as usize) {
            let tp_offset = block.map(|block| block + *offset as i64);
            *binding = Binding::Tls(TlsPlace { module, offset: *offset, tp_offset });
        }
    }
    out
}

/// Whether the patch brings a thread-local that no running instance stands for.
fn needs_carrier(plan: &Plan, bindings: &[Binding]) -> bool {
    let own = |(id, _): &(SymbolId, u64)| bindings.get(id.0 as usize) == Some(&Binding::Own);
    plan.tls.as_ref().is_some_and(|tls| tls.offsets.iter().any(own))
}

impl Loader<'_> {
    /// Loads the patch.
    ///
    /// # Errors
    /// On any error what was mapped is unmapped again and what was registered is deregistered. Only a carrier that the
    /// loader of the process has accepted stays (it cannot be unloaded); nothing refers to it.
    pub fn load(
        &self,
        seized: &mut Seized,
        state: &mut State,
        patch: &Patch,
        id: &Digest,
        plan: &Plan,
        bound: Bound,
    ) -> Result<Loaded, ApplyError> {
        let has_frames = patch.sections.iter().any(|s| s.kind == SectionKind::EhFrame && s.size > 0);
        let unwinder = if has_frames {
            unwinder(self.process, self.modules, self.module, self.scope)?
        } else {
            Unwinder::None
        };
        let near = self.module.image.neighbourhood();
        let base = safepoint::on_any_thread(seized, self.deadline, |thread| {
            map_near(thread, near.clone(), plan.total(), Protection::None, self.deadline)
        })?;
        let mapping = Mapping { base, text: plan.text_size, rodata: plan.rodata_size, data: plan.data_size };
        let loaded = self.fill(seized, state, patch, id, plan, bound, mapping, unwinder);
        if loaded.is_err() {
            let patient = Loader { deadline: Instant::now() + crate::session::UNDO_LIMIT, ..*self };
            match patient.unload(seized, state, unwinder) {
                Ok(true) => {}
                Ok(false) => self
                    .process
                    .warn_of_rest(format_args!("memory that the unwinder may refer to stays in the process")),
                Err(error) => self.process.warn_of_rest(format_args!(
                    "memory that nothing refers to stays in the process: {error}"
                )),
            }
        }
        loaded
    }

    #[expect(clippy::too_many_arguments, reason = "one call; they are the parts of one unit of work")]
    fn fill(
        &self,
        seized: &mut Seized,
        state: &mut State,
        patch: &Patch,
        id: &Digest,
        plan: &Plan,
        bound: Bound,
        mapping: Mapping,
        unwinder: Unwinder,
    ) -> Result<Loaded, ApplyError> {
        self.note(state, Some(Journal::Loading { mapping, eh_frame: None, step: FrameStep::None }))?;
        self.clear_site(seized)?;
        let mut bindings = bound.bindings;
        for remote in bound.remote {
            let address = self.remote_symbol(seized, &remote)?;
            bindings[remote.symbol] = Binding::At(address);
        }
        let carrier = match (needs_carrier(plan, &bindings), &plan.tls) {
            (true, Some(tls)) => {
                let image = tls_image(patch, plan, mapping.base, &bindings)?;
                let file = carrier::build(id, tls, &image);
                Some(self.carrier(seized, state, &file, id, tls.needs_static)?)
            }
            _ => None,
        };
        let bindings = with_own_tls(plan, &bindings, carrier.map(|c| (c.module, c.tp_offset)));
        let linked = link(patch, plan, mapping.base, &bindings)?;
        self.write(seized, &mapping, &linked)?;
        let frames: Vec<u64> =
            patch.sections.iter().filter(|s| s.kind == SectionKind::EhFrame).map(|s| s.size).collect();
        let eh_frame = linked.eh_frame.map(|start| Region { start, size: frames.iter().sum() });
        if let (Some(region), Unwinder::Known { register, .. }) = (eh_frame, unwinder) {
            self.step(state, mapping, region.start, FrameStep::Registering)?;
            self.call(seized, "__register_frame", register, [region.start.0, 0, 0, 0, 0, 0])?;
        }
        let contents = contents(&linked.text, &linked.rodata);
        Ok(Loaded { mapping, symbols: linked.symbols, bindings, eh_frame, contents, carrier })
    }

    fn note(&self, state: &mut State, journal: Option<Journal>) -> Result<(), ApplyError> {
        state.journal = journal;
        Ok(self.location.commit(&mut &*self.process, state)?)
    }

    pub(crate) fn site(&self) -> CallSite {
        live::call_site(self.location)
    }

    /// Notes what the next call does about the unwind tables. That it was not made yet is noted before.
    pub fn step(
        &self,
        state: &mut State,
        mapping: Mapping,
        eh_frame: RunAddr,
        step: FrameStep,
    ) -> Result<(), ApplyError> {
        self.site().set_progress(self.process, CallProgress::None)?;
        self.note(state, Some(Journal::Loading { mapping, eh_frame: Some(eh_frame), step }))
    }

    /// Makes sure that no call of a killed run goes on.
    pub(crate) fn clear_site(&self, seized: &mut Seized) -> Result<(), ApplyError> {
        let site = self.site();
        match site.progress(self.process)? {
            CallProgress::Prepared | CallProgress::Begun => {
                safepoint::await_remote_work(seized, &site, self.deadline)
            }
            CallProgress::Returned | CallProgress::None | CallProgress::BrokenOff => Ok(()),
        }
    }

    /// Protects the three parts and fills them. They are never writable and executable at once: the tool writes past the
    /// protection.
    fn write(&self, seized: &mut Seized, mapping: &Mapping, linked: &Linked) -> Result<(), ApplyError> {
        let text = mapping.base;
        let rodata = text.offset(mapping.text as i64);
        let data = rodata.offset(mapping.rodata as i64);
        let parts = [
            (text, mapping.text, Protection::ReadExecute, &linked.text),
            (rodata, mapping.rodata, Protection::Read, &linked.rodata),
            (data, mapping.data, Protection::ReadWrite, &linked.data),
        ];
        safepoint::on_any_thread(seized, self.deadline, |thread| {
            let mut used = parts.iter().filter(|part| part.1 > 0);
            used.try_for_each(|(at, size, protection, _)| {
                Ok(thread.protect(*at, *size, *protection, self.deadline)?)
            })
        })?;
        self.check_protection(mapping)?;
        for (at, size, _, bytes) in parts.iter().filter(|part| part.1 > 0) {
            // Pages that stay zero need not become resident.
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            self.process.write(*at, &bytes[..used])?;
            if self.process.read_vec(*at, *size as usize)? != **bytes {
                return Err(ApplyError::Environment {
                    what: format!("what was written to {at} reads back otherwise"),
                    source: None,
                });
            }
        }
        Ok(())
    }

    /// No page of the patch may be writable and executable, and its code must be executable.
    fn check_protection(&self, mapping: &Mapping) -> Result<(), ApplyError> {
        let end = mapping.base.offset(mapping.total() as i64);
        let maps = self.process.maps()?;
        let mut ours = maps.iter().filter(|m| m.range.start < end && mapping.base < m.range.end);
        let text = maps.iter().any(|m| m.contains(mapping.base) && m.perms.execute);
        if ours.any(|m| m.perms.write && m.perms.execute) || mapping.text > 0 && !text {
            return Err(ApplyError::refused(
                "the system does not give the patch's memory the protection asked for",
            ));
        }
        Ok(())
    }

    /// Takes back a load that the registry's journal describes: of this run, or of one that was killed. False if the memory stays,
    /// because it is not known whether the unwinder refers to it.
    ///
    /// The journal is cleared before the memory is given back: what the process maps there afterwards is not ours.
    pub fn unload(
        &self,
        seized: &mut Seized,
        state: &mut State,
        unwinder: Unwinder,
    ) -> Result<bool, ApplyError> {
        let Some(Journal::Loading { mapping, eh_frame, step }) = state.journal.clone() else {
            return Ok(true);
        };
        let site = self.site();
        safepoint::await_remote_work(seized, &site, self.deadline)?;
        let mut registered = registered(step, site.progress(self.process)?);
        if let (Some(start), Some(true), Unwinder::Known { deregister, .. }) =
            (eh_frame, registered, unwinder)
        {
            self.step(state, mapping, start, FrameStep::Revoking)?;
            self.call(seized, "__deregister_frame", deregister, [start.0, 0, 0, 0, 0, 0])?;
            registered = Some(false);
        }
        self.note(state, None)?;
        if registered != Some(false) {
            return Ok(false);
        }
        safepoint::on_any_thread(seized, self.deadline, |thread| {
            Ok(thread.unmap(mapping.base, mapping.total(), self.deadline)?)
        })?;
        Ok(true)
    }

    fn call(
        &self,
        seized: &mut Seized,
        name: &str,
        function: RunAddr,
        args: [u64; 6],
    ) -> Result<u64, ApplyError> {
        let call = RemoteCall { name, function, args, site: self.site() };
        safepoint::on_safe_thread(seized, self.rules, self.tables, self.deadline, |thread| {
            thread.remote_call(&call, self.deadline.max(Instant::now() + CALL_LIMIT))
        })
    }

    fn remote_symbol(&self, seized: &mut Seized, remote: &Remote) -> Result<RunAddr, ApplyError> {
        let Remote { name, handle, .. } = remote;
        let missing =
            || ApplyError::refused(format!("`{name}` needs the program's loader, which offers no `dlsym`"));
        let dlsym = self.scope.function("dlsym")?.ok_or_else(missing)?;
        let text = self.site().put_string(self.process, name.as_bytes())?;
        match self.call(seized, "dlsym", dlsym, [*handle, text.0, 0, 0, 0, 0])? {
            0 => Err(ApplyError::refused(format!(
                "the patch needs `{name}`, which the program's loader does not find"
            ))),
            address => Ok(RunAddr(address)),
        }
    }

    /// The carrier that a failed attempt left, or a new one.
    fn carrier(
        &self,
        seized: &mut Seized,
        state: &mut State,
        file: &[u8],
        id: &Digest,
        is_static: bool,
    ) -> Result<Carrier, ApplyError> {
        let digest = Digest::of(file);
        if let Some(spare) = state.spare_carrier(&digest)
            && self.loaded_carrier(spare.handle, id, is_static)? == spare
        {
            log::info(format_args!("the carrier of the patch's thread-locals is loaded already"));
            return Ok(spare);
        }
        let handle = self.load_carrier(seized, file)?;
        let carrier = self.loaded_carrier(handle, id, is_static)?;
        state.carriers.push(CarrierRecord { file: digest, carrier });
        Ok(carrier)
    }

    fn load_carrier(&self, seized: &mut Seized, file: &[u8]) -> Result<u64, ApplyError> {
        let missing =
            || ApplyError::refused("a new thread-local needs the program's loader, which offers no `dlopen`");
        let dlopen = self.scope.function("dlopen")?.ok_or_else(missing)?;
        safepoint::on_any_thread(seized, self.deadline, |thread| {
            DLOPEN_CALLS.iter().try_for_each(|number| Ok(thread.check_syscall(*number, [0; 6])?))
        })?;
        let fd = memfd(self, seized, file)?;
        let path = carrier::path(fd, crate::apply::now());
        let text = self.site().put_string(self.process, path.as_bytes())?;
        let handle = self.call(seized, "dlopen", dlopen, [text.0, RTLD_NOW, 0, 0, 0, 0]);
        safepoint::on_any_thread(seized, self.deadline, |thread| {
            Ok(thread.remote_syscall(SYS_CLOSE, [fd, 0, 0, 0, 0, 0], self.deadline)?)
        })?
        .ok();
        match handle? {
            0 => Err(ApplyError::refused(
                "the program's loader refused the carrier of the patch's new thread-locals (no room for static TLS, or \
                 memory files are forbidden)",
            )),
            handle => Ok(handle),
        }
    }

    /// The carrier of this handle, by what the loader wrote into it.
    fn loaded_carrier(&self, handle: u64, id: &Digest, is_static: bool) -> Result<Carrier, ApplyError> {
        // glibc's `struct link_map` and musl's `struct dso` both start with the load address.
        let answers = carrier::answers(self.process.read_addr(RunAddr(handle))?);
        if self.process.read_array(answers.mark)? != carrier::mark(id) {
            return Err(ApplyError::refused(
                "the program's loader did not load the carrier that it was given",
            ));
        }
        let module = self.process.read_u64(answers.module)?;
        let offset = self.process.read_u64(answers.offset)? as i64;
        Ok(Carrier { handle, module, tp_offset: is_static.then_some(offset) })
    }
}

/// `RTLD_NOW` of `<dlfcn.h>`; without `RTLD_GLOBAL` the object stays private.
pub(crate) const RTLD_NOW: u64 = 2;
/// System call numbers of x86-64.
const SYS_CLOSE: i64 = 3;
const SYS_MEMFD_CREATE: i64 = 319;
/// What loaders do to load an object: `read`, `close`, `fstat`, `mmap`, `mprotect`, `munmap`, `pread64`, `openat`.
pub(crate) const DLOPEN_CALLS: [i64; 8] = [0, SYS_CLOSE, 5, 9, 10, 11, 17, 257];
/// `MFD_CLOEXEC` of `<linux/memfd.h>`.
const MFD_CLOEXEC: u64 = 1;
/// Time for one call, even if the deadline is near: a call that is broken off may leave a lock taken.
pub(crate) const CALL_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

fn memfd(loader: &Loader<'_>, seized: &mut Seized, contents: &[u8]) -> Result<u64, ApplyError> {
    let name = loader.site().put_string(loader.process, b"livepatch-tls")?;
    let made = safepoint::on_any_thread(seized, loader.deadline, |thread| {
        Ok(thread.remote_syscall(SYS_MEMFD_CREATE, [name.0, MFD_CLOEXEC, 0, 0, 0, 0], loader.deadline)?)
    })?;
    let made = made.map_err(std::io::Error::from);
    let fd = made.map_err(|error| ApplyError::environment("the process cannot make a memory file", error))?;
    loader.process.write_descriptor(fd, contents)?;
    Ok(fd)
}

/// Whether the unwinder knows the tables, `None` if that cannot be told.
fn registered(step: FrameStep, progress: CallProgress) -> Option<bool> {
    let made = match progress {
        CallProgress::Returned => true,
        CallProgress::Prepared | CallProgress::None => false,
        CallProgress::Begun | CallProgress::BrokenOff if step == FrameStep::None => false,
        CallProgress::Begun | CallProgress::BrokenOff => return None,
    };
    Some(match step {
        FrameStep::None => false,
        FrameStep::Registering => made,
        FrameStep::Revoking => !made,
    })
}

/// Digest of the parts of a mapped patch that nobody may change.
pub fn contents(text: &[u8], rodata: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(text);
    hasher.update(rodata);
    Digest(*hasher.finalize().as_bytes())
}

/// Checks that a mapped patch still holds what was written.
pub fn check_contents(process: &Process, state: &State, index: usize) -> Result<(), ApplyError> {
    let Record { id, mapping, contents: digest, .. } = &state.patches[index];
    let mut text = process.read_vec(mapping.base, mapping.text as usize)?;
    // A newer patch may lead on what the process kept of this one.
    for function in state.active().into_iter().flat_map(|active| &state.patches[active].functions) {
        if mapping.text_range().contains(&function.old) {
            let at = (function.old.0 - mapping.base.0) as usize;
            let entry = text.get_mut(at..at + function.jump.0.len());
            if let Some(entry) = entry.filter(|entry| **entry == function.jump.0) {
                entry.copy_from_slice(&function.saved.0);
            }
        }
    }
    let rodata = process.read_vec(mapping.base.offset(mapping.text as i64), mapping.rodata as usize)?;
    if contents(&text, &rodata) == *digest {
        return Ok(());
    }
    Err(Mismatch::Contents { id: *id }.into())
}
