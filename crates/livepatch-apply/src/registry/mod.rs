//! The registry: a small mapping in the target that holds what livepatch did there.
//!
//! The tool keeps no state of its own. Whatever a later run must know is read from here, and the first thing that a run
//! does is to look for what a killed one left behind ([`state::Journal`]).

pub mod format;
pub mod live;
pub mod state;

pub use format::{FormatError, Location, Store};
pub use state::{
    Carrier, CarrierRecord, Code, CodeRecord, ConstantRecord, EntryWrite, FrameStep, Function,
    FunctionRecord, Journal, KeptRecord, Mapping, PatchState, Record, Region, State, StaticRecord,
    TakenRecord, ThreadLocalRecord,
};
