//! The TLS carrier: a shared object without code whose only purpose is its `PT_TLS` segment.
//!
//! A thread-local needs a block in every thread, present and future, and only the target's loader can provide that. The
//! carrier is loaded by it, and two relocations in its data make the loader write down what the linker must know:
//!
//! ```text
//! 0x0000  ELF header · 5 program headers · symbol table · hash table · relocations · strings     R
//! 0x1000  mark (8 bytes) · module number · offset from the thread pointer · dynamic section      RW
//! 0x2000  initialisation image                                                                   RW, TLS
//! ```

use livepatch_patch::link::TlsPlan;
use livepatch_patch::{Digest, RunAddr};
use object::elf;

/// Offset of the data segment, in the file and from the load address.
const DATA: u64 = 0x1000;
const IMAGE: u64 = 0x2000;
const MODULE: u64 = DATA + 8;
const OFFSET: u64 = DATA + 16;
const DYNAMIC: u64 = DATA + 0x20;
const PHDRS: usize = 5;
const SYMTAB: u64 = 64 + PHDRS as u64 * 56;
const HASH: u64 = SYMTAB + 24;
const RELA: u64 = HASH + 16;
const STRTAB: u64 = RELA + 2 * 24;

/// `DF_STATIC_TLS` and `DF_BIND_NOW` of the ELF specification.
const DF_STATIC_TLS: u64 = 0x10;
const DF_BIND_NOW: u64 = 0x8;
/// `DF_1_NOW` and `DF_1_NODELETE`: the object stays, whatever the program closes.
const DF_1: u64 = 0x1 | 0x8;

/// Where the loader's answers are in a carrier that is loaded at some address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The mark that tells this carrier from any other mapping.
    pub mark: RunAddr,
    /// The loader's number of the module.
    pub module: RunAddr,
    /// Offset of the block from the thread pointer (0 if not static).
    pub offset: RunAddr,
}

/// Where to read in a carrier with this load address.
pub fn answers(load: RunAddr) -> Answers {
    Answers {
        mark: load.offset(DATA as i64),
        module: load.offset(MODULE as i64),
        offset: load.offset(OFFSET as i64),
    }
}

/// A path to a descriptor of the process that no carrier had before: the loader takes two files of one name for the same
/// object, and numbers of descriptors come again. `unique` is spelt in parts of the path that lead nowhere else.
pub fn path(fd: u64, unique: u64) -> String {
    let spelt: String = (0..64).map(|bit| if unique >> bit & 1 == 1 { "./" } else { "/" }).collect();
    format!("/proc/self/fd/{spelt}{fd}")
}

/// The mark of a patch's carrier.
pub fn mark(id: &Digest) -> [u8; 8] {
    let mut mark = [0; 8];
    mark.copy_from_slice(&id.0[..8]);
    mark
}

struct Out(Vec<u8>);

impl Out {
    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u64s(&mut self, values: &[u64]) {
        for value in values {
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }
    fn pad(&mut self, to: u64) {
        self.0.resize(to as usize, 0);
    }
    fn header(&mut self, kind: u32, flags: u32, at: u64, file_size: u64, size: u64, align: u64) {
        self.u32(kind);
        self.u32(flags);
        self.u64s(&[at, at, at, file_size, size, align]);
    }
}

/// The carrier file for a patch's thread-locals. `image` is their initial contents; alignments above a page do not occur
/// (the patch format forbids them).
pub fn build(id: &Digest, plan: &TlsPlan, image: &[u8]) -> Vec<u8> {
    let soname = format!("livepatch-{}", id.short());
    let strings = soname.len() as u64 + 2;
    let (read, write) = (elf::PF_R.0, elf::PF_W.0);
    let dynamic = dynamic_section(plan, strings);
    let data_end = IMAGE + image.len() as u64;

    let mut out = Out(Vec::with_capacity(data_end as usize));
    out.0.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.u16(elf::ET_DYN.0);
    out.u16(elf::EM_X86_64.0);
    out.u32(1);
    out.u64s(&[0, 64, 0]);
    out.u32(0);
    for half in [64, 56, PHDRS as u16, 64, 0, 0] {
        out.u16(half);
    }
    out.header(elf::PT_LOAD.0, read, 0, STRTAB + strings, STRTAB + strings, 0x1000);
    out.header(elf::PT_LOAD.0, read | write, DATA, data_end - DATA, data_end - DATA, 0x1000);
    out.header(
        elf::PT_DYNAMIC.0,
        read | write,
        DYNAMIC,
        dynamic.len() as u64 * 8,
        dynamic.len() as u64 * 8,
        8,
    );
    out.header(elf::PT_TLS.0, read, IMAGE, image.len() as u64, plan.size, plan.align.max(1));
    out.header(elf::PT_GNU_STACK.0, read | write, 0, 0, 0, 16);

    out.pad(HASH);
    for word in [1, 1, 0, 0] {
        out.u32(word);
    }
    out.u64s(&[MODULE, u64::from(elf::R_X86_64_DTPMOD64.0), 0]);
    out.u64s(&[OFFSET, u64::from(elf::R_X86_64_TPOFF64.0), 0]);
    out.0.push(0);
    out.0.extend_from_slice(soname.as_bytes());
    out.pad(DATA);
    out.0.extend_from_slice(&mark(id));
    out.pad(DYNAMIC);
    out.u64s(&dynamic);
    out.pad(IMAGE);
    out.0.extend_from_slice(image);
    out.0
}

fn dynamic_section(plan: &TlsPlan, strings: u64) -> Vec<u64> {
    let static_tls = if plan.needs_static { DF_STATIC_TLS } else { 0 };
    let relocations = if plan.needs_static { 48 } else { 24 };
    let entries = [
        (elf::DT_SONAME.0, 1),
        (elf::DT_HASH.0, HASH),
        (elf::DT_STRTAB.0, STRTAB),
        (elf::DT_SYMTAB.0, SYMTAB),
        (elf::DT_STRSZ.0, strings),
        (elf::DT_SYMENT.0, 24),
        (elf::DT_RELA.0, RELA),
        (elf::DT_RELASZ.0, relocations),
        (elf::DT_RELAENT.0, 24),
        (elf::DT_FLAGS.0, DF_BIND_NOW | static_tls),
        (elf::DT_FLAGS_1.0, DF_1),
        (elf::DT_NULL.0, 0),
    ];
    entries.iter().flat_map(|(tag, value)| [*tag as u64, *value]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object, ObjectSegment, read::elf::ElfFile64};

    #[test]
    fn other_readers_understand_it() {
        let id = Digest::of(b"a patch");
        let plan = TlsPlan { size: 0x40, align: 32, needs_static: true, offsets: Vec::new() };
        let bytes = build(&id, &plan, &[1, 2, 3]);
        let file = ElfFile64::<object::Endianness>::parse(&*bytes).unwrap();
        assert_eq!(file.segments().count(), 2);
        let data = file.segments().nth(1).unwrap();
        assert_eq!(data.data_range(DATA, 8).unwrap(), Some(&mark(&id)[..]));
        assert_eq!(data.data_range(IMAGE, 3).unwrap(), Some(&[1, 2, 3][..]));
        assert_eq!(answers(RunAddr(0x10_0000)).module, RunAddr(0x10_1008));
    }
}
