//! The unwind tables of a process, gathered while it runs.

use super::entry::main_of;
use super::table::{Table, TableError, Tables};
use crate::elf::Peek;
use crate::registry::State;
use crate::target::{Module, Modules};
use livepatch_patch::RunAddr;
use livepatch_process::log;
use livepatch_process::{Process, ProcessError};
use std::ops::Range;

/// Largest unwind section that is read.
const MAX_SECTION: u64 = 1 << 30;

/// Tables of all modules and of all patches that the registries know.
///
/// A module without usable tables is left out: a thread that is inside of it counts as unverified.
pub fn gather(process: &Process, modules: &Modules, states: &[&State]) -> Result<Tables, ProcessError> {
    let mut tables = Vec::new();
    for module in &modules.list {
        match module_table(process, module)? {
            Some(Ok(table)) => tables.push(table),
            Some(Err(error)) => log::debug(format_args!("module left out: {error}")),
            None => {}
        }
    }
    for record in states.iter().flat_map(|state| &state.patches) {
        let Some(region) = record.eh_frame else { continue };
        let bytes = process.bytes(region.start, region.size.min(MAX_SECTION) as usize)?;
        match Table::scanned(&record.name, record.mapping.text_range(), (region.start, bytes)) {
            Ok(table) => tables.push(table),
            Err(error) => log::debug(format_args!("patch left out: {error}")),
        }
    }
    let main = modules.executable().and_then(|module| main_of(process, &module.image));
    Ok(Tables::new(tables).with_main(main).with_code_of(process))
}

fn module_table(
    memory: &dyn Peek,
    module: &Module,
) -> Result<Option<Result<Table, TableError>>, ProcessError> {
    let Some(header) = &module.image.eh_frame_hdr else { return Ok(None) };
    let Some(text) = text_range(module) else { return Ok(None) };
    let size = header.end.0 - header.start.0;
    let header_bytes = memory.table(header.start, size.min(MAX_SECTION) as usize)?;
    let name = module.name();
    let start = match Table::eh_frame_start(&name, (header.start, &header_bytes)) {
        Ok(start) => start,
        Err(error) => return Ok(Some(Err(error))),
    };
    let Some(segment) = module.image.segment(start) else {
        return Ok(Some(Err(TableError { module: name, what: ".eh_frame is outside the module".into() })));
    };
    let size = segment.range.end.0 - start.0;
    let bytes = memory.table(start, size.min(MAX_SECTION) as usize)?;
    Ok(Some(Table::with_header(&name, text, (header.start, header_bytes), (start, bytes))))
}

fn text_range(module: &Module) -> Option<Range<RunAddr>> {
    let code = || module.image.segments.iter().filter(|segment| segment.execute);
    Some(code().map(|s| s.range.start).min()?..code().map(|s| s.range.end).max()?)
}
