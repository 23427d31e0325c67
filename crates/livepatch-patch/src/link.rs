//! The patch linker: a [`Patch`], addresses for what lies outside it, and a base address in; bytes out.

use crate::addr::RunAddr;
use crate::patch::{Patch, SymbolId};
use crate::reloc::RelocKind;

/// Where something outside the patch lives in one process. One entry for each symbol of the patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Defined by the patch itself; the linker places it.
    Own,
    /// At this address: baseline code or data, an import, or a static that an earlier patch brought in (then the
    /// patch's own copy is dropped).
    At(RunAddr),
    /// A thread-local of some loaded module.
    Tls(TlsPlace),
}

/// How to reach a thread-local variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsPlace {
    /// The loader's number of the module (1 is the executable).
    pub module: u64,
    /// Offset in the module's TLS block.
    pub offset: u64,
    /// Offset from the thread pointer, where the module has static TLS.
    pub tp_offset: Option<i64>,
}

/// Sizes of the three mapped parts, each a multiple of the page size, in this order from the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Code and veneers (read, execute).
    pub text_size: u64,
    /// Constants, GOT, unwind tables (read).
    pub rodata_size: u64,
    /// Writable data (read, write).
    pub data_size: u64,
    /// New thread-locals, if any: what a TLS carrier must provide.
    pub tls: Option<TlsPlan>,
}

/// What the TLS carrier must provide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsPlan {
    /// Size of the block in bytes.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u64,
    /// Whether code reaches it by a fixed offset from the thread pointer, so that it must be static TLS.
    pub needs_static: bool,
}

/// A linked patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// `text_size` bytes for the base.
    pub text: Vec<u8>,
    /// `rodata_size` bytes, following the text.
    pub rodata: Vec<u8>,
    /// `data_size` bytes, following the read-only part.
    pub data: Vec<u8>,
    /// Initialisation image of new thread-locals (shorter than the block if its end is zero).
    pub tls_image: Vec<u8>,
    /// Start of the unwind tables, as `__register_frame` wants it.
    pub eh_frame: Option<RunAddr>,
    /// Address of each symbol (`None` for thread-locals).
    pub symbols: Vec<Option<RunAddr>>,
}
