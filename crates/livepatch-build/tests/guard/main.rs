//! The guard on pairs of programs: each rule with what triggers it and with lookalikes that must not.

mod layout;
mod support;
