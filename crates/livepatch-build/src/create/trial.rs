//! Linking a fresh patch at a made-up address.

use livepatch_patch::{
    Bias, Binding, LinkAddr, LinkError, Patch, Place, RunAddr, SectionKind, TlsPlace, plan, tls_image,
};

/// A load bias as the kernel chooses them for position-independent programs.
const BIAS: Bias = Bias(0x5555_5555_4000);
/// Where a library function may be: far beyond the reach of 32 bits.
const FAR: RunAddr = RunAddr(0x7fff_f7c0_0000);

/// Links the patch as `apply` will, with everything outside it at plausible places; `fixed` if the image is loaded where
/// it was linked for.
///
/// # Errors
/// It does not link.
pub(super) fn link(patch: &Patch, fixed: bool) -> Result<(), LinkError> {
    let bias = if fixed { Bias(0) } else { BIAS };
    let plan = plan(patch)?;
    let highest = patch.symbols.iter().filter_map(|symbol| match symbol.place {
        Place::Image { addr, size } => addr.checked_add(size),
        _ => None,
    });
    let end = highest.max().unwrap_or(LinkAddr(0)).at(bias);
    let base = RunAddr((end.0 + (16 << 20)).next_multiple_of(livepatch_patch::link::PAGE));
    let bindings: Vec<_> = patch.symbols.iter().map(|symbol| binding(patch, symbol.place, bias)).collect();
    link_at(patch, &plan, base, &bindings)
}

fn link_at(
    patch: &Patch,
    plan: &livepatch_patch::Plan,
    base: RunAddr,
    bindings: &[Binding],
) -> Result<(), LinkError> {
    tls_image(patch, plan, base, bindings)?;
    livepatch_patch::link(patch, plan, base, bindings).map(drop)
}

fn binding(patch: &Patch, place: Place, bias: Bias) -> Binding {
    let tls =
        |offset: u64| Binding::Tls(TlsPlace { module: 1, offset, tp_offset: Some(-4096 + offset as i64) });
    match place {
        Place::Section { section, offset, .. } => match patch.sections[section.0 as usize].kind {
            SectionKind::TlsData | SectionKind::TlsBss => tls(offset),
            _ => Binding::Own,
        },
        Place::Image { addr, .. } => Binding::At(addr.at(bias)),
        Place::ImageTls { offset } => tls(offset),
        Place::Import { .. } => Binding::At(FAR),
    }
}
