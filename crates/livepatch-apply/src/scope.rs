//! Which definition an undefined dynamic symbol of a module binds to, found without running the target's loader.
//!
//! The order is the loader's own: its list of loaded objects (`r_debug`, `link_map`), restricted to what is in the module's
//! scope: the executable and what it needs, objects preloaded, and the module with what it needs. Objects that were
//! loaded privately by `dlopen` are left out.

use crate::dynsym::{DefinitionKind, DynamicSymbols};
use crate::elf::Peek;
use crate::error::ApplyError;
use crate::library::Library;
use crate::target::{Module, Modules};
use livepatch_patch::RunAddr;
use livepatch_process::{Process, ProcessError};
use object::elf;
use std::collections::HashSet;

/// Where a name leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// To this address.
    At(RunAddr),
    /// To an indirect function: the loader knows which implementation it chose.
    AskLoader {
        /// Its handle of the library.
        handle: u64,
    },
}

/// The modules that a name is looked up in, in order.
#[derive(Debug)]
pub struct Scope<'a> {
    process: &'a Process,
    /// Each with the handle by which the loader is asked for something in it.
    modules: Vec<(&'a Module, u64)>,
}

/// `RTLD_DEFAULT` of `<dlfcn.h>`: whatever the program itself would find.
const DEFAULT: u64 = 0;

/// More objects than any process loads; a damaged list ends here.
const MAX_OBJECTS: usize = 1 << 16;
/// `r_map` in `struct r_debug`, `l_ld` and `l_next` in `struct link_map` of `<link.h>`.
const R_MAP: i64 = 8;
const L_LD: i64 = 16;
const L_NEXT: i64 = 24;

impl<'a> Scope<'a> {
    /// The scope of `module`.
    pub fn of(process: &'a Process, modules: &'a Modules, module: &'a Module) -> Result<Self, ProcessError> {
        let loaded = load_order(process, modules)?;
        let mut wanted = HashSet::new();
        for root in modules.executable().into_iter().chain([module]) {
            add_needed(process, &loaded, root, &mut wanted)?;
        }
        // What stands before the first object that the executable needs was preloaded.
        let preloaded = loaded.iter().take_while(|m| m.executable || !wanted.contains(&key(m))).count();
        let in_scope = |(i, m): &(usize, &&Module)| *i < preloaded || wanted.contains(&key(m));
        let modules = loaded.iter().enumerate().filter(in_scope).map(|(_, m)| (*m, DEFAULT)).collect();
        Ok(Self { process, modules })
    }

    /// With libraries behind it that were loaded for a patch.
    pub fn with(mut self, modules: &'a Modules, libraries: &[Library]) -> Result<Self, ProcessError> {
        for library in libraries {
            // glibc's and musl's handles are entries of the loader's list.
            let dynamic = RunAddr(self.process.word(RunAddr(library.handle).offset(L_LD))?);
            let found =
                modules.list.iter().find(|m| m.image.dynamic.as_ref().is_some_and(|d| d.at == dynamic));
            self.modules.extend(found.map(|module| (module, library.handle)));
        }
        Ok(self)
    }

    /// Looks a name up; `None` if nothing defines it.
    pub fn resolve(&self, name: &str) -> Result<Option<Resolved>, ApplyError> {
        for (module, handle) in &self.modules {
            let Some(symbols) = DynamicSymbols::open(self.process, &module.image)? else { continue };
            let Some(definition) = symbols.find(name)? else { continue };
            return match definition.kind {
                DefinitionKind::Indirect => Ok(Some(Resolved::AskLoader { handle: *handle })),
                DefinitionKind::ThreadLocal => Err(ApplyError::refused(format!(
                    "the patch refers to `{name}`, a thread-local variable of {}",
                    module.name()
                ))),
                DefinitionKind::Function | DefinitionKind::Other => {
                    Ok(Some(Resolved::At(definition.address)))
                }
            };
        }
        Ok(None)
    }

    /// The module that defines a function under this name, with its address.
    pub fn function(&self, name: &str) -> Result<Option<RunAddr>, ProcessError> {
        for (module, _) in &self.modules {
            let Some(symbols) = DynamicSymbols::open(self.process, &module.image)? else { continue };
            if let Some(definition) = symbols.find(name)?
                && definition.kind == DefinitionKind::Function
            {
                return Ok(Some(definition.address));
            }
        }
        Ok(None)
    }
}

fn key(module: &Module) -> u64 {
    module.image.span().start.0
}

fn load_order<'a>(process: &Process, modules: &'a Modules) -> Result<Vec<&'a Module>, ProcessError> {
    let Some(executable) = modules.executable() else { return Ok(Vec::new()) };
    let debug = executable.image.dynamic.as_ref().and_then(|d| d.get(elf::DT_DEBUG.0)).filter(|at| *at != 0);
    let Some(debug) = debug else { return Ok(vec![executable]) };
    let mut found = Vec::new();
    let mut link = process.word(RunAddr(debug).offset(R_MAP))?;
    while link != 0 && found.len() < MAX_OBJECTS {
        let dynamic = RunAddr(process.word(RunAddr(link).offset(L_LD))?);
        let is_it = |m: &&Module| m.image.dynamic.as_ref().is_some_and(|d| d.at == dynamic);
        found.extend(modules.list.iter().find(is_it));
        link = process.word(RunAddr(link).offset(L_NEXT))?;
    }
    Ok(found)
}

/// Adds `root` and everything that it needs, directly or not.
fn add_needed(
    process: &Process,
    loaded: &[&Module],
    root: &Module,
    wanted: &mut HashSet<u64>,
) -> Result<(), ProcessError> {
    let mut queue = vec![root];
    while let Some(module) = queue.pop() {
        if !wanted.insert(key(module)) {
            continue;
        }
        let Some(dynamic) = &module.image.dynamic else { continue };
        let Some(symbols) = DynamicSymbols::open(process, &module.image)? else { continue };
        let names: Vec<String> = dynamic.all(elf::DT_NEEDED.0).filter_map(|at| symbols.string(at)).collect();
        for candidate in loaded {
            let own = soname(process, candidate)?;
            if names.iter().any(|name| own.as_deref() == Some(name) || candidate.path.ends_with(name)) {
                queue.push(candidate);
            }
        }
    }
    Ok(())
}

fn soname(process: &Process, module: &Module) -> Result<Option<String>, ProcessError> {
    let Some(at) = module.image.dynamic.as_ref().and_then(|d| d.get(elf::DT_SONAME.0)) else {
        return Ok(None);
    };
    let symbols = DynamicSymbols::open(process as &dyn Peek, &module.image)?;
    Ok(symbols.and_then(|symbols| symbols.string(at)))
}
