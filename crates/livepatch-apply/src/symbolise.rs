//! Names for addresses, for messages only: no decision rests on them.

use crate::names::demangled;
use crate::registry::Record;
use crate::target::{Module, Modules};
use livepatch_patch::{Redirect, RunAddr};
use livepatch_process::Process;
use object::{Object, ObjectSymbol};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;

/// Largest file whose symbol table is read.
const MAX_FILE: u64 = 512 << 20;

/// Finds names in the registry, the patch and the files on disk.
#[derive(Debug)]
pub struct Symboliser<'a> {
    process: &'a Process,
    modules: &'a Modules,
    records: &'a [Record],
    redirects: Vec<(RunAddr, u64, &'a str)>,
    files: RefCell<HashMap<u64, Vec<FileSymbol>>>,
}

#[derive(Debug)]
struct FileSymbol {
    start: u64,
    size: u64,
    name: String,
}

impl<'a> Symboliser<'a> {
    /// `redirects` are those of the patch at hand, for the given module.
    pub fn new(
        process: &'a Process,
        modules: &'a Modules,
        records: &'a [Record],
        patch: Option<(&'a Module, &'a [Redirect])>,
    ) -> Self {
        let redirects = patch
            .into_iter()
            .flat_map(|(module, redirects)| {
                redirects.iter().map(|r| (r.old.at(module.image.bias), r.old_size, r.path.as_str()))
            })
            .collect();
        Self { process, modules, records, redirects, files: RefCell::default() }
    }

    /// Text for a frame whose function contains this address.
    pub fn name(&self, at: RunAddr) -> String {
        let within = |start: RunAddr, size: u64| at >= start && at.0 - start.0 < size;
        let patched = |record: &'a Record| {
            let function = record.code().into_iter().find(|f| within(f.start, f.size))?;
            Some(format!("{} (patch {})", function.path(), record.name))
        };
        if let Some(name) = self.records.iter().find_map(patched) {
            return name;
        }
        if let Some((_, _, path)) = self.redirects.iter().find(|(start, size, _)| within(*start, *size)) {
            return (*path).to_owned();
        }
        let old = self.records.iter().flat_map(|record| &record.functions);
        if let Some(function) = old.into_iter().find(|f| within(f.old, f.old_size)) {
            return function.path.clone();
        }
        let Some(module) = self.modules.containing(at) else { return format!("{at}") };
        let link = at.link(module.image.bias);
        match self.in_file(module, link.0) {
            Some(name) => name,
            None => format!("{}+{link}", module.name()),
        }
    }

    fn in_file(&self, module: &Module, link: u64) -> Option<String> {
        let mut files = self.files.borrow_mut();
        let symbols = files
            .entry(module.image.span().start.0)
            .or_insert_with(|| self.read_symbols(module).unwrap_or_default());
        let after = symbols.partition_point(|symbol| symbol.start <= link);
        let symbol = symbols[..after].last()?;
        (link < symbol.start + symbol.size.max(1)).then(|| symbol.name.clone())
    }

    fn read_symbols(&self, module: &Module) -> Option<Vec<FileSymbol>> {
        let start = module.image.span().start;
        let mapping = self.modules.maps.iter().find(|mapping| mapping.contains(start))?;
        let file = self.process.open_mapped_file(mapping).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        let object = object::File::parse(&*bytes).ok()?;
        if object.build_id().ok().flatten() != module.image.build_id.as_ref().map(|id| id.as_bytes()) {
            return None;
        }
        let mut symbols: Vec<FileSymbol> = object
            .symbols()
            .chain(object.dynamic_symbols())
            .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.is_definition())
            .filter_map(|symbol| {
                let name = demangled(symbol.name().ok()?);
                Some(FileSymbol { start: symbol.address(), size: symbol.size(), name })
            })
            .collect();
        symbols.sort_by_key(|symbol| symbol.start);
        Some(symbols)
    }
}
