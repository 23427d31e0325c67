//! Thread-local access sequences.
//!
//! The compiler does not know that it compiles an executable and asks the loader for each address; a static linker
//! turns such a sequence into a plain offset from the thread pointer. In an executable the image's own thread-locals
//! have such an offset, and so have the patch's (their carrier has static TLS), so the patch gets the same.
//!
//! Source: "ELF Handling For Thread-Local Storage" (U. Drepper), sections 4.1.6, 4.2.6 and 5.5 (x86-64 GD → LE, LD → LE);
//! System V ABI AMD64 supplement for the `call *__tls_get_addr@GOTPCREL(%rip)` forms.

use crate::objects::Reloc;
use livepatch_patch::{ImageKind, Place, RelocKind, Symbol};

/// Rewrites the sequences in `bytes` where the image is an executable; returns the relocations to use.
pub(super) fn relax(kind: ImageKind, bytes: &mut [u8], relocs: &[Reloc]) -> Result<Vec<Reloc>, String> {
    let mut out = Vec::with_capacity(relocs.len());
    let mut relocs = relocs.iter().copied().peekable();
    while let Some(reloc) = relocs.next() {
        match RelocKind::from_elf(reloc.kind) {
            Some(RelocKind::TlsGd) if kind == ImageKind::Executable => {
                let call = relocs.next().ok_or("a thread-local access without its call")?;
                out.push(general_dynamic(bytes, reloc, call)?);
            }
            Some(RelocKind::TlsLd) if kind == ImageKind::Executable => {
                let call = relocs.next().ok_or("a thread-local access without its call")?;
                local_dynamic(bytes, reloc, call)?;
            }
            Some(RelocKind::DtpOff32) if kind == ImageKind::Executable => {
                out.push(Reloc { kind: RelocKind::TpOff32 as u32, ..reloc });
            }
            _ => out.push(reloc),
        }
    }
    Ok(out)
}

/// `data16 lea x@tlsgd(%rip),%rdi; call __tls_get_addr` → `mov %fs:0,%rax; lea x@tpoff(%rax),%rax`, 16 bytes each.
fn general_dynamic(bytes: &mut [u8], reloc: Reloc, call: Reloc) -> Result<Reloc, String> {
    let unknown = || "an unknown sequence for a thread-local access".to_owned();
    let start = (reloc.offset as usize).checked_sub(4).ok_or_else(unknown)?;
    let sequence = bytes.get_mut(start..start + 16).ok_or_else(unknown)?;
    let is_call = sequence[8..12] == [0x66, 0x66, 0x48, 0xe8] || sequence[8..12] == [0x66, 0x48, 0xff, 0x15];
    if sequence[..4] != [0x66, 0x48, 0x8d, 0x3d] || !is_call || call.offset != reloc.offset + 8 {
        return Err(unknown());
    }
    sequence.copy_from_slice(&[
        0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, // mov %fs:0,%rax
        0x48, 0x8d, 0x80, 0, 0, 0, 0, // lea x@tpoff(%rax),%rax
    ]);
    // The old field counted from the end of its instruction, the new one does not.
    let addend = reloc.addend + 4;
    Ok(Reloc { offset: reloc.offset + 8, kind: RelocKind::TpOff32 as u32, symbol: reloc.symbol, addend })
}

/// `lea x@tlsld(%rip),%rdi; call __tls_get_addr` → `mov %fs:0,%rax`, padded with prefixes to the same length.
fn local_dynamic(bytes: &mut [u8], reloc: Reloc, call: Reloc) -> Result<(), String> {
    let unknown = || "an unknown sequence for local thread-local accesses".to_owned();
    let start = (reloc.offset as usize).checked_sub(3).ok_or_else(unknown)?;
    let head = bytes.get(start..start + 9).ok_or_else(unknown)?;
    let (length, call_at) = match head[7..9] {
        [0xe8, _] => (12, reloc.offset + 5),
        [0xff, 0x15] => (13, reloc.offset + 6),
        _ => return Err(unknown()),
    };
    if head[..3] != [0x48, 0x8d, 0x3d] || call.offset != call_at {
        return Err(unknown());
    }
    let sequence = bytes.get_mut(start..start + length).ok_or_else(unknown)?;
    let (prefixes, mov) = sequence.split_at_mut(length - 9);
    prefixes.fill(0x66);
    mov.copy_from_slice(&[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0]);
    Ok(())
}

/// Whether code of a shared object reaches thread-locals of the image and new ones, which are of another module, from one start:
/// the compiler asks the loader once for the start of the module's block (local-dynamic) and adds distances, which are spread over
/// the instructions, so that no sequence could be made another.
pub(super) fn mixes_modules(relocs: &[livepatch_patch::Reloc], symbols: &[Symbol]) -> bool {
    let is_image =
        |id: livepatch_patch::SymbolId| matches!(symbols[id.0 as usize].place, Place::ImageTls { .. });
    let local = relocs.iter().filter(|r| matches!(r.kind, RelocKind::TlsLd | RelocKind::DtpOff32));
    let modules: std::collections::HashSet<bool> = local.map(|r| is_image(r.symbol)).collect();
    modules.len() > 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::SymIx;

    fn reloc(offset: u64, kind: RelocKind, symbol: u32, addend: i64) -> Reloc {
        Reloc { offset, kind: kind as u32, symbol: SymIx(symbol), addend }
    }

    #[test]
    fn general_dynamic_becomes_an_offset() {
        for call in [[0x66, 0x66, 0x48, 0xe8], [0x66, 0x48, 0xff, 0x15]] {
            let mut bytes = vec![0x90, 0x66, 0x48, 0x8d, 0x3d, 0, 0, 0, 0];
            bytes.extend(call);
            bytes.extend([0, 0, 0, 0, 0xc3]);
            let relocs = [reloc(5, RelocKind::TlsGd, 1, -4), reloc(13, RelocKind::Plt32, 2, -4)];
            let out = relax(ImageKind::Executable, &mut bytes, &relocs).unwrap();
            assert_eq!(out, [reloc(13, RelocKind::TpOff32, 1, 0)]);
            assert_eq!(bytes[1..6], [0x64, 0x48, 0x8b, 0x04, 0x25]);
            assert_eq!(bytes[10..13], [0x48, 0x8d, 0x80]);
            assert_eq!((bytes[0], bytes[17]), (0x90, 0xc3));
        }
    }

    #[test]
    fn local_dynamic_becomes_the_thread_pointer() {
        for (call, length) in [(vec![0xe8], 12), (vec![0xff, 0x15], 13)] {
            let mut bytes = vec![0x48, 0x8d, 0x3d, 0, 0, 0, 0];
            let call_at = 7 + call.len() as u64;
            bytes.extend(call);
            bytes.extend([0, 0, 0, 0]);
            assert_eq!(bytes.len(), length);
            let relocs = [
                reloc(3, RelocKind::TlsLd, 1, -4),
                reloc(call_at, RelocKind::Plt32, 2, -4),
                reloc(40, RelocKind::DtpOff32, 1, 8),
            ];
            let out = relax(ImageKind::Executable, &mut bytes, &relocs).unwrap();
            assert_eq!(out, [reloc(40, RelocKind::TpOff32, 1, 8)]);
            assert_eq!(bytes[length - 9..length - 4], [0x64, 0x48, 0x8b, 0x04, 0x25]);
        }
    }

    #[test]
    fn shared_objects_and_unknown_sequences() {
        let relocs = [reloc(5, RelocKind::TlsGd, 1, -4), reloc(13, RelocKind::Plt32, 2, -4)];
        let mut bytes = vec![0; 20];
        assert_eq!(relax(ImageKind::SharedObject, &mut bytes, &relocs).unwrap(), relocs);
        assert!(relax(ImageKind::Executable, &mut bytes, &relocs).is_err());
        assert!(relax(ImageKind::Executable, &mut bytes, &relocs[..1]).is_err());
    }
}
