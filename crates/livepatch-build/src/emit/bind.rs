//! What a name in patched code is bound to.

use crate::diff::Diff;
use crate::diff::program::At;
use crate::image::{ImageSymbol, Import};
use crate::objects::Kind;
use livepatch_patch::{LinkAddr, Place};
use std::collections::HashSet;

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// The patch carries it.
    Own(At),
    /// It lives in the image.
    Image {
        place: Place,
        /// Old and new section, if it is a variable of a changed object.
        shared: Option<(At, At)>,
    },
    /// Another module provides it.
    Import(Import),
}

/// Binds a reference by name; `target` is its definition in the new program, if that object is loaded.
pub(super) fn binding(
    diff: &mut Diff<'_>,
    changed: &HashSet<At>,
    name: &str,
    target: Option<At>,
    call: bool,
) -> Result<Bound, String> {
    match target {
        // A definition that the linker dropped for an equal one elsewhere (COMDAT, weak) says nothing but its name.
        // Nor is a section that the program finds by its name anything but the running one.
        Some(at) if diff.new.addr(at).is_some() && diff.new.section(at).kind != Kind::Special => {
            Ok(defined(diff, changed, at, call))
        }
        // An empty variable has no line in the linker's map. The running one, if there is one, has a symbol; else there is
        // nothing but an address to agree on.
        Some(at) if is_empty(diff, at) && diff.old.image.symbols(name).is_empty() => Ok(Bound::Own(at)),
        _ => external(diff, changed, name, call),
    }
}

fn is_empty(diff: &Diff<'_>, at: At) -> bool {
    let section = diff.new.section(at);
    section.size == 0 && section.kind != Kind::Special && !section.kind.is_tls()
}

fn defined(diff: &Diff<'_>, changed: &HashSet<At>, at: At, call: bool) -> Bound {
    let kind = diff.new.section(at).kind;
    if changed.contains(&at) {
        let old = (!call).then(|| diff.partners.get(&at)).flatten();
        return match old.and_then(|old| diff.old.addr(*old)) {
            Some(addr) => image(diff, addr, at, None),
            None => Bound::Own(at),
        };
    }
    let old = if kind.is_variable() { diff.partners.get(&at) } else { diff.twins.get(&at) };
    if let Some(addr) = old.and_then(|old| diff.old.addr(*old)) {
        let shared = old.filter(|_| kind.is_variable()).map(|old| (*old, at));
        return image(diff, addr, at, shared);
    }
    if diff.new.is_shared(at)
        && let Some(addr) = addr_in_old(diff, at)
    {
        return image(diff, addr, at, None);
    }
    Bound::Own(at)
}

fn image(diff: &Diff<'_>, addr: LinkAddr, at: At, shared: Option<(At, At)>) -> Bound {
    let section = diff.new.section(at);
    let place = match (section.kind.is_tls(), diff.old.image.tls) {
        (true, Some(tls)) => Place::ImageTls { offset: addr.0 - tls.addr.0 },
        _ => Place::Image { addr, size: section.size },
    };
    Bound::Image { place, shared }
}

/// Where a section of an object that both builds have lies in the old image.
pub(super) fn addr_in_old(diff: &Diff<'_>, at: At) -> Option<LinkAddr> {
    diff.old.addr_of_equal(diff.new.unit(at), at.section)
}

fn external(diff: &mut Diff<'_>, changed: &HashSet<At>, name: &str, call: bool) -> Result<Bound, String> {
    if let ([symbol], [] | [_]) = (diff.old.image.symbols(name), diff.new.image.symbols(name)) {
        return Ok(Bound::Image { place: place(*symbol), shared: None });
    }
    let defined_in_new = !diff.new.image.symbols(name).is_empty();
    if defined_in_new {
        let found = diff.new.load_definition(name).map_err(|e| e.to_string())?;
        if let Some((unit, symbol)) = found
            && let crate::objects::Def::Section(section, _) = diff.new.units[unit as usize].symbol(symbol).def
        {
            let at = At { unit, section };
            if diff.new.addr(at).is_some() {
                return Ok(defined(diff, changed, at, call));
            }
        }
        return Err(format!(
            "it refers to `{name}`, of which the program has several copies that cannot be told apart"
        ));
    }
    match diff.old.image.import(name) {
        Some(import) => Ok(Bound::Import(import)),
        None => match diff.new.image.import(name) {
            Some(Import { weak, .. }) => Ok(Bound::Import(Import { got: None, weak })),
            None => Err(format!("it refers to `{name}`, which neither build defines")),
        },
    }
}

fn place(symbol: ImageSymbol) -> Place {
    if symbol.tls {
        Place::ImageTls { offset: symbol.value }
    } else {
        Place::Image { addr: LinkAddr(symbol.value), size: symbol.size }
    }
}
