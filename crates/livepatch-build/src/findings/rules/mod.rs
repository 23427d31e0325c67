//! The rules, one a file, with everything that is said about them.

use super::{Code, Severity};

pub mod abi;
pub mod begins_anew;
pub mod built_otherwise;
pub mod closure;
pub mod computed_once;
pub mod constant_kept;
pub mod copies;
pub mod coroutine;
pub mod distributed_slice;
pub mod initialiser;
pub mod library;
pub mod library_path;
pub mod lost;
pub mod mixed_thread_locals;
pub mod new_export;
pub mod no_debug_info;
pub mod no_room;
pub mod not_rust;
pub mod numbered;
pub mod only_exports;
pub mod only_values;
pub mod optimised;
pub mod removed;
pub mod renumbered;
pub mod runs_once;
pub mod shared_address;
pub mod shared_section;
pub mod signature;
pub mod static_type;
pub mod type_layout;
pub mod unsupported;
pub mod value_kept;
pub mod vtable;

/// What is known about a rule without a finding.
#[derive(Debug)]
pub struct Rule {
    /// Its stable number.
    pub code: Code,
    /// Whether a finding of it stops the patch.
    pub severity: Severity,
    /// One line; `{}` stands for the item.
    pub title: &'static str,
    /// Why it is dangerous.
    pub reason: &'static str,
    /// What to do.
    pub help: &'static str,
    /// The long text of `cargo livepatch explain`, with an example.
    pub explanation: &'static str,
}

/// All rules in the order of their codes.
pub static ALL: &[&Rule] = &[
    &type_layout::RULE,
    &coroutine::RULE,
    &closure::RULE,
    &renumbered::RULE,
    &signature::RULE,
    &abi::RULE,
    &static_type::RULE,
    &vtable::RULE,
    &shared_address::RULE,
    &no_debug_info::RULE,
    &not_rust::RULE,
    &no_room::RULE,
    &shared_section::RULE,
    &initialiser::RULE,
    &distributed_slice::RULE,
    &only_values::RULE,
    &only_exports::RULE,
    &unsupported::RULE,
    &copies::RULE,
    &built_otherwise::RULE,
    &lost::RULE,
    &numbered::RULE,
    &library_path::RULE,
    &mixed_thread_locals::RULE,
    &optimised::RULE,
    &value_kept::RULE,
    &library::RULE,
    &computed_once::RULE,
    &begins_anew::RULE,
    &constant_kept::RULE,
    &removed::RULE,
    &runs_once::RULE,
    &new_export::RULE,
];

/// The rule with this code.
pub fn by_code(code: Code) -> Option<&'static Rule> {
    ALL.iter().copied().find(|rule| rule.code == code)
}
