//! The livepatch patch file: the patch as a value, its ELF container, and the linker that turns it into bytes for one
//! address in one process.
//!
//! Everything here is pure: no I/O, no `unsafe`. The builder uses it to write a patch and to link it for a trial; the
//! production side uses the same code to link it for real.
#![forbid(unsafe_code)]

pub mod addr;
mod awaits;
mod chain;
pub mod container;
pub mod ident;
pub mod item;
mod kept;
pub mod link;
pub mod patch;
pub mod reloc;
pub mod select;

pub use addr::{Bias, LinkAddr, RunAddr};
pub use awaits::{Await, in_other_order, in_other_place};
pub use chain::chain;
pub use container::ContainerError;
pub use ident::{Arch, BuildId, Digest};
pub use item::ItemName;
pub use kept::{Kept, LOCATION, Tag, names_call_site, plain};
pub use link::{Binding, LinkError, Linked, Plan, TlsPlace, TlsPlan, link, plan, tls_image};
pub use patch::*;
pub use reloc::RelocKind;
pub use select::{Part, SelectError, Selected, Selection};
