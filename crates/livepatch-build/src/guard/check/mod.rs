//! The checks, one rule or family of rules a file. Each returns findings; none stops at its first.

mod functions;
mod layout;
mod mistaken;
mod order;
mod renumber;
mod shared;
mod statics;
mod vtables;

pub(super) use functions::functions;
pub(super) use layout::layouts;
pub(super) use mistaken::{Mistaken, mistaken};
pub(super) use order::{added, order};
pub(super) use renumber::renumbered;
pub(super) use shared::shared_addresses;
pub(super) use statics::statics;
pub(super) use vtables::{Ways, vtables};
