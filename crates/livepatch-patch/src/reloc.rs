//! Relocation kinds of AMD64 that may occur in a patch, as data.
//!
//! Source: System V ABI AMD64 supplement, chapter 4.4 (relocation types) and the ELF TLS specification (U. Drepper).

use serde::{Deserialize, Serialize};

/// A relocation type of the AMD64 ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u32)]
#[allow(missing_docs)] // the ABI's own names, described in RULES
pub enum RelocKind {
    Abs64 = 1,
    Pc32 = 2,
    Plt32 = 4,
    GotPcRel = 9,
    Abs32 = 10,
    Abs32S = 11,
    DtpOff64 = 17,
    TlsGd = 19,
    TlsLd = 20,
    DtpOff32 = 21,
    GotTpOff = 22,
    TpOff32 = 23,
    Pc64 = 24,
    GotPcRelX = 41,
    RexGotPcRelX = 42,
}
