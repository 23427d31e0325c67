//! Relocation kinds of AMD64 that may occur in a patch, as data.
//!
//! Source: System V ABI AMD64 supplement, section 4.4 (relocation types), and "ELF Handling For Thread-Local Storage"
//! (U. Drepper) for the thread-local ones. The letters below are the ABI's: `S` symbol, `A` addend, `P` place,
//! `G` address of a GOT entry.

use std::fmt;

macro_rules! kinds {
    ($($variant:ident = $number:literal, $name:literal, $width:literal, $formula:expr;)*) => {
        /// A relocation type of the AMD64 ABI.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)] // the ABI's own names
        pub enum RelocKind { $($variant = $number),* }

        impl RelocKind {
            /// Every kind that the linker knows.
            pub const ALL: &[RelocKind] = &[$(RelocKind::$variant),*];

            /// The kind with this ELF relocation number.
            pub fn from_elf(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// Bytes written at the place.
            pub fn width(self) -> usize {
                match self { $(Self::$variant => $width),* }
            }

            /// What is computed.
            pub fn formula(self) -> Formula {
                match self { $(Self::$variant => $formula),* }
            }
        }

        impl fmt::Display for RelocKind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => concat!("R_X86_64_", $name)),* })
            }
        }
    };
}

impl RelocKind {
    /// Whether a field of this kind at `offset` of some code is the operand of a direct or GOT-indirect call or jump, not an address being taken.
    pub fn is_branch(self, code: &[u8], offset: u64) -> bool {
        let before = |n: usize| (offset as usize).checked_sub(n).and_then(|at| code.get(at)).copied();
        match self {
            Self::Plt32 => true,
            // e8 call, e9 jmp, 0f 8x jcc
            Self::Pc32 => {
                matches!(before(1), Some(0xe8 | 0xe9))
                    || (before(2) == Some(0x0f) && matches!(before(1), Some(0x80..=0x8f)))
            }
            // ff /2 call, ff /4 jmp, through memory at rip+disp32
            Self::GotPcRel | Self::GotPcRelX => {
                before(2) == Some(0xff) && matches!(before(1), Some(0x15 | 0x25))
            }
            _ => false,
        }
    }
}

/// What a relocation computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Formula {
    /// `S + A`
    Absolute,
    /// `S + A - P`
    Relative,
    /// `S + A - P`, where `S` may be a veneer (the place is a call or jump)
    Branch,
    /// `G + A - P`, `G` holding `S`
    Got,
    /// `G + A - P`, `G` holding the module and offset of a thread-local, for `__tls_get_addr`
    TlsGd,
    /// `G + A - P`, `G` holding the module of a thread-local and zero, for `__tls_get_addr`
    TlsLd,
    /// offset of the thread-local in its module's block, `+ A`
    DtpOff,
    /// `G + A - P`, `G` holding the thread-local's offset from the thread pointer
    GotTpOff,
    /// the thread-local's offset from the thread pointer, `+ A`
    TpOff,
}

kinds! {
    Abs64 = 1, "64", 8, Formula::Absolute;
    Pc32 = 2, "PC32", 4, Formula::Relative;
    Plt32 = 4, "PLT32", 4, Formula::Branch;
    GotPcRel = 9, "GOTPCREL", 4, Formula::Got;
    Abs32 = 10, "32", 4, Formula::Absolute;
    Abs32S = 11, "32S", 4, Formula::Absolute;
    DtpOff64 = 17, "DTPOFF64", 8, Formula::DtpOff;
    TlsGd = 19, "TLSGD", 4, Formula::TlsGd;
    TlsLd = 20, "TLSLD", 4, Formula::TlsLd;
    DtpOff32 = 21, "DTPOFF32", 4, Formula::DtpOff;
    GotTpOff = 22, "GOTTPOFF", 4, Formula::GotTpOff;
    TpOff32 = 23, "TPOFF32", 4, Formula::TpOff;
    Pc64 = 24, "PC64", 8, Formula::Relative;
    GotPcRelX = 41, "GOTPCRELX", 4, Formula::Got;
    RexGotPcRelX = 42, "REX_GOTPCRELX", 4, Formula::Got;
}

/// The value does not fit the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} value {value:#x} does not fit its {width}-byte place", width = kind.width())]
pub struct OutOfRange {
    /// The relocation's kind.
    pub kind: RelocKind,
    /// The computed value.
    pub value: i128,
}

impl RelocKind {
    /// Writes `value` over `place`, which is `width()` bytes long.
    ///
    /// # Errors
    /// The value is outside the range of the field: signed 32 bits, unsigned 32 bits for [`RelocKind::Abs32`].
    ///
    /// # Panics
    /// `place` has another length than `width()`.
    pub fn write(self, place: &mut [u8], value: i128) -> Result<(), OutOfRange> {
        let out_of_range = |_| OutOfRange { kind: self, value };
        match (self, self.width()) {
            (Self::Abs32, _) => {
                place.copy_from_slice(&u32::try_from(value).map_err(out_of_range)?.to_le_bytes());
            }
            (_, 4) => place.copy_from_slice(&i32::try_from(value).map_err(out_of_range)?.to_le_bytes()),
            (Self::Abs64, _) => {
                place.copy_from_slice(&u64::try_from(value).map_err(out_of_range)?.to_le_bytes());
            }
            _ => place.copy_from_slice(&i64::try_from(value).map_err(out_of_range)?.to_le_bytes()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for &kind in RelocKind::ALL {
            assert_eq!(RelocKind::from_elf(kind as u32), Some(kind));
        }
        for unknown in [0, 3, 5, 25, 37, 43, 0xffff] {
            assert_eq!(RelocKind::from_elf(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn both_edges_of_every_width() {
        let fits = |kind: RelocKind, value: i128| kind.write(&mut vec![0; kind.width()], value).is_ok();
        for &kind in RelocKind::ALL {
            let (low, high) = match (kind, kind.width()) {
                (RelocKind::Abs32, _) => (0, u32::MAX as i128),
                (RelocKind::Abs64, _) => (0, u64::MAX as i128),
                (_, 4) => (i32::MIN as i128, i32::MAX as i128),
                _ => (i64::MIN as i128, i64::MAX as i128),
            };
            assert!(fits(kind, low) && fits(kind, high), "{kind}");
            assert!(!fits(kind, low - 1) && !fits(kind, high + 1), "{kind}");
        }
    }

    #[test]
    fn little_endian() {
        let mut place = [0; 4];
        RelocKind::Pc32.write(&mut place, -2).unwrap();
        assert_eq!(place, [0xfe, 0xff, 0xff, 0xff]);
    }
}
