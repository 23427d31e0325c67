//! Addresses that cannot be mixed up.
//!
//! A baseline image is linked at addresses of its own ([`LinkAddr`]) and runs at others ([`RunAddr`]); the two
//! differ by the load [`Bias`] of the module. Nothing else converts one into the other.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An address as the linker assigned it: relative to the image, the same in every process that runs it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkAddr(pub u64);

/// An address in the address space of a running process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunAddr(pub u64);

/// What is added to a [`LinkAddr`] to get the [`RunAddr`] in one process (0 for a position-dependent executable).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bias(pub u64);

impl LinkAddr {
    /// The address at which this byte of the image lives in a process with the given load bias.
    pub fn at(self, bias: Bias) -> RunAddr {
        RunAddr(self.0.wrapping_add(bias.0))
    }

    /// This address moved by `delta` bytes, or `None` on overflow.
    pub fn checked_add(self, delta: u64) -> Option<Self> {
        self.0.checked_add(delta).map(Self)
    }
}

impl RunAddr {
    /// The image-relative address of this byte in a module with the given load bias.
    pub fn link(self, bias: Bias) -> LinkAddr {
        LinkAddr(self.0.wrapping_sub(bias.0))
    }

    /// This address moved by `delta` bytes, wrapping like address arithmetic in the target does.
    pub fn offset(self, delta: i64) -> Self {
        Self(self.0.wrapping_add_signed(delta))
    }

    /// The signed distance `self - from`, as a PC-relative relocation needs it.
    pub fn distance_from(self, from: RunAddr) -> i64 {
        self.0.wrapping_sub(from.0) as i64
    }
}

macro_rules! hex_fmt {
    ($($ty:ident),*) => {$(
        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($ty), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    )*};
}
hex_fmt!(LinkAddr, RunAddr, Bias);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bias_round_trips() {
        let bias = Bias(0x5555_5555_4000);
        let link = LinkAddr(0x1234);
        assert_eq!(link.at(bias), RunAddr(0x5555_5555_5234));
        assert_eq!(link.at(bias).link(bias), link);
    }

    #[test]
    fn distance_is_signed() {
        assert_eq!(RunAddr(0x1000).distance_from(RunAddr(0x2000)), -0x1000);
        assert_eq!(RunAddr(0x2000).offset(-0x1000), RunAddr(0x1000));
    }
}
