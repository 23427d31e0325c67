//! The inline stack at an address.

use super::demangle::demangle;
use super::elf::ImageFile;
use super::report::{FunctionRef, GuardError};
use super::side::{Image, Loaded};
use crate::findings::Place;
use livepatch_patch::LinkAddr;
use std::path::Path;

/// The functions that an instruction belongs to, innermost first, each with the place where execution stands in it.
///
/// Empty where nothing is known about the address.
///
/// # Errors
/// The image cannot be read or its debug information is damaged.
pub fn inlined_at(image: &Path, addrs: &[LinkAddr]) -> Result<Vec<Vec<FunctionRef>>, GuardError> {
    let file = ImageFile::read(image)?;
    let loaded = Loaded::new(&file)?;
    let image = Image::open(&loaded)?;
    let damaged = |source| image.damaged(source);
    let context = addr2line::Context::from_dwarf(loaded.dwarf()).map_err(damaged)?;
    let mut stacks = Vec::with_capacity(addrs.len());
    for addr in addrs {
        let mut stack = Vec::new();
        let mut frames = context.find_frames(addr.0).skip_all_loads().map_err(damaged)?;
        while let Some(frame) = frames.next().map_err(damaged)? {
            let Some(function) = frame.function else { continue };
            let path = function.raw_name().map_or_else(|_| "?".to_owned(), |name| demangle(&name));
            let place = frame
                .location
                .and_then(|location| Some(Place { file: location.file?.to_owned(), line: location.line? }));
            stack.push(FunctionRef { path, symbol: None, receiver: None, place, times: 1 });
        }
        stacks.push(stack);
    }
    Ok(stacks)
}
